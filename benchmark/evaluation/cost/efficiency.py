"""What a backbone costs to use: parameters, operations, images a second and memory, at the
resolutions of the protocols.

They follow from the architecture, not from the weights, so they are measured once for each
architecture, resolution and precision on each kind of device, and kept under ``$CLIPTEX_HOME``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from backbones import Backbone
from backbones.versions import versions
from benchmark.evaluation.cost.device import device_kind, peak_mb, reset_peak
from common.files import content_key, home, read_object, write_json
from probes.image_level.encode import autocast
from probes.runner.shared_parts import counted

VERSION = 1
SECONDS = 0.3  # of timing, after the first pass and at least one more


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
    if kept := read_object(path):
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
        _, flops = counted(once, True)
        reset_peak(device)
        passes = [once()]
        while sum(passes) < SECONDS and len(passes) < 10:
            passes.append(once())
    return {
        "flops_per_image": flops / batch,
        "images_per_second": batch / min(passes),
        "memory_mb": peak_mb(device),
    }
