"""probe3d's depth and surface normals on NYU Depth v2, by a DPT-style head on four blocks.

Source: El Banani et al., "Probing the 3D Awareness of Visual Foundation Models", CVPR 2024, and
github.com/mbanani/probe3d: ``configs/{depth,snorm}_training.yaml``,
``configs/optimizer/ten_epoch.yaml``, ``configs/probe``, ``evals/models/probes.py``,
``evals/utils/{optim,losses,metrics}.py``, ``evals/datasets/{nyu,utils}.py``.

AdamW with torch's defaults; warm-up over 1.5 of 10 epochs, then a quarter of a cosine. Its seed is
8 (``--seed 8``). Its normals are scored by the mean over images (``normal_image_mean`` beside the
mean over pixels).
"""

from __future__ import annotations

from typing import Any

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

SHARED: dict[str, Any] = {
    "size": 480,
    "crop": (480, 480),
    "scale_range": (1.0, 1.0),
    "flip": 0.0,
    "colours": "none",
    "epochs": 10.0,
    "batch_size": 8,
    "optimizer": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.01,
    "betas": (0.9, 0.999),
    "clip_norm": 0.0,
    "schedule": "quarter-cosine",
    "warmup": 0.15,
    "layers": "all",
    "channels": 512,
    "dropout": 0.0,
    "slide": (),
    "flip_test": False,
    "fixed_crops": 0,
    "cache": "none",
    "lr_grid": (),
}

register_protocol(
    Protocol(
        "probe3d",
        "Probing the 3D Awareness of Visual Foundation Models (El Banani et al., CVPR 2024),"
        " mbanani/probe3d",
        (
            Preset("depth/dpt-probe3d", {**SHARED, "bins": 256}, datasets=("nyu-depth",)),
            Preset(
                "normals/dpt-probe3d", {**SHARED, "uncertainty": True}, datasets=("nyu-normal",)
            ),
        ),
        differs=(
            Difference(
                (), "it trains on 30,814 images of GeoNet and tests on the central 480 × 480 pixels"
            ),
            Difference(
                (),
                "half of its crops are enlarged by up to 1.4, and colours are jittered, after "
                "the centre crop",
            ),
            Difference(
                (),
                "its blocks are taken before the backbone's final norm, and maps of several "
                "strides are brought to 16",
            ),
            Difference(
                (),
                "its depth loss is 10 × SigLoss and half of a gradient loss; its normals are "
                "enlarged by bicubic interpolation",
            ),
            Difference((), "its seed is 8 (--seed 8)"),
        ),
        commit="1fff822",
    )
)
