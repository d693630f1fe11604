"""Devices, and what work costs on them: the device is chosen where the work runs; peak memory of a
stretch of work; and of a backbone parameters, operations, images a second and memory.

A backbone's costs follow from its architecture, not from its weights, so they are measured once for
each architecture, resolution and precision on each kind of device, and kept under
``$CLIPTEX_HOME``.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import resource
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from backbones import Backbone
from backbones.cliptex.cost import count_flops
from backbones.versions import versions
from benchmark.execution.base import Executor
from benchmark.execution.task import GPUS
from common.errors import UserError
from common.files import content_key, home, read_json_object, write_json
from probes.image_level.encode import autocast
from reports.mlflow.run import Tracker

VERSION = 1
SECONDS = 0.3  # of timing, after the first pass and at least one more


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU, unless this is a task that was
    given a GPU: that would compute on the CPU for days. Raises ``UserError`` for a device that is
    not there."""
    if name == "auto":
        if not torch.cuda.is_available() and os.environ.get(GPUS, "0") != "0":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise UserError(
                f"this task was given a GPU (CUDA_VISIBLE_DEVICES={seen}), where torch finds none;"
                " use --device cpu"
            )
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which ``meta`` has none of
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"no device {name!r} here ({str(error).splitlines()[0]}); use cpu, cuda or auto"
        ) from None
    return device


@functools.cache
def device_kind(device: torch.device) -> str:
    """What kind of device it is, for comparing speeds: ``NVIDIA H100 80GB HBM3``,
    ``Intel(R) Xeon(R) Platinum 8480C``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak(device: torch.device) -> None:
    """Begin a new stretch (on Linux and CUDA; elsewhere the peak is that of the whole process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since ``reset_peak``: of the GPU for CUDA, else resident memory of this
    process (no workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def costs_of(backbone: Backbone, settings: Iterable[Any], device: torch.device) -> dict[str, float]:
    """``parameters``; ``flops_per_image``, ``images_per_second`` and ``memory_mb`` at the
    backbone's own size in fp32; and the same as ``HEIGHTxWIDTH-PRECISION/…`` at the resolution of
    each of ``settings``.

    FLOPs are counted as in ``backbones.cliptex.cost``, of one image's feature maps. Memory is the
    peak of the device on CUDA, else of this process. A resolution that the backbone cannot take, or
    that does not fit into memory, is left out.
    """
    found = {"parameters": float(sum(parameter.numel() for parameter in backbone.parameters()))}
    found |= measured(backbone, backbone.data.size, "fp32", device)
    for (height, width), precision in dict.fromkeys(
        resolution(each, backbone) for each in settings
    ):
        told = measured(backbone, (height, width), precision, device)
        found |= {f"{height}x{width}-{precision}/{name}": value for name, value in told.items()}
    return found


def resolution(settings: Any, backbone: Backbone) -> tuple[tuple[int, int], str]:
    """((height, width), precision) that a task's settings let the backbone see, rounded up to its
    divisor."""
    side = getattr(settings, "size", None)
    sides = getattr(settings, "crop", ()) or ((side, side) if side else backbone.data.size)
    if (short := getattr(settings, "short_side", None)) is not None:
        sides = (short, settings.long_side)
    if tuple(sides) != backbone.data.size:
        sides = [math.ceil(each / backbone.divisor) * backbone.divisor for each in sides]
    return (int(sides[0]), int(sides[1])), getattr(settings, "precision", "fp32")


def measured(
    backbone: Backbone, size: tuple[int, int], precision: Any, device: torch.device
) -> Mapping[str, float]:
    """``flops_per_image``, ``images_per_second`` and ``memory_mb`` of feature maps at a size, from
    before where this machine has measured them; nothing where it cannot be done."""
    architecture = {
        "name": backbone.architecture,
        "config": dict(backbone.model_config),
        "layers": backbone.data.layers,
    }
    where = {
        "device": device_kind(device),
        "threads": torch.get_num_threads(),
        "torch": versions("torch"),
    }
    key = content_key(
        {"version": VERSION, **architecture, **where, "size": size, "precision": precision}
    )
    path = home() / "efficiency" / f"{key}.json"
    if kept := read_json_object(path):
        return kept["measured"]
    try:
        told = _measure(backbone, size, precision, device)
    except (
        ValueError,
        RuntimeError,
    ):  # a size that it does not take, or memory that is not there: the task will say so
        return {}
    write_json(
        path,
        {"measured": told, "backbone": architecture, **where, "size": size, "precision": precision},
    )
    return told


@torch.inference_mode()
def _measure(
    backbone: Backbone, size: tuple[int, int], precision: Any, device: torch.device
) -> dict[str, float]:
    """The quickest pass counts: others may compute beside it. On CUDA 16 images at once, else
    one."""
    batch = 16 if device.type == "cuda" else 1
    memory = torch.channels_last if len(backbone.strides) > 1 else torch.contiguous_format
    images = torch.zeros(batch, 3, *size, device=device).contiguous(memory_format=memory)

    def once() -> float:
        started = time.perf_counter()
        backbone(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    with autocast(device, precision):
        flops = count_flops(once)
        reset_peak(device)
        passes = [once()]
        while sum(passes) < SECONDS and len(passes) < 10:
            passes.append(once())
    return {
        "flops_per_image": flops / batch,
        "images_per_second": batch / min(passes),
        "memory_mb": peak_mb(device),
    }


def earlier_runs(
    tracker: Tracker | None, executor: Executor, filter_string: str
) -> list[Mapping[str, float]]:
    """Metrics of the runs that fit an MLflow filter and were made on this kind of device, newest
    first; none where the executor's GPUs are other machines' and what they are is not known
    here."""
    try:
        device = choose_device(executor.device)
    except UserError:
        return []
    if tracker is None or (executor.has_gpus and device.type == "cpu"):
        return []
    return [
        run.data.metrics
        for run in tracker.search(
            f"{filter_string} and tags.`device.kind` = '{device_kind(device)}'"
        )
    ]
