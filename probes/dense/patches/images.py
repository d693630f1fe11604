"""The images of a split patch by patch, the scores of their predictions, and the random crops that
may fill a memory.

Crops are in changed colours, as Open-Hummingbird makes them; each follows from the image's content
and the number of the crop alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torchvision.transforms import (
    ColorJitter,
    Compose,
    InterpolationMode,
    RandomApply,
    RandomResizedCrop,
)
from torchvision.transforms.functional import resized_crop, to_tensor

from backbones.backbone import Backbone, resize_concat
from cliptex_common.device import Halving, isolated_rng, upload
from cliptex_common.files import derive_seed
from cliptex_common.images import spread_indices
from probes.base import Context, TaskResult, requested_map
from probes.datasets.base import Split
from probes.dense.config import dataset_of, preprocessor
from probes.dense.group import Predicted, constant_note, draw_preview
from probes.dense.losses import TaskScores
from probes.dense.patches.pixels import Patches, resize_labels, windows
from probes.dense.patches.probe import has_void_class
from probes.dense.pipelines import LOAD, ground_truth_config, resize_step
from probes.dense.settings import native_stride, round_up
from probes.features.files import content_hash
from probes.features.maps import MapViews, all_crops, encoder_config
from probes.features.store import DTYPES
from probes.pictures import GALLERY_IMAGES
from probes.train import frozen_backbone
from reports.records import FLOOR

AREA, ASPECT = (0.5, 2.0), (3 / 4, 4 / 3)  # of a crop: share of the image's area, width / height
COLOURS = Compose(
    [
        RandomApply([ColorJitter(**{name: 0.1})], 0.5)
        for name in ("brightness", "contrast", "saturation", "hue")
    ]
)
Region = tuple[int, int, int, int]  # top, left, height, width


def draw_region(height: int, width: int) -> Region:
    """A random part of an image, by torch's generator."""
    return RandomResizedCrop.get_params(torch.empty(1).expand(3, height, width), AREA, ASPECT)


def region_of(path: str, number: int, height: int, width: int) -> Region:
    """The part of an image file that its crop ``number`` shows."""
    with isolated_rng(derive_seed("memory crop", content_hash(path), number)):
        return draw_region(height, width)


def resize_region(pixels: Tensor, region: Region, side: int, is_image: bool) -> Tensor:
    """(C, H, W) → (C, side, side): bilinear with antialiasing, or nearest for labels."""
    mode = InterpolationMode.BILINEAR if is_image else InterpolationMode.NEAREST
    return resized_crop(pixels, *region, [side, side], mode, antialias=is_image)


@TRANSFORMS.register_module()
class JitteredCrop(BaseTransform):
    """Replace an image by its crop ``results["crop"][0]``: its colours are changed, then a part of
    it is resized to ``crop`` × ``crop`` float32 pixels (BGR, 0–255)."""

    def __init__(self, crop: int) -> None:
        self.crop = crop

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path, number = results["img_path"], results["crop"][0]
        region = region_of(path, number, *results["img"].shape[:2])
        with isolated_rng(derive_seed("memory colours", content_hash(path), number)):
            image = COLOURS(Image.fromarray(results["img"][..., ::-1]))
        pixels = 255 * resize_region(to_tensor(image), region, self.crop, is_image=True)
        results["img"] = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[..., ::-1])
        results["img_shape"] = results["img"].shape[:2]
        return results


T = TypeVar("T")
QUERIES = 2**14  # patches that are predicted at once, at least


class TextSpaceEncoder(torch.nn.Module):
    """Patches in the space of texts; see ``Backbone.encode_dense``.

    Args:
        slide: see ``OpenVocabularySettings``.
    """

    def __init__(self, backbone: Backbone, precision: str, slide: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.backbone, self.precision, self.slide = backbone, precision, slide

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """(N, windows · D, h, w)."""
        maps = []
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for window in windows(images.shape[2:], self.slide):
                part = images[:, :, *window]
                size = [round_up(side, self.backbone.divisor) for side in part.shape[2:]]
                if size != list(part.shape[2:]):  # patches do not divide it
                    part = interpolate(part, size=size, mode="bicubic")
                maps.append(self.backbone.encode_dense(part).float())
        return (torch.cat(maps, dim=1),)


class PatchImages:
    """A split of a segmentation dataset patch by patch; how images are resized is a setting.

    Args:
        encoder: images → (map,), which is not cached; None for the backbone's own feature maps,
            which are.
        crops: of each image to take in place of it (``draw_region``).
        device: where the patches are; that of the context by default.

    Attributes:
        dtype: that holds the features without loss.
    """

    def __init__(
        self,
        context: Context,
        split: Split,
        encoder: TextSpaceEncoder | None = None,
        crops: int = 0,
        device: torch.device | None = None,
    ) -> None:
        settings, backbone, data = context.settings, context.backbone, context.data
        self.context, self.crops = context, crops
        self.device = device or context.device
        self.strides: tuple[float, ...] = backbone.strides[-1:]
        self.stride: float | None = None
        self.layer = requested_map(settings, backbone)  # of all that are cached
        out_indices = None
        if encoder is None:
            if self.layer is not None:
                self.strides = backbone.strides[self.layer : self.layer + 1]
            elif settings.layers == "last" or (settings.layers == "auto" and backbone.is_plain):
                out_indices = [-1]
            else:
                self.strides = backbone.strides
            self.stride = settings.feature_stride or native_stride(self.strides)
        upsampler = {}
        if self.stride is not None and settings.upsampler != "bilinear":
            upsampler = {"name": settings.upsampler, "stride": self.stride}
            if len(self.strides) > 1:
                upsampler["unit_length"] = True
            if self.layer is not None:
                out_indices, self.layer = [self.layer], None
            self.strides = (self.stride,)
        is_cached = encoder is None and self.strides == (self.stride,)
        self.dtype = DTYPES[settings.cache] if is_cached else torch.float32
        frozen_backbone.share(context.backbone_config, backbone)
        self.score_side = settings.score_size
        side, resize = settings.size, resize_step(settings, backbone.divisor)
        if settings.is_square:
            side = resize["scale"][0]
            self.score_side = (self.score_side or 0) // backbone.divisor * backbone.divisor
        if crops:
            resize = {"type": "JitteredCrop", "crop": side}
        load = ground_truth_config(data.spec, len(data.classes))
        pipeline = [LOAD, resize, load, {"type": "PackRGB", "kind": data.spec.kind}]
        prepare = preprocessor(backbone)
        if encoder is not None and encoder.slide:
            prepare["test_cfg"] = {"size_divisor": 1}  # windows show the image alone, no padding
        frozen = {
            "type": "FrozenBackbone",
            "out_indices": out_indices,
            "precision": settings.precision,
            "upsampler": upsampler,
            **context.backbone_config,
        }
        source = encoder_config(
            frozen, prepare, "fp32" if encoder else settings.cache, context.device.type
        )
        dataset = {"type": "DenseDataset", "pipeline": pipeline, "encoder": source}
        with DefaultScope.overwrite_default_scope("mmseg"):
            self.dataset: Any = DATASETS.build({**dataset, **dataset_of(data, split)})
        # the dataset reads them from a ``FixedCrop``, which this pipeline has not
        self.dataset.crops = all_crops(crops, flip=0.0)
        self.views: MapViews = self.dataset.views(context, encoder)
        images = (split == "train" and data.train_indices) or range(len(self.dataset))
        each = max(crops, 1)
        self.items = [image * each + crop for image in images for crop in range(each)]

    def __len__(self) -> int:
        return len(self.items)

    def walk(self, items: Sequence[int] = ()) -> Iterator[Patches]:
        """All items, or some. Raises as ``Views.items``."""
        for item, maps, metadata in self.views.features(items or self.items):
            yield self._patches(item, maps, metadata)

    def labels(self, patches: Patches) -> Tensor:
        """(H, W) int64, of the patches' ``size``."""
        info = self.dataset.get_data_info(patches.index)
        sample = self.dataset.load_ground_truth({**info, "ori_shape": patches.original})
        labels = sample["gt_seg_map"]
        if patches.crop is not None:
            region = region_of(info["img_path"], patches.crop, *patches.original)
            pixels = torch.from_numpy(labels.astype("int64"))[None]
            return resize_region(pixels, region, patches.size[0], is_image=False)[0]
        if self.score_side:
            labels = resize_labels(labels, self.score_side, self.context.settings.resize)
        return torch.from_numpy(labels.astype("int64"))

    def most_patches(self, limit: int) -> int:
        """No fewer than the patches of all items, of each at most ``limit``."""
        stride, sizes = self.stride or self.strides[-1], self.views.sizes
        return sum(
            min(limit, math.prod(math.ceil(side / stride) for side in sizes[item]))
            for item in self.items
        )

    def _patches(self, item: int, maps: Sequence[Tensor], metadata: Mapping[str, Any]) -> Patches:
        read = maps if self.layer is None else [maps[self.layer]]
        batches = [upload(features, self.device).float()[None] for features in read]
        if len(batches) > 1:
            batches = [normalize(features, dim=1) for features in batches]
        cells = batches[0][0]
        if self.stride is not None:
            cells = resize_concat(batches, self.strides, self.stride)[0]
        shown, padded = metadata["img_shape"], metadata["pad_shape"]
        down, across = (cells.shape[1 + i] * shown[i] / padded[i] for i in (0, 1))
        rows, columns = math.ceil(down), math.ceil(across)
        height, width = metadata["ori_shape"][:2]
        index, crop = divmod(item, self.crops) if self.crops else (item, None)
        side = shown[0] if self.crops else self.score_side
        return Patches(
            index,
            cells[:, :rows, :columns].flatten(1).T.contiguous(),
            (rows, columns),
            (down, across),
            (side, side) if side else (height, width),
            (height, width),
            crop,
        )


def grouped(patches: Iterable[Patches]) -> Iterator[list[Patches]]:
    """Images together, so that a memory on another device is read once for all of them."""
    group: list[Patches] = []
    for each in patches:
        group.append(each)
        if sum(len(each.features) for each in group) >= QUERIES:
            yield group
            group = []
    if group:
        yield group


def in_groups(
    patches: Iterable[Patches],
    function: Callable[[Sequence[Patches]], Iterable[T]],
    notes: list[str],
) -> Iterator[tuple[Patches, T]]:
    """Each image with its result of ``function``, which gets images together; fewer where they do
    not fit the memory of the device."""
    in_parts = Halving(QUERIES, "segmenting images", notes)
    for group in grouped(patches):
        parts = in_parts(lambda images: list(function(images)), group)
        yield from zip(group, chain.from_iterable(parts), strict=True)


def evaluate_patches(
    context: Context,
    images: PatchImages,
    predict: Callable[[Sequence[Patches]], Iterable[Tensor]],
    notes: Sequence[str],
    hungarian: bool = False,
) -> TaskResult:
    """Score predictions on ``val``.

    Args:
        predict: images → the (H, W) label map of each, where ``len(classes)`` is void.
        notes: those of the scores follow them.
        hungarian: see ``Segmentation``.
    """
    data = context.data
    names = [*data.classes, *(["void"] if has_void_class(context.settings) else [])]
    options = {"ignore_index": data.spec.ignore_index, "hungarian": hungarian}
    metric = TaskScores("segmentation", classes=names, **options)
    gallery = set(spread_indices(len(images), GALLERY_IMAGES))
    scores: dict[int, dict[str, Any]] = {}
    pictures: dict[int, Predicted] = {}
    for patches, prediction in in_groups(
        images.walk(),
        lambda group: (label_map.cpu() for label_map in predict(group)),
        context.cost.notes,
    ):
        if not scores:  # what encodes has its own progress before
            context.progress.start(f"segmenting {data.spec.name}", len(images))
        labels = images.labels(patches)
        info = images.dataset.get_data_info(patches.index)
        # not ``metric.process``, which takes samples of mmengine's
        areas = metric.task.score(prediction[None], labels[None])
        scores[patches.index] = {"image": info["image"], **areas}
        if patches.index in gallery:
            photo = mmcv.imread(info["img_path"], "color_ignore_orientation")[..., ::-1]
            photo = mmcv.imresize(photo, patches.size[::-1])
            maps = [each[None].numpy().astype("uint16") for each in (labels, prediction)]
            pictures[patches.index] = Predicted(info["image"], photo, *maps)
        context.progress.advance()
    metrics = metric.compute_metrics([scores[index] for index in range(len(images))])
    notes = [*notes, *metric.notes]
    if "train" in data.samples:
        notes += constant_note(data, context.settings, metrics, metric.per_image)
    bounds = {FLOOR: metrics.pop(f"{FLOOR}mIoU")} if f"{FLOOR}mIoU" in metrics else {}
    with context.cost.phase("pictures"):
        preview = draw_preview(
            pictures.__getitem__, images.dataset, "segmentation", context.work_dir / "preview.png"
        )
    # beside the arrays over images the names that reports need
    per_image = {**metric.per_image, "classes": np.array(names)}
    return TaskResult(metrics, per_image, bounds, preview=preview, notes=notes)
