"""The parent run of one backbone, suite and seed in MLflow: opened, or gone on with, and what it
says of its cells."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backbones.base import Backbone, Weights
from backbones.cliptex.training.recipes import subsets
from benchmark.cell import Cell, log_probed
from benchmark.plan import PlannedTask, find_planned
from benchmark.results.table import number
from benchmark.suites.registry import MadeBackbone
from common.errors import UserError
from common.files import content_key
from probes.datasets.base import PreparedDataset
from reports.mlflow import heartbeat
from reports.mlflow.client import metric_key
from reports.mlflow.environment import environment
from reports.mlflow.models import MODEL_TAG
from reports.mlflow.run import Run, Tracker
from reports.mlflow.views import MAIN_TAG


@dataclass(frozen=True)
class Parent:
    """What identifies a parent run, and what it is told at its start.

    Attributes:
        name, architecture, weights, identity: of the backbone, which itself (gigabytes, perhaps)
            need not be kept.
        overrides: ``--set`` of the run; part of its identity.
        made: how the backbone is made, and what that cost.
        model: id of its LoggedModel.
        asked: the options of the command, as ``--config`` takes them.
    """

    suite: str
    name: str
    architecture: str
    weights: Weights
    identity: Mapping[str, Any]
    seed: int
    overrides: Mapping[str, str]
    made: MadeBackbone
    tasks: Sequence[PlannedTask]
    data: Mapping[str, PreparedDataset]
    model: str
    asked: Mapping[str, Any]

    @classmethod
    def of(cls, backbone: Backbone, suite: str, seed: int, **told: Any) -> Parent:
        """The parent run of a backbone's tasks."""
        return cls(
            suite=suite,
            seed=seed,
            name=backbone.name,
            architecture=backbone.architecture,
            weights=backbone.weights,
            identity=backbone.identity(),
            **told,
        )

    @property
    def key(self) -> str:
        what = {
            "suite": self.suite,
            "seed": self.seed,
            "backbone": self.identity,
            "name": self.name,
            "set": self.overrides,
        }
        return content_key({**what, **self.limited})

    @property
    def limited(self) -> dict[str, int]:
        """``{"limit": N}`` of a run that is scored on N images of each dataset; it never joins one
        on all of them."""
        return {"limit": self.asked["limit"]} if "limit" in self.asked else {}

    def protocols(self) -> dict[str, str]:
        """Tags that say under which protocol each task ran."""
        return {
            f"protocol.{task.name.replace('/', '.')}": content_key(
                task.protocol(self.data[task.name])
            )
            for task in self.tasks
        }

    def earlier(self, tracker: Tracker) -> Any | None:
        """The newest parent run to go on with: none that another process is writing, nor one with
        numbers of another protocol (other data, say) for the same task."""
        for run in tracker.search(f"tags.`run.key` = '{self.key}'"):
            agrees = all(
                run.data.tags.get(tag, protocol) == protocol
                for tag, protocol in self.protocols().items()
            )
            if agrees and not (run.info.status == "RUNNING" and heartbeat.alive(run.data.tags)):
                return run
        return None

    def open(
        self, tracker: Tracker, earlier: Any | None, device: str
    ) -> AbstractContextManager[Run]:
        """The run, for a ``with`` block."""
        tags = {
            "backbone": self.name,
            "architecture": self.architecture,
            "suite": self.suite,
            "seed": str(self.seed),
            "weights.sha256": self.weights.sha256,
            "weights.source": self.weights.source,
            "weights.licence": self.weights.licence,
            "run.key": self.key,
            MODEL_TAG: self.model,
            "train.run": self.made.run,
            "experts": ",".join(subsets().get(self.name, ())),
            MAIN_TAG: ",".join(
                f"{task.name}/{next(iter(task.probe.metrics))}" for task in self.tasks
            ),
            **self.protocols(),
        }
        params = {
            "backbone": self.name,
            "suite": self.suite,
            "seed": self.seed,
            "device": device,
            **self.limited,
            **self.overrides,
        }
        title = f"{self.name} · {self.suite} · seed {self.seed}"
        title += "".join(f" · only {count} images" for count in self.limited.values())
        return tracker.run(
            title,
            tags=tags,
            params=params,
            resume=earlier.info.run_id if earlier is not None else None,
        )

    def begin(self, run: Run, earlier: Any | None) -> None:
        """What is known before the first cell: ``run.json``, costs, datasets. A run that goes on
        keeps its other tasks."""
        before = _stored(run, "run.json") if earlier is not None else {}
        run.log_json(
            {
                "backbone": {
                    **self.identity,
                    "name": self.name,
                    "source": self.weights.source,
                    "licence": self.weights.licence,
                    "config": {k: str(v) for k, v in self.made.config.items()},
                },
                "suite": self.suite,
                "seed": self.seed,
                "set": dict(self.overrides),
                "tasks": {
                    **before.get("tasks", {}),
                    **{t.name: t.protocol(self.data[t.name]) for t in self.tasks},
                },
                "environment": environment(),
            },
            "run.json",
        )
        run.log_text(
            yaml.safe_dump(dict(self.asked), sort_keys=False, allow_unicode=True), "options.yaml"
        )
        if earlier is None:
            run.log_models(inputs=[self.model])
            run.log_metrics({f"cost/{name}": value for name, value in self.made.cost.items()})
        for used in {(d.spec.name, d.fingerprint): d for d in self.data.values()}.values():
            log_probed(run, used)

    def end(self, run: Run, cells: Sequence[Cell], earlier: Any | None) -> None:
        """Metrics of all cells, a table as description, and the honest status."""
        before = earlier.data.metrics if earlier is not None else {}
        found = {
            f"{cell.task}/{name}": value for cell in cells for name, value in cell.metrics.items()
        }
        run.log_metrics(
            {name: value for name, value in found.items() if before.get(metric_key(name)) != value}
        )
        run.set_tags(
            {f"cached.{c.task.replace('/', '.')}": c.run_id for c in cells if c.status == "cached"}
        )
        run.describe(self._note(cells, before))
        run.flush()
        broken = [cell for cell in cells if cell.status == "failed"]
        if broken:
            run.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in broken))

    def _note(self, cells: Sequence[Cell], before: Mapping[str, float]) -> str:
        """The description in the MLflow UI: results as a table, those of earlier tasks of the same
        run among them."""
        rows = {}
        for key, value in before.items():
            name, _, metric = key.rpartition("/")
            if (probe := find_planned(name)) and metric_key(next(iter(probe.metrics))) == metric:
                rows[name] = f"{next(iter(probe.metrics))} {number(value)}"
        for cell, task in zip(cells, self.tasks, strict=True):
            main = next(iter(task.probe.metrics))
            rows[cell.task] = (
                f"{main} {number(cell.metrics.get(main))}"
                if cell.metrics
                else f"– ({cell.status}: {cell.reason})"
            )
        lines = [
            f"`{self.name}` ({self.architecture}), weights {self.weights.source}",
            "",
            "| task | result |",
        ]
        return "\n".join(
            [*lines, "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())]
        )


def _stored(run: Run, name: str) -> dict[str, Any]:
    """A JSON artifact of a run, empty where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = run.tracker.client.download_artifacts(run.id, name, folder)
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, UserError):
            return {}
