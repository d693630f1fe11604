"""A head is built, and run on maps without data, before anything is trained."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

import probes.dense.heads  # noqa: F401  registers what the config names
from common.errors import UserError
from common.live_bytes import counting, real_tensors
from probes.dense.data import dense_sample
from probes.dense.decode_heads.module import has_own_loss, summary
from probes.runner.bridge import isolated_rng

Sizes = Sequence[tuple[int, int]]


def try_head(config: Mapping[str, Any], batch: int, sizes: Sizes) -> None:
    """Build a head, and run it on a training batch and on a test image.

    Args:
        config: of a ``ModuleHead``.
        batch: images of a training batch.
        sizes: (height, width) of training crops, then of a test image, as the backbone gets them.

    Raises:
        UserError: the head cannot be built, fails, or returns other shapes.
    """
    _try_head(json.dumps(config), batch, tuple(sizes))


@functools.lru_cache(maxsize=64)  # a task is checked several times
def _try_head(text: str, batch: int, sizes: Sizes) -> None:
    config = json.loads(text)
    channels, options = config["in_channels"], dict(config["module"])
    about = (
        f"head {options.pop('type')} with {options or 'its defaults'} on maps of"
        f" {', '.join(map(str, channels))} channels"
    )
    with real_tensors():
        with suppress(Exception), counting(torch.device("cpu")):
            return _run(config, batch, sizes)
        try:  # fake tensors have no values, which some heads read
            _run(config, batch, sizes)
        except Exception as error:
            raise UserError(f"{about}: {summary(error)}") from error


@torch.no_grad()
def _run(config: Mapping[str, Any], batch: int, sizes: Sizes) -> None:
    with (
        isolated_rng(),
        warnings.catch_warnings(action="ignore"),
        DefaultScope.overwrite_default_scope("mmseg"),
    ):
        head = MODELS.build(config)
        for images, size in zip((batch, 1), sizes, strict=True):
            maps = [
                torch.zeros(images, channels, *(max(1, round(side / stride)) for side in size))
                for channels, stride in zip(config["in_channels"], config["strides"], strict=True)
            ]
            is_training = size is sizes[0]
            head.train(is_training)
            meta = {"img_shape": size, "pad_shape": size}
            if not has_own_loss(type(head.module)):
                outputs = head.module(maps)
            elif is_training:
                labels = torch.zeros(1, *size, dtype=torch.long)
                head.loss(maps, [dense_sample(meta, "gt_sem_seg", labels)] * images, {})
                continue
            else:
                outputs = head.predict(maps, [meta], {})
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            if len(shape) != 4 or shape[:2] != (images, head.num_classes):
                raise UserError(
                    f"it must return ({images}, {head.num_classes}, height, width), and returns"
                    f" {shape}"
                )
