"""``labels predict --dry-run`` and ``train --dry-run``: what is done and what is left, and what
that costs; makes nothing.

How long it takes follows from what earlier runs left in MLflow: their images a second on the same
kind of device, with the same experts or in a training of the same shape.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from backbones.cliptex.data.dataset import training_size
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.experts.registry import load_experts
from backbones.cliptex.labels.labeller import finished_shard, labels_writer
from backbones.cliptex.labels.store import MANIFEST
from backbones.cliptex.training.states import States
from backbones.cliptex.training.train import find_trained
from benchmark.cost import choose_device, earlier_runs
from benchmark.execution import Bar, Executor, ExecutorSpec, make_executor
from benchmark.execution.progress import console
from benchmark.stages.estimate import Work, duration
from benchmark.stages.labels import LabelRequest, labelling_kind
from benchmark.stages.weights import TrainingInputs, open_labels, speed_filter
from probes.features.budget import gigabytes
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Tracker

SPEEDS = (
    "cost/images_per_second",
    "label/images_per_second",
)  # of what has ended, and of what was interrupted


@dataclass(frozen=True)
class _Left:
    """What is left to do: images, in how many units, on how many devices at once, each of how many
    GPUs; bytes of the result."""

    images: float
    units: int
    devices: int
    gpus: int
    size: float | None


@contextmanager
def _looking(spec: ExecutorSpec) -> Iterator[Executor]:
    """An executor that runs nothing; hubs are asked for nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hubs' library is imported
    executor = make_executor(spec, Bar())
    try:
        executor.check_store(tracking_uri())
        yield executor
    finally:
        executor.release()


def preview_label(request: LabelRequest, spec: ExecutorSpec) -> None:
    """Say it of a labelling. Raises ``UserError`` as ``labels predict`` does."""
    with _looking(spec) as executor:
        source = open_pairs(request.pairs, executor.bar, keep=False)
        experts = load_experts(list(request.experts), "cpu")
        writer = labels_writer(source, experts, request.settings, request.folder)
        found = {
            shard.name: finished_shard(writer, shard, _note, hashed=False)
            for shard in source.shards
        }
        missing = [shard for shard in source.shards if found[shard.name] is None]
        images = sum(shard.count for shard in missing)
        _say(
            f"{len(source)} pairs in {len(source.shards)} shards:"
            f" {len(source.shards) - len(missing)} labelled, {len(missing)} to do ({images} pairs)"
        )
        if not missing:
            done = (writer.root / MANIFEST).is_file()
            return _say(
                "nothing is left to do"
                if done
                else f"only {writer.root / MANIFEST} is left to write"
            )
        kind = f"tags.stage = 'label' and tags.`labelling.kind` = '{labelling_kind(writer)}'"
        runs = earlier_runs(Tracker.existing(request.experiment), executor, kind)
        sizes = [size for run in runs if (size := run.get("bytes_per_image"))]
        needs = executor.needs("label")
        size = statistics.median(sizes) * images if sizes else None
        devices = min(len(missing), max(1, executor.slots))
        _say_cost(
            _Left(images, len(missing), devices, needs["gpus"], size),
            "label",
            executor.where(**needs),
            runs,
        )


def preview_train(inputs: TrainingInputs, spec: ExecutorSpec) -> None:
    """Say it of a training. Raises ``UserError`` as ``train`` does."""
    with _looking(spec) as executor:
        recipe, pairs = inputs.recipe, open_pairs(inputs.pairs, executor.bar, keep=False)
        count, steps = training_size(recipe, pairs)
        labels = open_labels(inputs.labels) if recipe.tasks else None
        _say(
            f"{recipe.name}: {count} of {len(pairs)} pairs in {len(pairs.shards)} shards ×"
            f" {recipe.epochs:g} epochs = {steps} steps of {recipe.batch_size}"
        )
        device = choose_device(inputs.device)
        if find_trained(
            recipe, init=inputs.init, pairs=pairs, out=inputs.out, labels=labels, device=device
        ):
            return _say(f"{inputs.out} holds these very weights: nothing is left to do")
        begun = States(inputs.out.with_name(f"{inputs.out.name}.resume"), "").steps()
        if begun and (step := begun[0]) < steps:
            _say(
                f"it goes on from step {step}, if that was a training by this recipe from the same"
                " inputs"
            )
            steps -= step
        needs, settings = executor.needs("train"), spec.settings
        devices = 1
        if needs["gpus"] and spec.name == "slurm":
            devices = int(settings.get("nodes", "1")) * int(settings.get("gpus", "1"))
        runs = earlier_runs(Tracker.existing(inputs.experiment), executor, speed_filter(inputs))
        sizes = [size for run in runs if (size := run.get("cost/disk_bytes"))]
        left = _Left(
            steps * recipe.batch_size,
            1,
            devices,
            needs["gpus"],
            statistics.median(sizes) if sizes else None,
        )
        _say_cost(left, f"train {recipe.name}", executor.where(**needs), runs)


def _say_cost(left: _Left, name: str, where: str, runs: list[Mapping[str, float]]) -> None:
    """The last lines: units, time, GPU-hours and disk, as far as something like it was measured."""
    speeds = [
        speed / run.get("cost/processes", 1.0) for run in runs if (speed := _first(run.get, SPEEDS))
    ]
    work = Work(left.images, statistics.median(speeds) if speeds else None)
    seconds, size = (
        work.seconds(left.devices),
        "unknown" if left.size is None else gigabytes(left.size),
    )
    _say(
        f"  to do · {name}: {left.units} unit{'s' * (left.units > 1)}, {where}, {left.devices} at"
        " once"
    )
    if seconds is None or work.device_hours is None:
        _say(
            "time unknown: nothing like it was measured on this kind of device (see `estimate`,"
            " with speeds of your own)"
        )
    else:
        hours = f", {work.device_hours:.1f} GPU-hours" if left.gpus else ""
        _say(
            f"about {duration(seconds)}{hours}, at {work.speed:.3g} images/s on each as measured in"
            f" {len(speeds)} runs"
        )
    _say(f"disk: {size}" + (" (nothing like it was measured)" if left.size is None else ""))


def _first(get: Callable[[str], float | None], names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := get(name))), None)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _note(line: str) -> None:
    console.print(f"  note · {line}", style="dim", markup=False)
