"""DINO's label propagation by its script and by this suite."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from probes.matching.videos import resize_frame
from tests.protocols import propagation
from tests.protocols.dense import summary
from tests.protocols.nearest import importing, script_defaults
from tests.protocols.propagation import GRID, PATCH, PROBE, SIZES, Model

MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)
TOLERANCE = {"shares": 1e-6}


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with importing(checkout):
        import eval_video_segmentation as script  # type: ignore[import-not-found]
    options = script_defaults(checkout / "eval_video_segmentation.py")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(torch.Tensor, "cuda", lambda self, **_: self),
    ):
        return {PROBE: _source_fields(script, options, Path(folder))}


def _source_fields(script: Any, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    shapes, path = [], folder / "frame.png"
    for size in SIZES:
        Image.new("RGB", size).save(path)
        shapes.append(list(script.read_frame(str(path))[0].shape[1:]))
    black = script.read_frame(str(path))[0][:, 0, 0]
    propagation.picture().save(path)
    frame = script.read_frame(str(path), scale_size=[240])[0]
    frame = frame * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    names = ("n_last_frames", "size_mask_neighborhood", "topk")
    arguments = Namespace(**{name: options[name] for name in names})
    arguments.patch_size, arguments.output_dir = PATCH, str(folder)

    current, features, labels = propagation.features_and_labels()
    small = Namespace(**{**vars(arguments), "size_mask_neighborhood": 2})
    script.args = small
    with mock.patch.object(Model, "patch_embed", Namespace(patch_size=1)):
        shares = script.label_propagation(
            small,
            Model([current]),
            torch.zeros(3, *GRID),
            [each.flatten(1) for each in features],
            [each[None] for each in labels],
        )[0][0]

    script.args = arguments
    root = propagation.write(folder / "davis")
    frames = script.read_frame_list(str(root / "JPEGImages/480p/video"))
    first, stored = script.read_seg(
        str(root / "Annotations/480p/video/00000.png"), PATCH, scale_size=[240]
    )
    masks: list[np.ndarray] = []
    read_frame = script.read_frame
    with (
        mock.patch.object(script, "imwrite_indexed", lambda _, array, __: masks.append(array)),
        mock.patch.object(script, "read_frame", lambda path: read_frame(path, [240])),
    ):
        script.eval_video_tracking_davis(arguments, Model(), frames, "video", first, stored, None)
    return {
        "sizes": shapes,
        "frame": summary((255 * frame).round()),
        "normalised black": black,
        "shares": shares,
        "masks": propagation.masks_summary(masks),
        "object that fills the frame": int(
            script.norm_mask(propagation.FULL.clone()).max(0)[1][0, 0]
        ),
        "previous frames": options["n_last_frames"],
        "radius": options["size_mask_neighborhood"],
        "neighbours": options["topk"],
        "patches of 14": shapes[0],  # the size does not depend on the patch
    }


def suite() -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        fields = propagation.suite("dino", Path(folder), MEAN, STD)
    short = propagation.preset_settings("dino").size or 0
    odd = resize_frame(Image.new("RGB", SIZES[0]), short, "dino", 14)
    return {PROBE: {**fields, "patches of 14": list(odd.shape[1:])}}
