"""Heads of the dense probes: linear, DeepLabv3 and PSPNet, as segmenters and – through one mix-in – as regressors.

A regressor is one of the three architectures with its raw outputs read by an *objective* (``DepthObjective`` or
``NormalObjective``), which says what the raw values mean (``decode``) and how wrong they are (``forward``). Raw
outputs are resized to the label's resolution first and decoded there, as segmentation logits are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import probes.runner.bridge  # noqa: F401  first: it gives mmcv the operators that mmseg's import asks for

# isort: split
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads import ASPPHead, PSPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from torch import Tensor, nn

from probes.dense.resized_loss import resized_cross_entropy


class Segmentation:
    """Mix-in before an mmseg decode head: the plain cross-entropy at the label's resolution, and the share of right
    pixels, at an eighth of the cost; see ``probes.dense.resized_loss``. Any other loss is mmseg's own affair."""

    loss_decode: Any
    sampler: Any
    ignore_index: int
    align_corners: bool

    def loss_by_feat(self, logits: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        loss = self.loss_decode
        if self.sampler is not None or not _is_plain(loss):
            return super().loss_by_feat(logits, samples)  # type: ignore[misc]
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        mean, right, scored = resized_cross_entropy(logits.float(), labels, self.ignore_index, self.align_corners)
        return {loss.loss_name: loss.loss_weight * mean, "acc_seg": 100 * right / scored.clamp(min=1)}


def _is_plain(loss: Any) -> bool:
    """Whether a loss is the mean cross-entropy over the pixels that are not ignored."""
    return (
        type(loss) is CrossEntropyLoss
        and not loss.use_sigmoid
        and not loss.use_mask
        and loss.class_weight is None
        and loss.reduction == "mean"
        and loss.avg_non_ignore
    )


@MODELS.register_module()
class LinearHead(Segmentation, BaseDecodeHead):
    """The linear probe: batch normalisation, then one 1×1 convolution; no dropout unless asked for.

    Input (N, in_channels, H, W), output (N, out_channels, H, W).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dropout_ratio": 0.0, **kwargs, "channels": kwargs["in_channels"]})
        self.norm = nn.BatchNorm2d(self.in_channels)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))


@MODELS.register_module()
class ASPPSegmenter(Segmentation, ASPPHead):
    """DeepLabv3's head onto classes."""


@MODELS.register_module()
class PSPSegmenter(Segmentation, PSPHead):
    """PSPNet's head onto classes."""


def aspp_dilations(size: int, stride: int) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map only sees padding,
    so the rates keep their share of the map's side at other sizes: 12/64, 24/64 and 36/64.
    """
    side = size / stride
    first = max(2, round(side * 12 / 64))
    second = max(first + 1, round(side * 24 / 64))
    return 1, first, second, max(second + 1, round(side * 36 / 64))


@MODELS.register_module()
class DepthObjective(nn.Module):
    """Depth in metres through a bounded output, trained with the scale-invariant logarithmic loss.

    ``depth = min_depth + (max_depth - min_depth) · sigmoid(raw)``: near zero this is exponential, so that the loss in
    log depth has a gradient of about one, and the range is kept by construction.

    The loss of an image is ``sqrt(mean(d²) - balance · mean(d)²)`` with ``d = log(prediction) - log(truth)`` over its
    valid pixels (Eigen, Puhrsch, Fergus 2014, eq. 4, under a root as in BTS and AdaBins); ``balance`` 0 is the plain
    log RMSE, 1 ignores the scale of the image, and the paper's 0.5 is in between. A pixel is valid when its truth is
    within [min_depth, max_depth] and above 0; images without valid pixels do not count.

    Args:
        min_depth, max_depth: range of the output, metres, 0 < min_depth < max_depth.
        balance: λ of the paper, in [0, 1].
    """

    field = "depth_map"
    channels = 1
    loss_name = "loss_silog"
    # Where training begins: raw 0 is the middle of the range, but rooms and streets have most of their depth near a
    # quarter of it, and a bias is slow to learn when batch normalisation leaves the other inputs without a mean.
    first_raw = -math.log(3)  # sigmoid = 1/4

    def __init__(self, min_depth: float, max_depth: float, balance: float = 0.5) -> None:
        super().__init__()
        if not 0 < min_depth < max_depth:
            raise ValueError(f"a depth range needs 0 < min < max, not {min_depth}, {max_depth}")
        self.min_depth, self.max_depth, self.balance = min_depth, max_depth, balance

    def decode(self, raw: Tensor) -> Tensor:
        """(N, 1, H, W) raw outputs → (N, 1, H, W) metres in [min_depth, max_depth]."""
        return self.min_depth + (self.max_depth - self.min_depth) * raw.float().sigmoid()

    def forward(self, raw: Tensor, truth: Tensor) -> Tensor:
        """Mean loss over images of ``raw`` against ``truth`` (both (N, 1, H, W); truth in metres, 0 = unknown); a
        scalar."""
        valid = (truth > 0) & (truth >= self.min_depth) & (truth <= self.max_depth)
        difference = torch.where(valid, self.decode(raw).log() - torch.where(valid, truth, 1.0).log(), 0.0)
        count = valid.sum(dim=(1, 2, 3))
        mean = difference.sum(dim=(1, 2, 3)) / count.clamp(min=1)
        mean_square = difference.square().sum(dim=(1, 2, 3)) / count.clamp(min=1)
        # the root's slope is infinite at zero: a perfect image must not give NaN gradients
        losses = (mean_square - self.balance * mean.square()).clamp(min=1e-8).sqrt()
        return (losses * (count > 0)).sum() / (count > 0).sum().clamp(min=1)


@MODELS.register_module()
class NormalObjective(nn.Module):
    """Unit surface normals, trained with the mean angle to the truth in radians.

    The angle itself, not ``1 - cos``: it is what is scored, and its gradient does not fade as the angle gets small.
    ``arccos`` has an infinite slope at ±1, so the cosine is clamped to ±(1 - 1e-6); within 0.08° of the truth (or of
    its opposite) the gradient is zero. A pixel is valid when its truth is not (0, 0, 0).
    """

    field = "normal_map"
    channels = 3
    loss_name = "loss_angle"
    first_raw = 0.0

    def decode(self, raw: Tensor) -> Tensor:
        """(N, 3, H, W) raw outputs → (N, 3, H, W) unit vectors (x right, y up, z towards the camera for our
        datasets)."""
        return F.normalize(raw.float(), dim=1, eps=1e-6)

    def forward(self, raw: Tensor, truth: Tensor) -> Tensor:
        """Mean angle (radians) over the valid pixels of ``raw`` against unit ``truth`` (both (N, 3, H, W)); a
        scalar."""
        valid = truth.square().sum(dim=1) > 0.25
        # eps bounds the gradient of a raw output that happens to be (0, 0, 0)
        cosine = (F.normalize(raw.float(), dim=1, eps=1e-4) * truth).sum(dim=1)
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        return torch.where(valid, angle, 0.0).sum() / valid.sum().clamp(min=1)


class Regression:
    """Mix-in before an mmseg decode head: an objective in ``loss_decode`` in place of a loss over classes."""

    loss_decode: Any
    align_corners: bool

    def __init__(self, loss_decode: dict[str, Any], **kwargs: Any) -> None:
        objective = MODELS.get(loss_decode["type"])
        # mmseg's initialisation of the last convolution, but for the bias
        begin = {"type": "Normal", "std": 0.01, "bias": objective.first_raw, "override": {"name": "conv_seg"}}
        # the threshold belongs to binary segmentation; naming it silences a warning about one output channel
        rest = {"num_classes": objective.channels, "threshold": 0.0, "init_cfg": begin, **kwargs}
        super().__init__(loss_decode=loss_decode, **rest)  # type: ignore[call-arg]

    def loss_by_feat(self, raw: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        objective = self.loss_decode
        truth = torch.stack([sample.get(f"gt_{objective.field}").data for sample in samples])
        raw = F.interpolate(raw, truth.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return {objective.loss_name: objective(raw, truth)}


@MODELS.register_module()
class LinearRegressor(Regression, LinearHead):
    """BN and a 1×1 convolution onto an objective."""


@MODELS.register_module()
class ASPPRegressor(Regression, ASPPHead):
    """DeepLabv3's head onto an objective."""


@MODELS.register_module()
class PSPRegressor(Regression, PSPHead):
    """PSPNet's head onto an objective."""


@MODELS.register_module()
class DenseSegmenter(EncoderDecoder):
    """mmseg's encoder-decoder: predictions are ``pred_sem_seg`` (1, H, W; int64 class indices) at the resolution of the
    image file. Images of one shape are decoded together; logits are not kept."""

    def postprocess_result(self, logits: Tensor, samples: list[Any] | None = None) -> Any:
        if samples is None:
            return super().postprocess_result(logits)
        for places, part in at_own_size(logits, samples, self.align_corners):
            for place, labels in zip(places, part.argmax(dim=1, keepdim=True), strict=True):
                samples[place].set_data({"pred_sem_seg": PixelData(data=labels)})
        return samples


def at_own_size(raw: Tensor, samples: list[Any], align_corners: bool) -> Iterator[tuple[list[int], Tensor]]:
    """(N, C, H, W) outputs at the resolution of the image files, without padding: those of one shape together, as
    (their places in the batch, (n, C, height, width))."""
    shapes: dict[tuple[Any, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        shape = tuple(sample.ori_shape[:2]), tuple(sample.metainfo.get("img_padding_size", (0, 0, 0, 0)))
        shapes.setdefault(shape, []).append(place)
    for (size, (left, right, top, bottom)), places in shapes.items():
        part = raw if len(places) == len(raw) else raw[places]
        part = part[:, :, top : part.shape[2] - bottom, left : part.shape[3] - right]
        if tuple(part.shape[2:]) != size:  # resizing to the same size would copy it
            part = F.interpolate(part.float(), size, mode="bilinear", align_corners=align_corners)
        yield places, part


@MODELS.register_module()
class DenseRegressor(EncoderDecoder):
    """mmseg's encoder-decoder with a regressing head: predictions are ``pred_depth_map`` (1, H, W; metres) or
    ``pred_normal_map`` (3, H, W; unit length), at the resolution of the image file."""

    def postprocess_result(self, raw: Tensor, samples: list[Any] | None = None) -> Any:
        objective = self.decode_head.loss_decode
        if samples is None:
            return objective.decode(raw)
        for places, part in at_own_size(raw, samples, self.align_corners):
            for place, decoded in zip(places, objective.decode(part), strict=True):
                samples[place].set_data({f"pred_{objective.field}": PixelData(data=decoded)})
        return samples


HEADS = {
    "linear": ("LinearHead", "LinearRegressor"),
    "deeplabv3": ("ASPPSegmenter", "ASPPRegressor"),
    "pspnet": ("PSPSegmenter", "PSPRegressor"),
}


def head_config(
    probe: str, in_channels: int, channels: int, dropout: float, size: int, stride: int, **extra: Any
) -> dict[str, Any]:
    """Config of a decode head.

    Args:
        probe: ``linear``, ``deeplabv3`` or ``pspnet``.
        in_channels: channels of the concatenated feature maps.
        channels: width of the DeepLabv3 or PSPNet head (the linear probe has none).
        dropout: ratio before the last convolution of those two.
        size, stride: input side in pixels and stride of the feature maps: they set DeepLabv3's dilations.
        extra: ``num_classes`` and the loss of a segmenter, or ``loss_decode`` with an objective's config.
    """
    regresses = str(extra["loss_decode"]["type"]).endswith("Objective")
    config: dict[str, Any] = {"type": HEADS[probe][regresses], "in_channels": in_channels, "in_index": 0, **extra}
    if probe != "linear":
        # plain BN, not SyncBN: one process
        config |= {"channels": channels, "dropout_ratio": dropout, "norm_cfg": {"type": "BN", "requires_grad": True}}
    if probe == "deeplabv3":
        config["dilations"] = aspp_dilations(size, stride)
    return config
