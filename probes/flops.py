"""Floating-point operations of probes that stand on embeddings; what is counted: see ``backbones.cliptex.cost``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backbones.cliptex.cost import count_flops
from probes.base import Context
from probes.encode import EncodeSettings, autocast, square


@torch.inference_mode()
def embedding_flops(
    context: Context, settings: EncodeSettings, images: int, texts: Sequence[str] = ()
) -> dict[str, float]:
    """``encode_flops`` of so many images and, where there are texts, ``text_flops``: one of each is counted."""
    backbone, device = context.backbone, context.device
    height, width = square(settings.size) or backbone.data.size
    image = torch.zeros(1, 3, height, width, device=device)
    with autocast(device, settings.precision):
        flops = {"encode_flops": float(images * count_flops(lambda: backbone.encode_image(image)))}
        if texts:
            flops["text_flops"] = float(len(texts) * count_flops(lambda: backbone.encode_text(texts[:1])))
    return flops


def linear_flops(features: int, classes: int, trained: int, scored: int = 0) -> float:
    """Of linear classifiers, from the number of samples that they were trained on and only scored on, repetitions counted:
    a product for the scores and, in training, one for the gradient of the weights."""
    return 2.0 * features * classes * (2 * trained + scored)


def with_sum(flops: dict[str, float]) -> dict[str, float]:
    """The parts of a cost, and ``flops``, their sum."""
    return {**flops, "flops": sum(flops.values())}
