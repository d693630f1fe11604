"""What work costs: peak memory, and a backbone's parameters, operations, speed and memory.

A backbone's costs follow from its architecture, not from its weights. They are measured once for
each architecture on each kind of device and cached under ``$CLIPTEX_HOME``.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from backbones import Backbone
from backbones.backbone import in_memory_format, versions
from backbones.cliptex.cost import count_flops
from cliptex_common.device import (
    device_name,
    is_accelerator,
    is_out_of_memory,
    peak_memory,
    reset_peak_memory,
    synchronize,
)
from cliptex_common.files import content_key, home, read_json_object, write_json

TIMED_SECONDS = 0.3  # of passes, after a first one that does not count
MAX_PASSES = 10


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew (on Linux and accelerators that count it; elsewhere the peak
    is that of the process since its start)."""
    reset_peak_memory(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since ``reset_peak``: of an accelerator that counts it, otherwise resident
    memory of this process without its loading processes."""
    peak = peak_memory(device)
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 1e6


def backbone_costs(backbone: Backbone, device: torch.device) -> Mapping[str, float]:
    """``parameters``, and ``flops_per_image``, ``images_per_second``, ``memory_mb`` and
    ``latency_ms`` (of an image alone) of feature maps at the backbone's own size in fp32.

    FLOPs are as in ``backbones.cliptex.cost``. Memory is that of ``peak_mb``.
    """
    identity = {
        "backbone": {
            "name": backbone.architecture,
            "config": dict(backbone.model_config),
            "layers": backbone.data.layers,
            "size": backbone.data.size,
        },
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": versions("torch"),
    }
    path = home() / "efficiency" / f"{content_key(identity)}.json"
    if cached := read_json_object(path):
        return cached["measured"]
    try:
        costs = _measure(backbone, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {}  # the task may need less: it computes in smaller batches
    write_json(path, {"measured": costs, **identity})
    return costs


@torch.inference_mode()
def _measure(backbone: Backbone, device: torch.device) -> dict[str, float]:
    """Costs of 16 images at once on an accelerator, else of one; latency is that of one."""
    batch = 16 if is_accelerator(device) else 1
    images = torch.zeros(batch, 3, *backbone.data.size, device=device)
    images = in_memory_format(images, backbone)

    def compute() -> None:
        backbone(images)
        synchronize(device)

    flops = count_flops(compute)
    reset_peak(device)
    seconds = _fastest(compute)
    memory = peak_mb(device)
    if batch > 1:
        images = images[:1]
    return {
        "parameters": float(sum(parameter.numel() for parameter in backbone.parameters())),
        "flops_per_image": flops / batch,
        "images_per_second": batch / seconds,
        "latency_ms": 1000 * (_fastest(compute) if batch > 1 else seconds),
        "memory_mb": memory,
    }


def _fastest(compute: Callable[[], None]) -> float:
    """Seconds of the fastest pass, because other processes may compute meanwhile."""
    seconds: list[float] = []
    while sum(seconds) < TIMED_SECONDS and len(seconds) < MAX_PASSES:
        started = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
