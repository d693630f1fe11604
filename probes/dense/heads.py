"""Heads of the dense probes: linear, DeepLabv3, PSPNet, DPT and probe3d's, each as a segmenter and
as a regressor, whose raw outputs are read by an *objective* (``probes.dense.objectives``)."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import probes.runner.bridge

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

import probes.dense.objectives  # noqa: F401  registers what a regressor's config names
from common.device import is_accelerator
from common.live_bytes import device_of
from probes.dense.dpt import DPTHead, Probe3dHead
from probes.dense.resized_loss import resized_cross_entropy

Losses = dict[str, Tensor]


def in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute what follows a head in fp32, also where the head itself runs under autocast."""

    @functools.wraps(function)
    def exact(self: Any, raw: Tensor, samples: list[Any]) -> Any:
        with torch.autocast(raw.device.type, enabled=False):
            return function(self, raw.float(), samples)

    return exact


class Segmentation:
    """Mix-in before an mmseg decode head: the plain cross-entropy at the label's resolution, and
    the percentage of right pixels, by ``probes.dense.resized_loss``. Any other loss is computed by
    mmseg."""

    loss_decode: Any
    sampler: Any
    ignore_index: int
    align_corners: bool

    def __init__(self, loss_images: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_images = loss_images

    @in_fp32
    def loss_by_feat(self, logits: Tensor, samples: list[Any]) -> Losses:
        loss = self.loss_decode
        if self.sampler is not None or not _is_plain(loss):
            return super().loss_by_feat(logits, samples)  # type: ignore[misc]
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
        return super().predict_by_feat(logits, metas)  # type: ignore[misc]


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


class Regression:
    """Mix-in before an mmseg decode head: an objective in ``loss_decode`` replaces the loss over
    classes."""

    loss_decode: Any
    align_corners: bool
    conv_seg: nn.Conv2d

    def __init__(
        self, loss_decode: dict[str, Any], loss_images: int | None = None, **kwargs: Any
    ) -> None:
        objective = MODELS.build(loss_decode)
        # mmseg warns about a single output channel without a threshold, which only binary
        # segmentation uses
        options = {"num_classes": objective.channels, "threshold": 0.0, **kwargs}
        super().__init__(loss_decode=loss_decode, **options)  # type: ignore[call-arg]
        self.out_channels = objective.read(torch.zeros(1, objective.channels, 1, 1)).shape[1]
        self.loss_images = loss_images

    def init_weights(self) -> None:
        """mmseg's initialisation, but for the bias of the last convolution."""
        super().init_weights()  # type: ignore[misc]
        with torch.no_grad():
            self.conv_seg.bias.copy_(torch.tensor(self.loss_decode.first_raw))  # type: ignore[union-attr]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Maps of the backbone → what the objective reads from the head's outputs, (N,
        out_channels, h, w)."""
        return self.loss_decode.read(super().forward(inputs))  # type: ignore[misc]

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


class LinearHead(BaseDecodeHead):
    """The linear probe: batch normalisation, then one 1×1 convolution.

    Input (N, in_channels, H, W), output (N, out_channels, H, W).

    Args:
        dropout_first: dropout before the normalisation, not after it.
    """

    def __init__(self, dropout_first: bool = False, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "channels": kwargs["in_channels"]})
        self.norm, self.dropout_first = nn.BatchNorm2d(self.in_channels), dropout_first

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        maps = self._transform_inputs(inputs)
        if self.dropout is not None and not self.dropout_first:
            return self.cls_seg(self.norm(maps))
        if self.dropout is not None:
            maps = self.dropout(maps)
        on_cpu = not is_accelerator(device_of(maps))  # a GPU's time is not in this head
        if on_cpu and self.training and not maps.requires_grad:
            return self._normalise_and_project(maps)
        return self.conv_seg(self.norm(maps))

    def _normalise_and_project(self, maps: Tensor) -> Tensor:
        """``conv_seg(norm(maps))`` of constant maps, with the normalisation's scale and bias in
        those of the convolution: equal up to float32's rounding, and three times as fast, because
        no gradient passes through arrays as large as the maps."""
        norm: Any = self.norm
        weight = self.conv_seg.weight.flatten(1)
        norm.num_batches_tracked += 1
        mean, variance = torch.batch_norm_update_stats(
            maps, norm.running_mean, norm.running_var, norm.momentum
        )
        scaled = weight * (norm.weight * (variance + norm.eps).rsqrt())
        bias = self.conv_seg.bias + weight @ norm.bias
        # centred first: a bias that undoes a large mean would lose digits
        return F.conv2d(maps - mean[:, None, None], scaled[:, :, None, None], bias)


# probe → its head, and the default dropout before the last convolution
HEADS: dict[str, tuple[type[BaseDecodeHead], float]] = {
    "linear": (LinearHead, 0.0),
    "deeplabv3": (ASPPHead, 0.1),
    "pspnet": (PSPHead, 0.1),
    "dpt": (DPTHead, 0.1),
    "dpt-probe3d": (Probe3dHead, 0.0),
}
for _name, (_head, _) in HEADS.items():
    for _kind in (Segmentation, Regression):  # linear-segmentation, linear-regression …
        _type = f"{_name}-{_kind.__name__.lower()}"
        MODELS.register_module(name=_type, module=type(_type, (_kind, _head), {}))


def aspp_dilations(size: int, stride: float) -> tuple[int, int, int, int]:
    """Dilation rates of DeepLabv3 for feature maps of ``size / stride``.

    Chen et al. 2017 use (1, 12, 24, 36) on 64×64 maps (512 px at stride 8). A rate beyond the map
    only sees padding, so the rates keep their share of the map's side at other sizes: 12/64, 24/64
    and 36/64.
    """
    side = size / stride
    first = max(2, round(side * 12 / 64))
    second = max(first + 1, round(side * 24 / 64))
    return 1, first, second, max(second + 1, round(side * 36 / 64))


class FlipTest(EncoderDecoder):
    """mmseg's encoder-decoder, which averages the outputs of an image and of its mirror image where
    ``test_cfg.flip`` is set, and pads sliding crops where ``test_cfg.padded`` is."""

    def inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        raw = super().inference(inputs, metas)
        if not self.test_cfg.get("flip"):
            return raw
        return (raw + self.mirror(super().inference(inputs.flip(-1), metas))) / 2

    def slide_inference(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        if not self.test_cfg.get("padded"):
            return super().slide_inference(inputs, metas)
        (height, width), (down, across) = self.test_cfg.crop_size, self.test_cfg.stride
        rows, columns = inputs.shape[2:]
        padded = F.pad(inputs, (0, width, 0, height))
        total = padded.new_zeros((len(inputs), self.out_channels, *padded.shape[2:]))
        count = padded.new_zeros(padded.shape[2:])
        metas[0]["img_shape"] = torch.Size((height, width))  # mmseg reads the padded shape else
        for y in range(0, rows, down):
            for x in range(0, columns, across):
                window = slice(y, y + height), slice(x, x + width)
                raw = self.encode_decode(padded[:, :, *window], metas)
                total[:, :, *window] += self.averaged(raw)
                count[*window] += 1
        return self.from_average((total / count)[:, :, :rows, :columns])

    def averaged(self, raw: Tensor) -> Tensor:
        """What is averaged where padded crops overlap."""
        return raw

    def from_average(self, values: Tensor) -> Tensor:
        """Outputs from an average."""
        return values

    def mirror(self, raw: Tensor) -> Tensor:
        """Outputs for a mirrored image → for the image itself."""
        return raw.flip(-1)


@MODELS.register_module()
class DenseSegmenter(FlipTest):
    """mmseg's encoder-decoder: predictions are ``pred_sem_seg`` (1, H, W; int64 class indices) at
    the resolution of the image file. Images of one shape are decoded together; logits are not
    kept."""

    def averaged(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=1)

    def postprocess_result(self, logits: Tensor, samples: list[Any] | None = None) -> Any:
        if samples is None:
            return super().postprocess_result(logits)
        for indices, part in at_own_size(logits, samples, self.align_corners):
            for index, labels in zip(indices, part.argmax(dim=1, keepdim=True), strict=True):
                samples[index].set_data({"pred_sem_seg": PixelData(data=labels)})
        return samples


@MODELS.register_module()
class DenseRegressor(FlipTest):
    """mmseg's encoder-decoder with a regressing head: predictions are ``pred_depth_map`` (1, H, W;
    metres) or ``pred_normal_map`` (3, H, W; unit length), at the resolution of the image file."""

    def averaged(self, raw: Tensor) -> Tensor:
        return self.decode_head.loss_decode.averaged(raw)

    def from_average(self, values: Tensor) -> Tensor:
        return self.decode_head.loss_decode.from_average(values)

    def mirror(self, raw: Tensor) -> Tensor:
        return self.decode_head.loss_decode.mirror(raw)

    def postprocess_result(self, raw: Tensor, samples: list[Any] | None = None) -> Any:
        objective = self.decode_head.loss_decode
        if samples is None:
            return objective.decode(raw)
        for indices, part in at_own_size(raw, samples, self.align_corners):
            for index, decoded in zip(indices, objective.decode(part), strict=True):
                samples[index].set_data({f"pred_{objective.field}": PixelData(data=decoded)})
        return samples


def at_own_size(
    raw: Tensor, samples: list[Any], align_corners: bool
) -> Iterator[tuple[list[int], Tensor]]:
    """(N, C, H, W) outputs at the resolution of the image files, without padding: those of one
    shape together, as (their indices in the batch, (n, C, height, width)). Around an ``area`` the
    values at its edge are repeated."""
    indices_by_shape: dict[Any, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        padding = tuple(sample.metainfo.get("img_padding_size", (0, 0, 0, 0)))
        rows, columns = sample.ori_shape[:2]
        y1, y2, x1, x2 = sample.metainfo.get("area", (0, rows, 0, columns))
        margins = (x1, max(0, columns - x2), y1, max(0, rows - y2))
        indices_by_shape[(rows, columns), padding, margins].append(index)
    for ((rows, columns), padding, margins), indices in indices_by_shape.items():
        west, east, north, south = padding
        size = (rows - sum(margins[2:]), columns - sum(margins[:2]))
        part = raw if len(indices) == len(raw) else raw[indices]
        part = part[:, :, north : part.shape[2] - south, west : part.shape[3] - east].float()
        if tuple(part.shape[2:]) != size:  # resizing to the same size would copy it
            part = F.interpolate(part, size, mode="bilinear", align_corners=align_corners)
        if any(margins):
            part = F.pad(part, margins, mode="replicate")
        yield indices, part


def head_config(
    probe: str, in_channels: Sequence[int], settings: Any, size: int, stride: float, **extra: Any
) -> dict[str, Any]:
    """Config of a decode head.

    Args:
        probe: a name of ``HEADS``.
        in_channels: channels of each feature map, which come concatenated.
        settings: a ``DenseSettings``.
        size, stride: (shorter) input side in pixels and stride of the feature maps: they set
            DeepLabv3's dilations.
        extra: ``num_classes`` and the loss of a segmenter, or ``loss_decode`` with an objective's
            config.
    """
    _, dropout = HEADS[probe]
    config: dict[str, Any] = {
        "type": f"{probe}-{'segmentation' if 'num_classes' in extra else 'regression'}",
        "in_channels": sum(in_channels),
        "in_index": 0,
        "dropout_ratio": dropout if settings.dropout is None else settings.dropout,
        "align_corners": settings.align_corners,
        "loss_images": settings.loss_images,
        **extra,
    }
    if probe == "linear":
        config["dropout_first"] = settings.dropout_first
    else:
        config["channels"] = settings.channels
    if probe in ("deeplabv3", "pspnet", "dpt"):
        config["norm_cfg"] = {"type": "BN", "requires_grad": True}  # not SyncBN: one process
    if probe == "dpt":
        config["widths"] = settings.dpt_widths
        config["readout_type"] = "project" if settings.class_token == "project" else "ignore"
        if not settings.dpt_norm:
            config["norm_cfg"] = None
    if probe == "deeplabv3":
        config["dilations"] = aspp_dilations(size, stride)
    if probe.startswith("dpt"):
        config["map_channels"] = tuple(in_channels)
    return config
