"""Floating-point operations of probes that stand on embeddings; what is counted: see ``backbones.cliptex.cost``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backbones.cliptex.cost import count_flops
from probes.base import Context
from probes.image_level.encode import autocast
from probes.image_level.settings import EncodeSettings


@torch.inference_mode()
def text_flops(context: Context, settings: EncodeSettings, texts: Sequence[str]) -> float:
    """Of so many texts: one is counted."""
    with autocast(context.device, settings.precision):
        return float(len(texts) * count_flops(lambda: context.backbone.encode_text(texts[:1])))


def linear_flops(features: int, classes: int, trained: int, scored: int = 0) -> float:
    """Of linear classifiers, from the number of samples that they were trained on and only scored on, repetitions counted:
    a product for the scores and, in training, one for the gradient of the weights."""
    return 2.0 * features * classes * (2 * trained + scored)
