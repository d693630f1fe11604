"""DINOv3's linear probes for dense tasks: ADE20K and NYU Depth v2.

Source: Siméoni et al., "DINOv3", 2025, and ``dinov3/eval/{segmentation,depth}`` of
github.com/facebookresearch/dinov3: ``segmentation/config.py`` and
``configs/config-ade20k-linear-training.yaml``; ``depth/config.py``, ``depth/models``. They
were read, not copied, since their licence differs.

A linear head on the last layer, which has passed the backbone's own final norm, without the class
token. What the paper and its files leave open is the probe's own default.
"""

from __future__ import annotations

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

SEGMENTATION = Preset(
    "segmentation/linear",
    {
        "size": 512,
        "crop": (512, 512),
        "scale_range": (0.5, 2.0),
        "flip": 0.5,
        "photometric": False,
        "brightness": (1.0, 1.0),
        "max_iters": 40_000,
        "epochs": 0.0,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-3,
        "betas": (0.9, 0.999),
        "clip_norm": 35.0,
        "schedule": "cosine",
        "min_lr": 0.0,
        "warmup": 1_500 / 40_000,
        "layers": "last",
        "feature_stride": None,
        "dropout": 0.1,
        "slide": (512, 341),
        "flip_test": False,
        "fixed_crops": 0,
        "cache": "none",
        "lr_grid": (),
    },
    datasets=("ade20k",),
)

DEPTH = Preset(
    "depth/linear",
    {
        "size": 480,
        "crop": (416, 544),
        "scale_range": (1.0, 1.0),
        "flip": 0.5,
        "photometric": False,
        "brightness": (0.75, 1.25),
        "max_iters": 38_400,
        "epochs": 0.0,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "betas": (0.9, 0.99),
        "clip_norm": 35.0,
        "schedule": "onecycle",
        "warmup": 12_800 / 38_400,
        "layers": "last",
        "feature_stride": None,
        "dropout": 0.0,
        "bins": 256,
        "slide": (),
        "flip_test": True,
        "fixed_crops": 0,
        "cache": "none",
        "lr_grid": (),
    },
    datasets=("nyu-depth",),
    data={"split": "24k/654"},
)

register_protocol(
    Protocol(
        "dinov3",
        "DINOv3 (Siméoni et al. 2025), dinov3/eval/segmentation and dinov3/eval/depth of"
        " facebookresearch/dinov3",
        (SEGMENTATION, DEPTH),
        differs=(
            Difference(
                (),
                "its cosine starts at the first iteration, here at the end of the warm-up, and"
                " its beta 1 changes with the rate",
            ),
            Difference(
                (),
                "for depth, images are also rotated by up to 2.5°, and nothing is normalised "
                "before the convolution",
            ),
            Difference(
                (),
                "images are padded on all sides to full patches, here at the right and the bottom",
            ),
        ),
        commit="6876159",
    )
)
