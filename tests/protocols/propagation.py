"""Videos and features that the sources of label propagation and this suite get alike."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import probes.catalog  # noqa: F401
from cliptex_common.settings import with_changes
from probes.datasets.check import prepare
from probes.matching.probe import LabelPropagationSettings
from probes.matching.videos import (
    best_labels,
    frame_maps,
    propagate,
    propagate_masks,
    read_masks,
    resize_frame,
)
from probes.registry import DATASETS, find_preset, find_task
from tests.probes import tiny_mmlab
from tests.probes.matching.layouts import make_davis, noisy_scene
from tests.protocols.dense import photograph, random, summary
from tests.protocols.segmented import PATCH, Projection

PROBE = "video/label-propagation"
SIZES = [(854, 480), (480, 854), (910, 480), (1920, 1080), (480, 480)]  # width, height
FRAMES, OBJECTS, GRID = 10, 3, (7, 9)
FULL = torch.stack([torch.zeros(GRID), torch.ones(GRID)])  # one object in the whole frame
WITHIN = slice(None, None, 5)


def write(folder: Path) -> Path:
    """DAVIS of one video, which does not move by whole patches."""
    scenes = {"video": noisy_scene(0, (100, 300))}
    return make_davis(folder, scenes, FRAMES, step=6, size=(96, 172))


def features_and_labels() -> tuple[Tensor, Tensor, Tensor]:
    """(5, h, w) of a frame, (3, 5, h, w) of others, and their shares of objects (3, 3, h, w)."""
    labels = random(3, OBJECTS, *GRID, seed=2).softmax(dim=1)
    return random(5, *GRID), random(3, 5, *GRID, seed=1), labels


def picture() -> Image.Image:
    return Image.fromarray(photograph(120, 214))


def masks_summary(masks: Sequence[np.ndarray]) -> list[Any]:
    """The size of each object in each frame after the first, and every fifth pixel of the last."""
    sizes = [np.bincount(each.ravel(), minlength=OBJECTS).tolist() for each in masks[1:]]
    return [sizes, masks[-1][WITHIN, WITHIN].tolist()]


def preset_settings(protocol: str, **changes: Any) -> LabelPropagationSettings:
    preset = find_preset(protocol, *find_task("davis/label-propagation")).settings
    return with_changes(LabelPropagationSettings(), {**preset, **changes})


def suite(protocol: str, folder: Path, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The fields of a protocol, on a video whose short side becomes 240 pixels.

    Args:
        mean, std: of frames, as the source normalises them.
    """
    settings = preset_settings(protocol)
    short = settings.size or 0
    current, features, labels = features_and_labels()
    units = normalize(current, dim=0), normalize(features, dim=1)
    backbone = Projection("golden-projection")
    backbone.data = replace(backbone.data, mean=tuple(mean), std=tuple(std))
    data = prepare(DATASETS["davis"], write(folder), splits={"val": None}, partial=True)
    small = preset_settings(protocol, size=240)
    task = replace(tiny_mmlab.context(folder / "work", data, small), backbone=backbone)
    samples = data.samples["val"]
    first = read_masks(data.root / samples[0].target.path)
    masks = list(propagate_masks(frame_maps(task, [samples]), first, small, PATCH))
    own = tiny_mmlab.context(folder / "own").backbone.data
    return {
        "sizes": [
            list(resize_frame(Image.new("RGB", size), short, settings.resize, PATCH).shape[1:])
            for size in SIZES
        ],
        "frame": summary(resize_frame(picture(), 240, settings.resize, PATCH)),
        "normalised black": [-m / s for m, s in zip(own.mean, own.std, strict=True)],
        "shares": propagate(*units, labels, replace(settings, radius=2)),
        "masks": masks_summary(masks),
        "object that fills the frame": int(
            best_labels(FULL, (20, 30), PATCH, settings.upsampling).max()
        ),
        "previous frames": settings.previous_frames,
        "radius": settings.radius,
        "neighbours": settings.neighbours,
    }


class Model:
    """``features`` as the last layer of the sources' ViT, whatever it is asked for."""

    patch_size, embed_dim = PATCH, 6
    patch_embed = Namespace(patch_size=PATCH)

    def __init__(self, feature_maps: Sequence[Tensor] | None = None) -> None:
        self.maps, self.calls = feature_maps, count()

    def get_intermediate_layers(
        self, images: Tensor, n: int, reshape: bool = False
    ) -> list[Tensor]:
        if self.maps is None:
            maps = Projection("golden-projection")(images)[0]
        else:
            maps = self.maps[next(self.calls)][None]
        if reshape:
            return [maps]
        tokens = maps.flatten(2).transpose(1, 2)
        return [torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)]

    def to(self, device: str) -> Model:
        return self

    def eval(self) -> Model:
        return self
