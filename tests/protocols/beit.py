"""BEiT's fine-tuning with UPerNet: rates and decay by blocks, augmentation, head, settings.

The source is a checkout of onedl-mmsegmentation, or the folder of its installed package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.protocols import dense, tuned
from tests.protocols.mmseg import FLOAT, padding, settings_of, test_sizes

PROBE = "segmentation/upernet"
FILE = "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py"
NAMES = {
    "token": "cls_token",
    "patches": "patch_embed.projection.weight",
    "norm": "layers.0.ln1.weight",
    "bias": "layers.0.ffn.layers.0.0.bias",
    **{f"block {number}": f"layers.{number}.ffn.layers.0.0.weight" for number in (0, 5, 11)},
}
WIDTH = {"channels": 16, "num_classes": dense.CLASSES, "norm_cfg": {"type": "BN"}}
MAPS = [dense.random(2, 16, 4, 4, seed=seed) for seed in range(4)]


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    folder = checkout / "configs"
    folder = folder if folder.is_dir() else checkout / "mmseg/.mim/configs"
    config = Config.fromfile(folder / FILE)
    small = {"embed_dims": 24, "num_heads": 2, "img_size": (32, 32)}
    with DefaultScope.overwrite_default_scope("mmseg"):
        backbone = MODELS.build({**config.model.backbone, **small})
        neck = MODELS.build({**config.model.neck, "embed_dim": 16, "norm_cfg": {"type": "BN"}})
        head = MODELS.build({**config.model.decode_head, **WIDTH, "in_channels": [16] * 4})
    schedule = config.param_scheduler
    return {
        PROBE: {
            **tuned.of_config(tuned.Trained(backbone), config.optim_wrapper, schedule, NAMES),
            **shared(config, config.train_pipeline, config.test_pipeline),
            "padding": padding(config),
            "drop path": config.model.backbone.drop_path_rate,
            "blocks": [index + 1 for index in config.model.backbone.out_indices],
            "auxiliary head": config.model.auxiliary_head.in_index,
            "head precision": "float32" if config.optim_wrapper.type == "OptimWrapper" else "amp",
            "output": output(neck, head),
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    config = dense.preset_config("beit", "ade20k/upernet")
    model = config.model
    own = {**WIDTH, "in_channels": [16] * 4, "feature_strides": [16] * 4}
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build({**model.decode_head.to_dict(), **own})
    pyramid, head.pyramid = head.pyramid, nn.Identity()
    pipelines = (config[f"{split}_dataloader"].dataset.pipeline for split in ("train", "val"))
    return {
        PROBE: {
            **tuned.of_suite(config, model.backbone),
            **shared(config, *pipelines),
            "padding": dense.padding(config),
            "drop path": model.backbone.drop_path,
            "blocks": [index + 1 for index in dense.read_layers(config)["blocks"]],
            "auxiliary head": model.get("auxiliary_head"),
            "head precision": FLOAT,
            "output": output(pyramid, head),
        }
    }


def shared(config: Config, train: Any, test: Any) -> dict[str, Any]:
    return {
        "settings": {**settings_of(config), "length": config.train_cfg.max_iters},
        "augmentation": dense.augmented(dense.small(train)),
        "test": [
            *test_sizes(test),
            *map(config.model.test_cfg.get, ("mode", "crop_size", "stride")),
        ],
        "normalised black": dense.black(config),
    }


def output(pyramid: nn.Module, head: nn.Module) -> list[float]:
    """Of four maps of a ViT."""
    for part in (pyramid, head):
        dense.fill(dense.by_name(part))
    with torch.no_grad():
        return dense.summary(head.eval()(pyramid.eval()(MAPS)))
