"""Experts: a training as one unit of work, in an MLflow run of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
from backbones.cliptex.experts.base import CONFIG
from backbones.cliptex.experts.fit import train_expert
from backbones.cliptex.trainer import TrainContext
from benchmark.execution.base import Executor, Priority
from benchmark.execution.device import choose_device
from benchmark.execution.exclusive import exclusive
from benchmark.execution.progress import console, reporter
from benchmark.execution.unit import drop_last_model
from benchmark.stages.session import computing_tags, stage_run
from cliptex_common.progress import Silent
from reports.cell import TAGS, cost_metrics
from reports.mlflow.run import Tracker


@dataclass(frozen=True)
class ExpertTraining:
    """The training of an expert, in plain values.

    Attributes:
        name: of the expert.
        data_root: with the ground truth of its task, see ``Task.ground_truth``.
        out: its folder.
        settings: changes to its settings.
        experiment: in MLflow.
    """

    name: str
    data_root: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    experiment: str = "experts"

    def find(self) -> dict[str, Any] | None:
        """The expert's ``expert.json`` if it is trained."""
        path = self.out / CONFIG
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


async def make_expert(
    training: ExpertTraining, executor: Executor, priority: int = Priority.DEFAULT
) -> dict[str, Any]:
    """``expert_unit`` through an executor, on its device."""
    training = replace(training, device=executor.device)
    name = f"expert {training.name}"
    return await executor.run(expert_unit, training, name=name, kind="expert", priority=priority)


def expert_unit(training: ExpertTraining) -> dict[str, Any]:
    """Train an expert unless another process has done so; a unit of work. Returns its
    ``expert.json``, with its accuracy on ground truth.

    Raises:
        UserError: as ``backbones.cliptex.experts.fit.train_expert``.
    """
    drop_last_model()
    with exclusive(training.out):
        if training.find() is not None:
            return _train(training, Silent())  # checks it
        tags = {
            "expert": training.name,
            "seed": str(training.seed),
            **computing_tags(training.device),
        }
        title = f"expert {training.name} · seed {training.seed}"
        tracker = Tracker(training.experiment)
        with stage_run(tracker, "experts", title, tags, training.settings) as run:
            expert = _train(training, run)
            run.log_json(expert, CONFIG)
            costs = {"train_seconds": expert["seconds"], "train_flops": expert["flops"]}
            run.log_metrics(cost_metrics(costs))
            run.set_tags(
                {
                    TAGS["weights"]: expert["sha256"],
                    TAGS["weights_file"]: str(training.out.absolute()),
                }
            )
    accuracy = ", ".join(f"{key} {value:.3g}" for key, value in expert["accuracy"].items())
    console.print(f"  expert {training.name}: {accuracy}  {expert['seconds']:.0f} s")
    return expert


def _train(training: ExpertTraining, log: Any) -> dict[str, Any]:
    """Train; of a finished expert, check that it was trained with these settings."""
    context = TrainContext(choose_device(training.device), log, reporter())
    return train_expert(
        training.name,
        training.data_root,
        training.out,
        context,
        training.settings,
        training.seed,
    )
