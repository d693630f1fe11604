"""The parent run in MLflow of one backbone, suite and seed: started or resumed, and its content."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backbones.cliptex.training.recipes import subsets
from benchmark.cell import log_dataset
from benchmark.plan import RunPlan
from benchmark.records import BackboneInfo, Cell
from benchmark.results.table import number
from benchmark.suites.registry import BackboneSource
from common.errors import UserError
from common.files import content_key
from probes.datasets.base import PreparedDataset
from probes.registry import find_task
from reports.mlflow import heartbeat
from reports.mlflow.client import metric_key
from reports.mlflow.environment import environment
from reports.mlflow.models import MODEL_TAG
from reports.mlflow.run import Run, Tracker
from reports.mlflow.views import MAIN_TAG


@dataclass(frozen=True)
class Parent:
    """The parent run of a backbone and seed.

    Attributes:
        source: how the backbone is built and what its weights cost.
        protocols: task → its ``PlannedTask.protocol``.
        model: id of the backbone's LoggedModel.
    """

    tracker: Tracker
    plan: RunPlan
    backbone: BackboneInfo
    source: BackboneSource
    seed: int
    protocols: Mapping[str, Mapping[str, Any]]
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
            f"protocol.{task.replace('/', '.')}": content_key(protocol)
            for task, protocol in self.protocols.items()
        }

    def find_earlier(self) -> Any | None:
        """The newest run to resume: neither one that another process is writing, nor one with
        numbers of another protocol (other data, for example) for one of the tasks."""
        tags = self._protocol_tags
        for run in self.tracker.search(f"tags.`run.key` = '{self.key}'"):
            is_written = run.info.status == "RUNNING" and heartbeat.alive(run.data.tags)
            agrees = all(run.data.tags.get(tag, value) == value for tag, value in tags.items())
            if agrees and not is_written:
                return run
        return None

    def is_complete(self, earlier: Any, cells: Iterable[Cell]) -> bool:
        """Whether an earlier run is FINISHED and has all metrics of the cells; some may have been
        computed under another parent."""
        if earlier.info.status != "FINISHED":
            return False
        logged = earlier.data.metrics
        names = (f"{cell.task}/{name}" for cell in cells for name in cell.metrics)
        return all(metric_key(name) in logged for name in names)

    @contextmanager
    def open(
        self, earlier: Any | None, data: Mapping[str, PreparedDataset], device: str
    ) -> Iterator[Run]:
        """The run, new or resumed, with all that is known before the first cell."""
        plan, backbone, suite = self.plan, self.backbone, self.plan.suite.name
        limit = plan.options.limit
        tags = {
            "backbone": backbone.name,
            "architecture": backbone.architecture,
            "suite": suite,
            "seed": str(self.seed),
            "weights.sha256": backbone.weights.sha256,
            "weights.source": backbone.weights.source,
            "weights.licence": backbone.weights.licence,
            "run.key": self.key,
            MODEL_TAG: self.model,
            "train.run": self.source.run,
            "experts": ",".join(subsets().get(backbone.name, ())),
            MAIN_TAG: ",".join(f"{task.name}/{task.main_metric}" for task in plan.tasks),
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
        with self.tracker.run(title, tags=tags, params=params, resume=resume) as run:
            self._log_inputs(run, data, is_resumed=earlier is not None)
            yield run

    def _log_inputs(self, run: Run, data: Mapping[str, PreparedDataset], is_resumed: bool) -> None:
        backbone, weights = self.backbone, self.backbone.weights
        stored = _read_artifact(run, "run.json") if is_resumed else {}
        run.log_json(
            {
                "backbone": {
                    **backbone.identity,
                    "name": backbone.name,
                    "source": weights.source,
                    "licence": weights.licence,
                    "config": {key: str(value) for key, value in self.source.config.items()},
                },
                "suite": self.plan.suite.name,
                "seed": self.seed,
                "set": dict(self.plan.overrides),
                "tasks": {**stored.get("tasks", {}), **self.protocols},
                "environment": environment(),
            },
            "run.json",
        )
        options = yaml.safe_dump(self.plan.as_config_file(), sort_keys=False, allow_unicode=True)
        run.log_text(options, "options.yaml")
        if not is_resumed:
            run.log_models(inputs=[self.model])
            run.log_metrics({f"cost/{name}": value for name, value in self.source.cost.items()})
        for dataset in {(d.spec.name, d.fingerprint): d for d in data.values()}.values():
            log_dataset(run, dataset)

    def log_cells(self, run: Run, cells: Sequence[Cell], earlier: Any | None) -> None:
        """Log the metrics of all cells and a table of them; mark the run FAILED if one failed."""
        logged = earlier.data.metrics if earlier is not None else {}
        metrics = {
            f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()
        }
        run.log_metrics(
            {name: v for name, v in metrics.items() if logged.get(metric_key(name)) != v}
        )
        run.set_tags(
            {f"cached.{c.task.replace('/', '.')}": c.run_id for c in cells if c.status == "cached"}
        )
        run.describe(self._description(cells, logged))
        run.flush()
        if failed := [cell for cell in cells if cell.status == "failed"]:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in failed))

    def _description(self, cells: Sequence[Cell], logged: Mapping[str, float]) -> str:
        """A table of results, with those of tasks that only an earlier command had."""
        rows = {}
        for key, value in logged.items():
            name, _, metric = key.rpartition("/")
            try:
                main = next(iter(find_task(name)[1].metrics))
            except UserError:  # not the metric of a task
                continue
            if metric_key(main) == metric:
                rows[name] = f"{main} {number(value)}"
        main_metrics = {task.name: task.main_metric for task in self.plan.tasks}
        for cell in cells:
            main = main_metrics[cell.task]
            rows[cell.task] = f"– ({cell.status}: {cell.reason})"
            if cell.metrics:
                rows[cell.task] = f"{main} {number(cell.metrics.get(main))}"
        backbone = self.backbone
        lines = [
            f"`{backbone.name}` ({backbone.architecture}), weights {backbone.weights.source}",
            "",
            "| task | result |",
            "| --- | --- |",
            *(f"| {name} | {result} |" for name, result in rows.items()),
        ]
        return "\n".join(lines)


def _read_artifact(run: Run, name: str) -> dict[str, Any]:
    """A JSON artifact of a run, empty if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = run.tracker.client.download_artifacts(run.id, name, folder)
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, UserError):
            return {}
