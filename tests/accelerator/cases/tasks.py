"""A small task for every probe that is registered, and for every preset of a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import probes.catalog  # noqa: F401  registers probes, datasets and protocols
from cliptex_common.settings import field_names, with_changes
from probes.base import Context, Probe
from probes.datasets.base import PreparedDataset
from probes.datasets.check import prepare
from probes.registry import DATASETS, PROBES, PROTOCOLS, Preset
from tests.probes import tiny_coco, tiny_dense, tiny_mmlab
from tests.probes.datasets import make
from tests.probes.matching.layouts import (
    make_davis,
    make_navi,
    make_poses,
    make_scannet,
    make_voc_objects,
)
from tests.probes.whole_images import DenseColours

# those that need no other task's head or training images
PROBE_NAMES = sorted(
    name
    for name, probe in PROBES.load_entry_points().items()
    if not getattr(probe, "head_of", "") and probe.kind != "unknown-images"
)
PRESETS: dict[str, Preset] = {
    f"{protocol.name}-{preset.probe}-{'-'.join(preset.datasets) or 'all'}": preset
    for protocol in PROTOCOLS.load_entry_points().values()
    for preset in protocol.presets
}


def _path(name: str) -> tuple[Any, ...]:
    """What a probe shares with those that run the same code but for the head."""
    probe = PROBES[name]
    return type(probe), probe.settings_type, getattr(probe, "module", "")


FIRST_OF_PATH = {_path(name): name for name in reversed(list(PROBES))}.values()


# values of settings that take long or large images; those that a probe does not use stay unused
SMALL: dict[str, Any] = {
    "batch_size": 4,
    "blocks": (1,),
    "average_pool": (False, True),
    "c": (0.01, 1.0),
    "channels": 8,
    "crop": (32, 32),
    "detections": 10,
    "dpt_widths": (8, 8, 8, 8),
    "epoch_length": 3,
    "epochs": 1,
    "fc_out_channels": 64,
    "head": {"type": "FCNHead", "channels": 8, "num_convs": 1},
    "held_out": 2,
    "holdout": 0.25,
    "iterations": 5,
    "l2": (0.1, 1.0),
    "learning_rates": (0.01, 0.1),
    "long_side": 96,
    "mask": "normals",
    "loss_images": 2,
    "max_iters": 3,
    "memory": 600,
    "neighbours": (1, 3),
    "out_channels": 32,
    "passes": 1,
    "proposals": 50,
    "rois_per_image": 32,
    "score_size": 48,
    "short_side": 64,
    "shots": 2,
    "sig_warmup": 1,
    "size": 64,
    "slide": (32, 24),
    "test_area": (2, 46, 2, 46),
    "train_area": (2, 46, 2, 46),
    "warmup": 0.0,
    "weight_decays": (0.0,),
}
REQUIRED = {"batch_size", "head", "max_iters", "size"}  # small even where the default is none


def small(probe: Probe, changes: Mapping[str, Any]) -> Any:
    """Settings of a probe with ``changes``, and with the small values of what they switch on."""
    settings = with_changes(probe.settings_type(), changes)
    values = {}
    for name in SMALL.keys() & field_names(probe.settings_type):
        value = getattr(settings, name)
        if isinstance(value, int | float) and isinstance(SMALL[name], tuple):
            values[name] = SMALL[name][-1]
        elif value or (name in REQUIRED and value in (None, {})):
            values[name] = SMALL[name]
    return with_changes(settings, values)


def write_data(probe: Probe, folder: Path) -> PreparedDataset:
    """A tiny copy of a dataset for a probe."""
    if probe.kind in tiny_dense.SPECS:
        return tiny_dense.make(folder, probe.kind)
    if probe.kind == "detection":
        return tiny_coco.prepared(tiny_coco.write(folder, train=6, val=3))
    name, write = WHOLE_IMAGES[probe.kind]
    write(folder)
    return prepare(DATASETS[name], folder, splits=dict.fromkeys(probe.splits), partial=True)


# of a kind of dataset: one that is read, and what writes a copy
WHOLE_IMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "multi-label": ("voc2007-labels", make.make_voc2007),
    "triplets": ("nights", make.make_nights),
    "classification": ("imagefolder", lambda folder: make.make_imagefolder(folder, 6, 2)),
    "image-text": ("flickr30k", make.make_flickr),
    "association": ("misc-winogavil", make.make_winogavil),
    "correspondence": ("spair", make.make_spair),
    "instance-retrieval": ("roxford5k", make.make_revisited),
    "video": ("davis", make_davis),
    "warped-images": ("images", lambda folder: make.make_imagefolder(folder, 0, 2)),
    "objects": ("voc-objects", make_voc_objects),
    "object-views": ("navi", make_navi),
    "scene-views": ("scannet", make_scannet),
    "view-pose": ("navi-multiview", make_poses),
}


class TextBackbone(DenseColours):
    """Reads colours and sees them; of two stages, for probes of whole images."""

    def __init__(self) -> None:
        super().__init__(cnn=True)


def make_task(
    probe: Probe, folder: Path, device: torch.device, data: PreparedDataset, settings: Any
) -> Context:
    """A task of a probe on ``device``, with a tiny backbone."""
    task = tiny_mmlab.context(folder, data, settings)
    is_tuned = getattr(settings, "is_tuned", False)
    if (probe.kind in WHOLE_IMAGES or probe.needs_dense_text) and not is_tuned:
        task = replace(task, backbone=TextBackbone(), backbone_config={"name": "colours"})
    return replace(task, device=device, backbone=task.backbone.to(device))
