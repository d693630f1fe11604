"""Losses of decode heads: ``build_head`` makes a segmenter or a regressor of one by a mix-in, whose
``objective`` reads the raw outputs.

``F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), labels)`` and its gradient take most
of a linear probe's time: each of a dozen passes goes over logits many times as large as the cache.
Here a few images at a time are resized (by two products with small matrices: bilinear resizing is
linear and separable), scored and differentiated while they are in the cache; only the gradient at
the features' resolution remains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import isclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from torch import Tensor, nn

from cliptex_common.device import is_accelerator
from probes.dense.objectives import ClassObjective, TaskObjective

Losses = dict[str, Tensor]
LOSS_METHODS = ("loss", "predict", "loss_by_feat", "predict_by_feat")
CACHED_BYTES = 2**20  # of resized logits at once on a CPU; more where images are larger
GPU_BYTES = 2**28


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it is used where gradients are, too
def resizing(old: int, new: int, align_corners: bool, device: torch.device) -> Tensor:
    """(old, new) weights: a row of ``old`` values times them is that row resized as
    ``F.interpolate`` does it."""
    rows = torch.eye(old)[None]
    return F.interpolate(rows, new, mode="linear", align_corners=align_corners)[0].to(device)


class _ResizedCrossEntropy(torch.autograd.Function):
    """Sum of the loss over all scored pixels, and how many pixels are right."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        images, classes, *low = logits.shape
        high = labels.shape[1:]
        rows, columns = (
            resizing(old, new, align_corners, logits.device)
            for old, new in zip(low, high, strict=True)
        )
        bytes_at_once = GPU_BYTES if is_accelerator(logits.device) else CACHED_BYTES
        step = max(1, bytes_at_once // (4 * classes * high[0] * high[1]))
        total, right = logits.new_zeros(()), labels.new_zeros(())
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for start in range(0, images, step):
            part, target = logits[start : start + step], labels[start : start + step]
            scored = target != ignore_index
            target = torch.where(scored, target, 0)[:, None]
            large = rows.T @ (part @ columns)
            is_best = (large.gather(1, target) >= large.amax(dim=1, keepdim=True))[:, 0]
            right += (scored & is_best).sum()
            large = F.log_softmax(large, dim=1)
            total -= (large.gather(1, target)[:, 0] * scored).sum()
            large.exp_().scatter_add_(1, target, large.new_full((), -1.0).expand(target.shape))
            large *= scored[:, None]
            gradient[start : start + step] = (rows @ large) @ columns.T
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return slope * gradient, None, None, None


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, over_all: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy over the scored pixels of logits resized (bilinear) to the labels, as a
    scalar with a gradient; the number of pixels that are right; the number that are scored.

    The same as ``F.interpolate`` and ``F.cross_entropy`` up to float32's rounding.

    Args:
        logits: (N, classes, h, w) float32.
        labels: (N, H, W) int64, class indices or ``ignore_index``.
        over_all: the mean is over all pixels, those that are not scored as 0.
    """
    total, right = _ResizedCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    scored = (labels != ignore_index).sum()
    return total / (labels.numel() if over_all else scored.clamp(min=1)), right, scored


def in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute what follows a head in fp32, also where the head itself runs under autocast."""

    @functools.wraps(function)
    def exact(self: Any, raw: Tensor, samples: list[Any]) -> Any:
        with torch.autocast(raw.device.type, enabled=False):
            return function(self, raw.float(), samples)

    return exact


class Segmenter(BaseDecodeHead):
    """Mix-in before an mmseg decode head: the plain cross-entropy at the label's resolution, and
    the percentage of right pixels, by ``resized_cross_entropy``. Any other loss is mmseg's."""

    objective: ClassVar[TaskObjective] = ClassObjective()

    def __init__(self, loss_images: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_images = loss_images

    @in_fp32
    def loss_by_feat(self, logits: Tensor, samples: list[Any]) -> Losses:
        loss = self.loss_decode
        if self.sampler is not None or not _is_plain(loss):
            return super().loss_by_feat(logits, samples)
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        images = self.loss_images or len(labels)
        options = self.ignore_index, self.align_corners, not loss.avg_non_ignore
        groups = [
            torch.stack(resized_cross_entropy(part, target, *options))
            for part, target in zip(logits.split(images), labels.split(images), strict=True)
        ]
        means, right, scored = torch.stack(groups).T
        return {
            loss.loss_name: loss.loss_weight * means.mean(),
            "acc_seg": 100 * right.sum() / scored.sum().clamp(min=1),
        }

    @in_fp32
    def predict_by_feat(self, logits: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        return super().predict_by_feat(logits, metas)


def _is_plain(loss: Any) -> bool:
    """Whether a loss is the mean cross-entropy over the pixels, with or without those that are
    ignored."""
    return (
        type(loss) is CrossEntropyLoss
        and not loss.use_sigmoid
        and not loss.use_mask
        and loss.class_weight is None
        and loss.reduction == "mean"
    )


class Regressor(BaseDecodeHead):
    """Mix-in before an mmseg decode head: an objective in ``loss_decode`` replaces the loss over
    classes."""

    def __init__(
        self, loss_decode: dict[str, Any], loss_images: int | None = None, **kwargs: Any
    ) -> None:
        objective = MODELS.build(loss_decode)
        # mmseg warns about a single output channel without a threshold, which only binary
        # segmentation uses
        options = {"num_classes": objective.channels, "threshold": 0.0, **kwargs}
        super().__init__(loss_decode=loss_decode, **options)
        self.out_channels = objective.read(torch.zeros(1, objective.channels, 1, 1)).shape[1]
        self.loss_images = loss_images

    @property
    def objective(self) -> TaskObjective:
        return self.loss_decode

    def init_weights(self) -> None:
        """mmseg's initialisation, but for the bias of the last convolution."""
        super().init_weights()
        with torch.no_grad():
            self.conv_seg.bias.copy_(torch.tensor(self.loss_decode.first_raw))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Maps of the backbone → what the objective reads from the head's outputs, (N,
        out_channels, h, w)."""
        return self.loss_decode.read(super().forward(inputs))

    @in_fp32
    def loss_by_feat(self, raw: Tensor, samples: list[Any]) -> Losses:
        objective = self.loss_decode
        target = torch.stack([sample.get(f"gt_{objective.field}").data for sample in samples])
        raw = F.interpolate(
            raw, target.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        if not self.loss_images:
            loss = objective(raw, target)
        else:  # the images of a group as one tall image
            groups = [
                [part.transpose(0, 1).flatten(1, 2)[None] for part in each.split(self.loss_images)]
                for each in (raw, target)
            ]
            loss = torch.stack([objective(*pair) for pair in zip(*groups, strict=True)]).mean()
        objective.iterations += 1
        return {objective.loss_name: loss}


def has_own_loss(head: type[nn.Module]) -> bool:
    """Whether it is a head of mmseg that computes its losses or predictions in its own way."""
    return issubclass(head, BaseDecodeHead) and any(
        getattr(head, name) is not getattr(BaseDecodeHead, name) for name in LOSS_METHODS
    )


def build_head(config: Mapping[str, Any]) -> Any:
    """A decode head from a config as mmseg has them, with the loss of its ``loss_decode``: a
    regressor where that is an objective, otherwise a segmenter.

    Args:
        config: with ``type``, a name in mmseg's registry; ``loss_images`` is the setting.
    """
    options = dict(config)
    kind: Any = MODELS.get(options.pop("type"))
    if has_own_loss(kind):
        del options["loss_images"]
        return type(kind.__name__, (kind,), {"objective": ClassObjective()})(**options)
    losses = options["loss_decode"]
    loss = MODELS.get(losses["type"]) if isinstance(losses, Mapping) else None
    mix_in = Regressor if isclass(loss) and issubclass(loss, TaskObjective) else Segmenter
    return type(kind.__name__, (mix_in, kind), {})(**options)
