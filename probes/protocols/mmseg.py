"""MMSegmentation's DeepLabv3 and PSPNet recipe, for VOC 2012 (40k iterations) and ADE20K (160k).

Source:
``models/{deeplabv3,pspnet}_r50-d8.py``, ``datasets/{ade20k,pascal_voc12}.py`` and
``schedules/schedule_{40,80,160}k.py`` under ``configs/_base_`` of
github.com/open-mmlab/mmsegmentation 1.x: SGD 0.01 with momentum 0.9, weight decay 5e-4, ``poly``
0.9 down to 1e-4, 16 images of 512 × 512, photometric distortion; the head on the last stage at
stride 8. It has ADE20K at 80k too (``--set max_iters=80000``). For other datasets: 40k.

The auxiliary head, which trains the backbone's third stage, is not used: the backbone is frozen.
"""

from __future__ import annotations

from typing import Any

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

SHARED: dict[str, Any] = {
    "size": 512,
    "crop": (512, 512),
    "scale_range": (0.5, 2.0),
    "flip": 0.5,
    "photometric": True,
    "brightness": (1.0, 1.0),
    "epochs": 0.0,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 5e-4,
    "clip_norm": 0.0,
    "schedule": "poly",
    "min_lr": 1e-4,
    "warmup": 0.0,
    "layers": "last",
    "feature_stride": 8,
    "channels": 512,
    "dropout": 0.1,
    "slide": (),
    "flip_test": False,
    "fixed_crops": 0,
    "cache": "none",
    "lr_grid": (),
}
LENGTHS = {("voc",): 40_000, ("ade20k",): 160_000, (): 40_000}

register_protocol(
    Protocol(
        "mmseg",
        "MMSegmentation 1.x, configs/_base_ of open-mmlab/mmsegmentation (deeplabv3_r50-d8,"
        " pspnet_r50-d8, schedules)",
        tuple(
            Preset(f"segmentation/{head}", {**SHARED, "max_iters": length}, datasets)
            for head in ("deeplabv3", "pspnet")
            for datasets, length in LENGTHS.items()
        ),
        differs=(
            Difference(
                (),
                "the backbone is trained too, its last stages dilated to stride 8, with an "
                "auxiliary head on the third",
            ),
        ),
    )
)
