"""Experts: a training as one unit of work, in an MLflow run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
from backbones.cliptex.experts.base import CONFIG
from backbones.cliptex.experts.training import train_expert
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.trainer import TrainContext
from benchmark.cost import choose_device, device_kind
from benchmark.execution.base import Executor
from benchmark.execution.progress import console, reporter
from benchmark.stages.stage import one_maker, stage_run
from reports.mlflow.run import Tracker


@dataclass(frozen=True)
class ExpertTraining:
    """The training of an expert, in plain values: any process that sees the files can run it.

    Attributes:
        name: of the expert; settings: changes to its settings.
        data_root: with ``coco/`` (seg) or ``nyu/`` (depth, normal), train and val.
        out: its folder.
        experiment: in MLflow.
    """

    name: str
    data_root: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    experiment: str = "experts"


async def expert_stage(
    inputs: ExpertTraining, executor: Executor, priority: int = 0
) -> dict[str, Any]:
    """``expert_unit`` through an executor, which says where it computes."""
    inputs = replace(inputs, device=executor.device)
    return await executor.run(
        "expert", expert_unit, inputs, name=f"expert {inputs.name}", priority=priority
    )


def expert_unit(inputs: ExpertTraining) -> dict[str, Any]:
    """Train an expert, or find what another process has trained meanwhile; one unit of work.
    Returns its ``expert.json``, with its accuracy on truth.

    Raises:
        UserError: as ``backbones.cliptex.experts.training.train_expert``.
    """
    with one_maker(inputs.out):
        if (inputs.out / CONFIG).is_file():
            return _train(inputs, Silent())
        kind = device_kind(choose_device(inputs.device))
        tags = {"expert": inputs.name, "seed": str(inputs.seed), "device.kind": kind}
        name = f"expert {inputs.name} · seed {inputs.seed}"
        with stage_run(Tracker(inputs.experiment), "experts", name, tags, inputs.settings) as run:
            made = _train(inputs, run)
            run.log_json(made, CONFIG)
            run.log_metrics(
                {"cost/train_seconds": made["seconds"], "cost/train_flops": made["flops"]}
            )
            run.set_tags(
                {"weights.sha256": made["sha256"], "weights.file": str(inputs.out.absolute())}
            )
    accuracy = ", ".join(f"{key} {value:.3g}" for key, value in made["accuracy"].items())
    console.print(f"  expert {inputs.name}: {accuracy}  {made['seconds']:.0f} s")
    return made


def _train(inputs: ExpertTraining, log: Any) -> dict[str, Any]:
    context = TrainContext(choose_device(inputs.device), log, reporter())
    return train_expert(
        inputs.name, inputs.data_root, inputs.out, context, inputs.settings, inputs.seed
    )
