"""The parent run in MLflow of one backbone, suite and seed: started or resumed, and its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backbones.cliptex.training.recipes import subsets
from benchmark.plan import RunPlan
from benchmark.records import BackboneInfo, Cell
from benchmark.suites.registry import BackboneSource
from cliptex_common import plugins
from cliptex_common.files import content_key
from reports.mlflow.client import metric_key
from reports.mlflow.environment import environment
from reports.mlflow.models import MODEL_TAG
from reports.mlflow.run import Run, Tracker
from reports.mlflow.views import MAIN_TAG, main_tag, save_view


@dataclass(frozen=True)
class Parent:
    """The parent run of a backbone and seed.

    Attributes:
        source: how the backbone is built and what its weights cost.
        conditions: task → its ``PlannedTask.conditions``.
        model: id of the backbone's LoggedModel.
    """

    tracker: Tracker
    plan: RunPlan
    backbone: BackboneInfo
    source: BackboneSource
    seed: int
    conditions: Mapping[str, Mapping[str, Any]]
    model: str

    @property
    def key(self) -> str:
        """Its identity: a run with the same key is resumed. A run with ``--limit`` is never the
        same as one on all images."""
        return content_key(
            {
                "suite": self.plan.suite.name,
                "seed": self.seed,
                "backbone": self.backbone.identity,
                "name": self.backbone.name,
                "set": self.plan.overrides,
                "limit": self.plan.options.limit,
            }
        )

    @property
    def _protocol_tags(self) -> dict[str, str]:
        return {
            metric_key(f"protocol.{task.replace('/', '.')}"): content_key(conditions)
            for task, conditions in self.conditions.items()
        }

    def find_earlier(self) -> Any | None:
        """The newest run to resume, or None.

        It must not be RUNNING, because another process writes it then, and all its numbers of these
        tasks must have been measured under the same conditions (on the same data, for example).
        """
        tags = self._protocol_tags
        for run in self.tracker.search(f"tags.`run.key` = '{self.key}'"):
            agrees = all(run.data.tags.get(tag, value) == value for tag, value in tags.items())
            if agrees and run.info.status != "RUNNING":
                return run
        return None

    def is_complete(self, earlier: Any, cells: Iterable[Cell]) -> bool:
        """Whether an earlier run is FINISHED and has all metrics of the cells; a cell may have been
        computed under another parent, and its metrics may then be missing here."""
        logged = {metric_key(name) for name in _metrics(cells)} <= earlier.data.metrics.keys()
        return earlier.info.status == "FINISHED" and logged

    @contextmanager
    def open(self, earlier: Any | None, device: str) -> Iterator[Run]:
        """The run, new or resumed, with all that is known before the first cell; the experiment's
        saved view gets its tasks."""
        plan, backbone, suite = self.plan, self.backbone, self.plan.suite.name
        weights, limit = backbone.weights, plan.options.limit
        tags = {
            "backbone": backbone.name,
            "architecture": backbone.architecture,
            "suite": suite,
            "seed": str(self.seed),
            "weights.sha256": weights.sha256,
            "weights.source": weights.source,
            "weights.licence": weights.licence,
            "run.key": self.key,
            MODEL_TAG: self.model,
            "train.run": self.source.run,
            # the experts of CLIPTeX and its ablations, '' for other backbones; the report computes
            # the gain of each expert from them
            "experts": ",".join(subsets().get(backbone.name, ())),
            MAIN_TAG: main_tag([f"{task.name}/{task.main_metric}" for task in plan.tasks]),
            **self._protocol_tags,
        }
        params = {
            "backbone": backbone.name,
            "suite": suite,
            "seed": self.seed,
            "device": device,
            **({"limit": limit} if limit else {}),
            **plan.overrides,
        }
        title = f"{backbone.name} · {suite} · seed {self.seed}"
        if limit:
            title += f" · only {limit} images"
        resume = earlier.info.run_id if earlier is not None else None
        content = {
            "backbone": {
                **backbone.identity,
                "name": backbone.name,
                "source": weights.source,
                "licence": weights.licence,
                "config": {key: str(value) for key, value in backbone.create_arguments.items()},
            },
            "environment": environment(),
        }
        with self.tracker.run(title, tags=tags, params=params, resume=resume) as run:
            run.log_json(content, "run.json")
            options = yaml.safe_dump(plan.as_config_file(), sort_keys=False, allow_unicode=True)
            run.log_text(options, "options.yaml")
            for number, (path, source) in enumerate(plugins.loaded()):  # names may be equal
                name = f"plugins/{number}-{Path(path).name}"
                run.log_text(source.decode(errors="replace"), name)
            run.log_models(inputs=[self.model])
            costs = {f"cost/{name}": value for name, value in self.source.cost.items()}
            run.log_new_metrics(costs)
            save_view(self.tracker.client, self.tracker.experiment_id)
            yield run

    def log_cells(self, run: Run, cells: Sequence[Cell]) -> None:
        """Log the metrics of all cells; mark the run FAILED if a cell failed."""
        run.log_new_metrics(_metrics(cells))
        run.set_tags(
            {
                metric_key(f"cached.{cell.task.replace('/', '.')}"): cell.run_id
                for cell in cells
                if cell.status == "cached"
            }
        )
        if failed := [cell for cell in cells if cell.status == "failed"]:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in failed))


def _metrics(cells: Iterable[Cell]) -> dict[str, float]:
    return {f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()}
