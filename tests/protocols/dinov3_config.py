"""What the records of DINOv3's two linear probes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliptex_common.device import prefers_bf16
from tests.protocols.dense import (
    CHANNELS,
    IMAGES,
    STEPS,
    random,
)

MAPS = [random(IMAGES, CHANNELS, 6, 6, seed=20 + step) for step in range(STEPS)]
HEAD_PRECISION = "bfloat16" if prefers_bf16("cuda") else "float32"  # on a GPU


def loaded(checkout: Path, structure: type, name: str) -> Any:
    """A config of the source as its launchers read it."""
    from omegaconf import OmegaConf

    file = OmegaConf.load(checkout / "dinov3/eval" / name)
    file.datasets.root = ""  # a user gives it
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(structure), file))


def adamw(config: Any, parameters: Any) -> torch.optim.Optimizer:
    options = config.optimizer
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=betas, weight_decay=options.weight_decay
    )


def scheduler_by(schedulers: Any, config: Any, optimizer: Any, **changes: int) -> Any:
    """The schedule of a config, by the source's module of schedulers."""
    options = {**config.scheduler.constructor_kwargs, **changes}
    total = options.pop("total_iter", config.scheduler.total_iter)
    return schedulers.build_scheduler(
        config.scheduler.type, optimizer, config.optimizer.lr, total, options
    )


def source_settings(config: Any) -> dict[str, Any]:
    clip = float(config.optimizer.gradient_clip)
    return {
        "optimizer": "adamw",
        "rate": config.optimizer.lr,
        "beta 2": config.optimizer.beta2,
        "decay": config.optimizer.weight_decay,
        "clip": "never" if np.isinf(clip) else clip,
        "batch": config.bs * config.n_gpus,
        "iterations": config.scheduler.total_iter,
    }
