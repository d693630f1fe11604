"""Memory that work will need, for ``--dry-run``."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backbones.cliptex.training.clip_trainer import CLIPTrainer
from backbones.cliptex.training.distributed import torchrun_environment
from backbones.cliptex.training.memory import training_peak
from backbones.cliptex.training.models import load_pretrained_clip
from benchmark.execution.device import choose_device
from benchmark.stages.weights import TrainingInputs, open_labels
from cliptex_common.device import is_accelerator, is_available, memory, planned_device
from cliptex_common.errors import error_summary
from cliptex_common.visible_devices import is_accelerator_name
from probes.memory.predict import Task, predict

GB = 1e9
USABLE = 0.9  # share of a device's memory: its context and what the allocator wastes take some
# phases whose batches are halved where memory ends
HALVED = ("encoding", "encoding texts", "evaluation")


@dataclass(frozen=True)
class PlannedDevice:
    """The device that work is planned for, and its bytes; None for the memory of the host."""

    device: torch.device
    capacity: int | None

    @classmethod
    def of(cls, name: str, gigabytes: float | None) -> PlannedDevice:
        """From ``--device`` and ``--device-memory``.

        With the latter it is an accelerator, which this machine need not have.
        """
        if gigabytes is None:
            if is_accelerator_name(name) and not is_available(name):  # of another machine
                return cls(torch.device(name), None)
            device = choose_device(name)
            sizes = memory(device) if is_accelerator(device) else None
            return cls(device, sizes[1] if sizes else None)
        return cls(planned_device(name), int(gigabytes * GB))

    def describe(
        self, peak: int, phase: str, host: int = 0, advice: str = "lower batch_size or size"
    ) -> str:
        """``5.2 GB on the device (training), 1.9 GB on the host``, and whether it fits.

        Args:
            peak: bytes on the device in a phase. host: of large tensors on the host.
            advice: what helps where it does not fit.
        """
        host += resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not is_accelerator(self.device):
            return f"{(host + peak) / GB:.1f} GB of memory ({phase})"
        text = f"{peak / GB:.1f} GB on the device ({phase}), {host / GB:.1f} GB on the host"
        if self.capacity is None or peak <= USABLE * self.capacity:
            return text
        text += f": does not fit {self.capacity / GB:g} GB"
        if phase in HALVED:
            return f"{text}, batches will be halved"
        return f"{text}; {advice}"


def describe_unit(tasks: Sequence[Task], planned: PlannedDevice) -> str:
    """Of the tasks of a unit of work; the most of those that are not trained together."""
    try:
        peaks = predict(tasks, planned.capacity)
    except Exception as error:  # a plug-in may do what fake tensors cannot
        return f"memory unknown ({error_summary(error)})"
    if not peaks:
        return "memory unknown"
    worst = max(peaks, key=lambda peak: peak.device)
    return planned.describe(worst.device, worst.phase, max(peak.host for peak in peaks))


def describe_training(inputs: TrainingInputs, planned: PlannedDevice) -> str:
    """Of each process of a training."""
    recipe = inputs.recipe
    try:
        start = load_pretrained_clip(
            inputs.init, recipe.model, image_size=recipe.image_size, seed=recipe.seed
        )
        labels = open_labels(inputs.labels) if recipe.tasks and inputs.labels else None
        processes = torchrun_environment().get("WORLD_SIZE", 1)
        peak = training_peak(recipe, start, labels, planned.device, processes)
    except Exception as error:  # weights that are not here, or a model that fake tensors cannot run
        return f"memory unknown ({error_summary(error)})"
    return planned.describe(peak, "training", advice=CLIPTrainer.memory_advice)
