"""A head is built, and run on maps without data, before anything is trained."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from torch import Tensor

import probes.dense.heads  # noqa: F401  registers what the config names
from common.errors import UserError
from common.live_bytes import counting, real_tensors
from probes.dense.data import DenseSample
from probes.dense.decode_heads.module import ModuleHead, has_own_loss, summary
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
    try:
        try:
            with real_tensors(), counting(torch.device("cpu")):
                _run(config, batch, sizes)
        except UserError:
            raise
        except Exception:  # perhaps only because fake tensors have no values
            with real_tensors():
                _run(config, batch, sizes)
    except UserError as error:
        raise UserError(f"{about}: {error}") from error
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
            if not has_own_loss(type(head.module)):
                _check_outputs(head, head.module(maps), images)
            elif is_training:
                head.loss(maps, [_unlabelled(size) for _ in range(images)], {})
            else:
                meta = {"img_shape": size, "pad_shape": size}
                _check_outputs(head, head.predict(maps, [meta], {}), images)


def _check_outputs(head: ModuleHead, outputs: Any, images: int) -> None:
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    expected = (images, head.num_classes)
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or outputs.shape[:2] != expected:
        raise UserError(
            f"it must return ({expected[0]}, {expected[1]}, height, width), and returns {shape}"
        )


def _unlabelled(size: tuple[int, int]) -> DenseSample:
    sample = DenseSample(metainfo={"img_shape": size, "pad_shape": size})
    sample.set_data({"gt_sem_seg": PixelData(data=torch.zeros(1, *size, dtype=torch.long))})
    return sample
