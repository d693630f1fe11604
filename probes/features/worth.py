"""Whether keeping feature maps pays (``cache=auto``): from what encoding takes and what the disk
does here, measured."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope

from probes.base import Context
from probes.features.budget import gigabytes
from probes.features.cost import EncodeRun
from probes.features.kept import part_of
from probes.features.store import read_manifest, room, root
from probes.runner import bridge

MEMORY = 4e9  # bytes a second of files that stay in memory
TRIED = 64 * 2**20  # bytes that are written and read to know the disk


def keeping_pays(config: Any, context: Context, drawn: int) -> tuple[bool, str]:
    """Whether training gets quicker by keeping features, and why; other probes, seeds and runs that
    would find them count for nothing.

    Args:
        config: of the probe on kept features, with fixed crops.
        drawn: samples of the whole training.
    """
    bridge.share(context.backbone_config, context.backbone)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        train, val = (
            DATASETS.build(loader.dataset)
            for loader in (config.train_dataloader, config.val_dataloader)
        )
        frozen = MODELS.build(config.train_dataloader.dataset.encoder.backbone).to(context.device)
    keys = [key for each in (train, val) for key, _ in each.keys(EncodeRun(context.device))]
    missing = [key for key in keys if read_manifest(key.folder) is None]
    if not missing:
        return True, "they are there"
    size, most = sum(sum(key.item_bytes) for key in missing), room()
    if size > most:
        return False, f"they would take {gigabytes(size)}, and there is room for {gigabytes(most)}"
    encode = seconds_to_encode(frozen, part_of(train.pipeline, "FixedCrop")["crop"], context.device)
    write, read = disk_speed(root())
    if size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        read = max(read, MEMORY)  # they stay in memory
    each = sum(keys[0].item_bytes) / len(keys[0].item_bytes)
    items = sum(len(key.item_bytes) for key in missing if key.kind == "dense maps")
    kept = items * encode + size / write + drawn * each / read
    anew = (drawn + len(val)) * encode
    return (
        kept < anew,
        (
            f"an image takes {1000 * encode:.1f} ms to encode, and the disk writes"
            f" {write / 1e6:.0f} MB/s: about {kept:.0f} s with kept features ({gigabytes(size)}),"
            f" {anew:.0f} s without"
        ),
    )


@torch.inference_mode()
def seconds_to_encode(frozen: torch.nn.Module, side: int, device: torch.device) -> float:
    """Seconds that a square image takes, in a batch: the second of two."""
    batch = torch.zeros(2 if device.type == "cpu" else 32, 3, side, side, device=device)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        float(frozen(batch)[-1].sum())  # waits for the device
        seconds = time.perf_counter() - started
    return seconds / len(batch)


def disk_speed(folder: Path) -> tuple[float, float]:
    """Bytes a second that are written to, and read from, the disk of ``folder`` (what the system
    remembers is dropped)."""
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / f".speed-{os.getpid()}.tmp", os.urandom(TRIED)
    try:
        started = time.perf_counter()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened = time.perf_counter()
        path.read_bytes()
        return TRIED / (written - started), TRIED / (time.perf_counter() - opened)
    finally:
        path.unlink(missing_ok=True)
