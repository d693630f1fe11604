"""The parent run in MLflow of one backbone, suite and seed: started or resumed, and its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from backbones.cliptex.recipes import subsets
from benchmark.planning.plan import RunPlan
from benchmark.probing.records import BackboneInfo
from benchmark.results.run_result import suite_average
from benchmark.suites.registry import BackboneSource
from cliptex_common import plugins
from cliptex_common.files import content_key
from reports import artifacts
from reports.cell import TAGS, Cell, ParentRun, cost_metrics, task_tag
from reports.mlflow.client import metric_key
from reports.mlflow.environment import environment
from reports.mlflow.models import logged_model
from reports.mlflow.run import Run, Tracker
from reports.mlflow.views import save_view


def log_backbone(tracker: Tracker, backbone: BackboneInfo, train_run: str = "") -> str:
    """The id of the backbone's LoggedModel, which is created if the experiment has none of these
    weights. ``train_run`` is the id of the run that trained them."""
    weights = backbone.weights
    tags = {
        "backbone": backbone.name,
        TAGS["weights_source"]: weights.source,
        TAGS["licence"]: weights.licence,
    }
    return logged_model(tracker, backbone.name, weights.sha256, backbone.params, tags, train_run)


@dataclass(frozen=True)
class Parent:
    """The parent run of a backbone and seed.

    Attributes:
        source: how the backbone is built and what its weights cost.
        conditions: task → its ``PlannedTask.conditions``.
        model_id: of the backbone's LoggedModel.
    """

    tracker: Tracker
    plan: RunPlan
    backbone: BackboneInfo
    source: BackboneSource
    seed: int
    conditions: Mapping[str, Mapping[str, Any]]
    model_id: str

    @cached_property
    def record(self) -> ParentRun:
        """The run's record. A run with the same key is resumed; one with ``--limit`` is never the
        same as one on all images."""
        plan, backbone = self.plan, self.backbone
        suite, limit = plan.suite.name, plan.options.limit
        identity = {
            "suite": suite,
            "seed": self.seed,
            "backbone": backbone.identity,
            "name": backbone.name,
            "set": plan.overrides,
            "limit": limit,
        }
        name = f"{backbone.name} · {suite} · seed {self.seed}"
        return ParentRun(
            name=f"{name} · only {limit} images" if limit else name,
            backbone=backbone.name,
            architecture=backbone.architecture,
            suite=suite,
            seed=self.seed,
            weights=backbone.weights.sha256,
            weights_source=backbone.weights.source,
            licence=backbone.weights.licence,
            run_key=content_key(identity),
            model=self.model_id,
            train_run=self.source.run,
            experts=subsets().get(backbone.name, ()),
            main_metrics=tuple(f"{task.name}/{task.main_metric}" for task in plan.tasks),
            protocols={task_tag(task): content_key(c) for task, c in self.conditions.items()},
            costs=dict(self.source.cost),
        )

    def find_earlier(self) -> ParentRun | None:
        """The newest run to resume, or None: one that no process writes, and whose numbers of these
        tasks were measured under the same conditions (on the same data, for example)."""
        # a process may have been killed while this one waited for its lock
        self.tracker.close_stale()
        protocols = self.record.protocols.items()
        key = f"tags.`{TAGS['run_key']}` = '{self.record.run_key}'"
        for run in self.tracker.search(key):
            if not isinstance(run, ParentRun) or run.status == "still running":
                continue
            if all(run.protocols.get(task, value) == value for task, value in protocols):
                return run
        return None

    def is_complete(self, earlier: ParentRun, cells: Iterable[Cell]) -> bool:
        """Whether an earlier run is finished and has all metrics of the cells; a cell may have been
        computed under another parent, and its metrics may then be missing here."""
        logged = set(map(metric_key, earlier.metrics))
        return earlier.is_finished and set(map(metric_key, _metrics(cells))) <= logged

    @contextmanager
    def open(self, earlier: ParentRun | None, device: str) -> Iterator[Run]:
        """The run, new or resumed, with all that is known before the first cell; the experiment's
        saved view gets its tasks."""
        plan, backbone, record = self.plan, self.backbone, self.record
        limit = plan.options.limit
        params = {
            "backbone": record.backbone,
            "suite": record.suite,
            "seed": record.seed,
            "device": device,
            **({"limit": limit} if limit else {}),
            **plan.overrides,
        }
        content = {
            "backbone": {
                **backbone.identity,
                "name": backbone.name,
                "source": record.weights_source,
                "licence": record.licence,
                "config": {key: str(value) for key, value in backbone.create_arguments.items()},
            },
            "environment": environment(),
        }
        resume = earlier.run_id if earlier else None
        tags = record.to_tags()
        with self.tracker.run(record.name, tags=tags, params=params, resume=resume) as run:
            run.log_json(content, artifacts.PARENT)
            options = yaml.safe_dump(plan.as_config_file(), sort_keys=False, allow_unicode=True)
            run.log_text(options, artifacts.OPTIONS)
            for number, (path, source) in enumerate(plugins.loaded()):  # names may be equal
                name = f"plugins/{number}-{Path(path).name}"
                run.log_text(source.decode(errors="replace"), name)
            run.log_models(inputs=[self.model_id])
            run.log_new_metrics(cost_metrics(record.costs))
            save_view(self.tracker.client, self.tracker.experiment_id)
            yield run

    def log_cells(self, run: Run, cells: Sequence[Cell]) -> None:
        """Log the metrics of all cells and the suite's average, if there is one; mark the run
        FAILED if a cell failed."""
        run.log_new_metrics(_metrics(cells))
        reused = {task_tag(cell.task): cell.run_id for cell in cells if cell.status == "cached"}
        updates: dict[str, Any] = {"reused": reused}
        average = suite_average(self.plan.suite, cells)
        if average is not None:
            run.log_metrics({"average": average})
            updates["average"] = self.plan.suite.average
        run.set_tags(self.record.model_copy(update=updates).to_tags())
        if failed := [cell for cell in cells if cell.status == "failed"]:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in failed))


def _metrics(cells: Iterable[Cell]) -> dict[str, float]:
    return {f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()}
