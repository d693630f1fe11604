"""Images with dense ground truth for mmseg: one dataset class for every ``DatasetSpec`` whose kind
is a dense task, and the transforms that neither mmcv nor mmseg has.

Within a pipeline the ground truth is ``results["gt_seg_map"]``, the name that mmcv's transforms
know, as ``DenseTask.read`` gives it. Random numbers are numpy's; those of ``ColorJitter`` are
torch's. Images are (H, W, 3) BGR, 0–255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, Resize
from mmengine.dataset import BaseDataset, Compose
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.registry import DATASETS as MMSEG_DATASETS
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import adjust_hue, adjust_saturation

from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.images import image_size, spread_indices
from probes.base import EncodeContext, Progress
from probes.datasets.base import DatasetSpec
from probes.dense.settings import bounds_read
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import content_hashes
from probes.features.maps import (
    Crop,
    FeatureDataset,
    MapViews,
    all_crops,
    draw_crop,
    without_images,
)
from probes.features.store import DTYPES, Builder, CacheKey
from probes.features.views import open_store
from probes.mmseg import mmseg
from probes.pictures import GALLERY_IMAGES
from probes.registry import DATASETS

ARRAYS = ("img", "gt_seg_map")  # of a sample, which geometry changes alike


@TRANSFORMS.register_module()
class ReadArea(BaseTransform):
    """Keep the part ``area`` of an image (see ``Area``), and of its ground truth if
    that is loaded."""

    def __init__(self, area: Sequence[Any]) -> None:
        self.area = tuple(area)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        y1, y2, x1, x2 = bounds = bounds_read(self.area, *results["img"].shape[:2])
        for name in ARRAYS:
            if name in results:
                results[name] = results[name][y1:y2, x1:x2]
        results["img_shape"] = results["img"].shape[:2]
        results["area"] = bounds
        return results


@TRANSFORMS.register_module()
class ShortSide(Resize):
    """Resize an image (Pillow, bicubic) so that its short side is ``side``; the long side is
    rounded down."""

    def __init__(self, side: int) -> None:
        super().__init__(scale=side, backend="pillow", interpolation="bicubic")
        self.side = side

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        self.scale = self.new_size(width, height)
        return super().transform(results)

    def new_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image of this size."""
        short = min(width, height)
        return self.side * width // short, self.side * height // short


@TRANSFORMS.register_module()
class PillowResize(Resize):
    """mmcv's ``Resize`` by Pillow, which mmcv offers for 8 bits alone: also of ground truth."""

    def __init__(self, **options: Any) -> None:
        super().__init__(backend="pillow", **options)

    def _resize_seg(self, results: dict[str, Any]) -> None:
        target = results.get("gt_seg_map")
        if target is None:
            return
        size, is_label = results["img_shape"][::-1], target.dtype.kind in "ui"
        wide = np.atleast_3d(target.astype(np.int32 if is_label else np.float32))
        nearest = Image.Resampling.NEAREST
        channels = [
            np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size, nearest))
            for channel in wide.transpose(2, 0, 1)
        ]
        resized = np.stack(channels, axis=-1).astype(target.dtype)
        results["gt_seg_map"] = resized if target.ndim == 3 else resized[..., 0]


@TRANSFORMS.register_module()
class ScaleImage(BaseTransform):
    """Resize an image by a random factor of its own size: the long side is any whole number of
    pixels in the range.

    Args:
        ratio_range: smallest and largest factor.
        resize_type, **resize: the transform that resizes, and its options.
    """

    def __init__(
        self, ratio_range: Sequence[float], resize_type: str = "Resize", **resize: Any
    ) -> None:
        self.low, self.high = ratio_range
        self.resize = {"type": resize_type, "keep_ratio": True, **resize}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        long = max(results["img"].shape[:2])
        side = np.random.randint(int(long * self.low), int(long * self.high) + 1)
        return TRANSFORMS.build({**self.resize, "scale": (side, side)}).transform(results)


@TRANSFORMS.register_module()
class RgbDistortion(mmseg.datasets.transforms.PhotoMetricDistortion):
    """DINOv3's colours for segmentation: as mmseg's, but saturation is mixed with grey, and the hue
    takes any value."""

    def saturation(self, img: np.ndarray) -> np.ndarray:
        return _adjusted(img, adjust_saturation, 0.5, 1.5)

    def hue(self, img: np.ndarray) -> np.ndarray:
        return _adjusted(img, adjust_hue, -0.5, 0.5)


def _adjusted(image: np.ndarray, adjust: Any, low: float, high: float) -> np.ndarray:
    """Half of the time, ``adjust`` by a factor of the range."""
    if not np.random.randint(2):
        return image
    rgb = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
    return adjust(rgb, np.random.uniform(low, high)).numpy().transpose(1, 2, 0)[..., ::-1]


@TRANSFORMS.register_module()
class GammaDistortion(BaseTransform):
    """DINOv3's colours for depth: gamma (0.9–1.1, of values 0–255), brightness (0.75–1.25) and each
    channel (0.9–1.1) of half of the images change."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < 0.5:
            image = results["img"].astype(np.float32) ** np.random.uniform(0.9, 1.1)
            image *= np.random.uniform(0.75, 1.25)
            channels = np.random.uniform(0.9, 1.1, size=3)  # red, green, blue
            results["img"] = (image * channels[::-1].astype(np.float32)).clip(0, 255)
        return results


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """probe3d's colours: torchvision's jitter of brightness, contrast, saturation and hue by up to
    0.2, of four fifths of the images."""

    def __init__(self) -> None:
        self.jitter = transforms.RandomApply([transforms.ColorJitter(0.2, 0.2, 0.2, 0.2)], p=0.8)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        rgb = torch.from_numpy(results["img"][..., ::-1].transpose(2, 0, 1).copy()) / 255
        results["img"] = 255 * self.jitter(rgb).numpy().transpose(1, 2, 0)[..., ::-1]
        return results


@TRANSFORMS.register_module()
class Enlarge(BaseTransform):
    """Replace half of the images by a random part of their own shape, enlarged to their size by
    nearest neighbours, with its ground truth.

    Args:
        least: share of the area that a part has at least; the shares are drawn evenly.
    """

    def __init__(self, least: float) -> None:
        self.least = least

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < 0.5:
            height, width = results["img"].shape[:2]
            factor = np.random.uniform(self.least, 1) ** 0.5
            rows, columns = round(factor * height), round(factor * width)
            results["enlarged"] = width / columns, height / rows
            y = np.random.randint(height - rows + 1)
            x = np.random.randint(width - columns + 1)
            for name in ARRAYS:
                if name in results:
                    part = np.ascontiguousarray(results[name][y : y + rows, x : x + columns])
                    size = (width, height)
                    results[name] = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
        return results


COLOURS = {  # of crops
    "mmseg": "PhotoMetricDistortion",
    "dinov3": "RgbDistortion",
    "dinov3-depth": "GammaDistortion",
}


Part = dict[str, Any]  # of a config
# orientation tags are ignored: label maps lie over the stored pixels
LOAD = {"type": "LoadImageFromFile", "color_type": "color_ignore_orientation"}
META_KEYS = ("image", "img_path", "ori_shape", "area", "img_shape", "pad_shape", "img_padding_size")


@TRANSFORMS.register_module()
class LoadGroundTruth(BaseTransform):
    """Load the ground truth of a ``DenseDataset``'s sample. Placed after resizing (testing) it
    keeps the label's own resolution.

    Args:
        kind: name of the dense task.
        **options: of its ``DenseTask.read``.

    Raises:
        UserError: the file cannot be read, its labels are out of range, or its size differs from
            the image's.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        self.read: Any = partial(DENSE_TASKS.find(kind).load, **options)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        ground_truth = self.read(results["target_path"])
        if ground_truth.shape[:2] != results["ori_shape"]:
            sizes = [f"{x}×{y}" for y, x in (results["ori_shape"], ground_truth.shape[:2])]
            raise UserError(
                f"{results['img_path']} is {sizes[0]} px but its ground truth {sizes[1]}; they must"
                " be equal"
            )
        results["gt_seg_map"] = ground_truth
        return results


@TRANSFORMS.register_module()
class FollowImage(BaseTransform):
    """Multiply values of ground truth whose pixels have followed a mirrored or resized image by
    ``DenseTask.factors``."""

    def __init__(self, kind: str) -> None:
        self.factors = DENSE_TASKS.find(kind).factors

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        resized, enlarged = (results.get(key, (1.0, 1.0)) for key in ("scale_factor", "enlarged"))
        scale = resized[0] * enlarged[0], resized[1] * enlarged[1]
        factors = self.factors(bool(results.get("flip")), scale)
        if any(factor != 1 for factor in factors):
            ground_truth = results["gt_seg_map"]
            results["gt_seg_map"] = ground_truth * np.array(factors, ground_truth.dtype)
        return results


@TRANSFORMS.register_module()
class PadCrop(BaseTransform):
    """Pad image and ground truth at the right and the bottom to ``size`` = (height, width) px, with
    the values ``image`` (BGR 0–255) and ``ground_truth``."""

    def __init__(self, size: Sequence[int], image: Sequence[float], ground_truth: float) -> None:
        self.size, self.image, self.ground_truth = size, tuple(image), ground_truth

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        bottom, right = max(0, self.size[0] - height), max(0, self.size[1] - width)
        border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        results["img"] = cv2.copyMakeBorder(results["img"], *border, value=self.image)
        if "gt_seg_map" in results:
            results["gt_seg_map"] = cv2.copyMakeBorder(
                results["gt_seg_map"], *border, value=(self.ground_truth,) * 3
            )
        results["img_shape"] = results["img"].shape[:2]
        return results


def image_only(pipeline: Sequence[Mapping[str, Any]]) -> list[Part]:
    """A pipeline without what only concerns the ground truth: equal for all tasks with the same
    crops of the same images."""
    fixed = {"kind": "segmentation", "ground_truth": 0}
    return [
        {**part, **{name: fixed[name] for name in fixed.keys() & part.keys()}}
        for part in pipeline
        if part["type"] not in ("LoadGroundTruth", "FollowImage")
    ]


def ground_truth_config(spec: DatasetSpec, classes: int, settings: Any = None) -> dict[str, Any]:
    """Config of the ``LoadGroundTruth`` of a dataset, for the settings of a probe."""
    options = DENSE_TASKS.find(spec.kind).reading(spec, classes, settings)
    return {"type": "LoadGroundTruth", "kind": spec.kind, **options}


@TRANSFORMS.register_module()
class PackRGB(BaseTransform):
    """Tensors for the model: ``inputs`` (3, H, W) uint8 RGB and a ``SegDataSample`` with the ground
    truth of the dense task ``kind``: (1, H, W) int64 classes or (channels, H, W) float32."""

    def __init__(self, kind: str) -> None:
        self.field = f"gt_{DENSE_TASKS.find(kind).field}"

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        # RGB here, at no cost: mmseg would swap channels by a list that it copies to the device
        rgb = results["img"][..., ::-1].transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(rgb))
        # features are made of images alone
        target = channels_first(results["gt_seg_map"]) if "gt_seg_map" in results else None
        return {"inputs": image, "data_samples": dense_sample(results, self.field, target)}


def channels_first(ground_truth: np.ndarray) -> torch.Tensor:
    """(H, W) → (1, H, W); (H, W, 3) → (3, H, W)."""
    channels = ground_truth.transpose(2, 0, 1) if ground_truth.ndim == 3 else ground_truth[None]
    return torch.from_numpy(np.ascontiguousarray(channels))


class DenseSample(SegDataSample):
    """A sample whose ground truth a loader can pin, so that its copy to a GPU is asynchronous."""

    def pin_memory(self) -> DenseSample:
        for field in [key for key in self.keys() if key.startswith("gt_")]:
            self.set_data({field: PixelData(data=self.get(field).data.pin_memory())})
        return self


def dense_sample(
    metadata: Mapping[str, Any], field: str, target: torch.Tensor | None
) -> SegDataSample:
    """The sample of one image for mmseg's heads and evaluators: ``target`` (labels as int64) under
    ``field``, with the names and shapes in ``metadata``."""
    sample = DenseSample(metainfo={key: metadata[key] for key in META_KEYS if key in metadata})
    if target is not None:
        data = target if target.is_floating_point() else target.long()
        sample.set_data({field: PixelData(data=data)})
    return sample


@MMSEG_DATASETS.register_module()
class DenseDataset(FeatureDataset, BaseDataset):
    """A split of a registered dataset, in its official order; see ``FeatureDataset``.

    Args:
        dataset: name in ``probes.registry.DATASETS``.
        root: its folder on this disk.
        split: ``train`` or ``val``.
        exclude: image paths (relative to ``root``) to leave out, because they cannot be read.
        pipeline: transforms of images and their ground truth.
        test_mode: as in mmengine: no retry with another sample.
        encoder: see ``probes.features.maps.encoder_config``. Features are those of
            complete images, or of the crops of a ``FixedCrop``, of which one is drawn by numpy's
            generator as the pipeline draws it; their ground truth is in the store as well, because
            cropping it again means decoding it again.

    Attributes:
        crops: that features are stored of; empty for complete images. An item of the store is a
            crop of an image, or an image.
        image_steps: the pipeline without ground truth.
        target_steps: the pipeline of the ground truth, on black images.

    Raises:
        UserError: the dataset is not known.
    """

    scope = "mmseg"

    def __init__(
        self,
        dataset: str,
        root: str,
        split: str,
        pipeline: Sequence[Mapping[str, Any]],
        exclude: Sequence[str] = (),
        test_mode: bool = False,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.split, self.exclude = Path(root), split, frozenset(exclude)
        self.spec = DATASETS.find(dataset).at(self.root)
        self.encoder, self.name = encoder or {}, f"{self.spec.name} ({split})"
        self._field = f"gt_{DENSE_TASKS.find(self.spec.kind).field}"
        self.crops: list[Crop] = []
        self.image_steps, self.target_steps = image_only(pipeline), _without_images(pipeline)
        self._side = next((part["crop"] for part in pipeline if "crop" in part), 0)
        for part in pipeline:
            if part["type"] == "FixedCrop":
                self.crops = all_crops(part["fixed_crops"], part["flip"])
                self._draw_crop = partial(draw_crop, part["fixed_crops"], part["flip"])
            elif part["type"] == "LoadGroundTruth":
                self.load_ground_truth = TRANSFORMS.build(part)
        self._load_image, self._load_target = map(Compose, (self.image_steps, self.target_steps))
        # a sample that fails is never replaced by another one, which would change the metrics;
        # not serialised: mmengine would collect garbage, which takes longer than all else here
        super().__init__(
            metainfo={"classes": tuple(self.spec.class_names(self.root))},
            pipeline=list(pipeline),
            test_mode=test_mode,
            max_refetch=0,
            serialize_data=False,
        )
        images = [
            self.data_list[index]["image"] for index in spread_indices(len(self), GALLERY_IMAGES)
        ]
        self._metainfo["gallery"] = frozenset(images)  # what ``TaskScores`` keeps to be drawn

    def load_data_list(self) -> list[dict[str, Any]]:
        return [
            {
                "img_path": str(self.root / sample.image),
                "target_path": str(self.root / sample.target),
                "image": sample.image,
                "seg_fields": ["gt_seg_map"],
            }
            for sample in self.spec.list_samples(self.root, self.split)  # type: ignore[arg-type]
            if sample.image not in self.exclude
        ]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        if not self.encoder:
            return super().prepare_data(idx)
        item = self._draw_item(idx)
        inputs = tuple(self.feature_store()[item])
        return {"inputs": inputs, "data_samples": self._sample(idx, item)}

    def ground_truth(self, index: int) -> Any:
        if not self.encoder:
            return self._load_target(self.get_data_info(index))["data_samples"]
        return self._sample(index, self._draw_item(index))

    def shape(self, index: int) -> tuple[int, ...]:
        """(height, width) of a test image; of features (height, width, height, width): those of the
        padded image first. Images of one shape can share a batch."""
        if not self.encoder:
            return self.resized_shape(index)
        metadata = self.feature_store().metadata(index)
        return *metadata["pad_shape"][:2], *metadata["img_shape"][:2]

    def resized_shape(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as the test pipeline resizes it, without decoding it."""
        width, height = self.own_size(index)  # in this order, as mmcv counts
        for part in self.pipeline.transforms:
            if isinstance(part, ReadArea):
                y1, y2, x1, x2 = bounds_read(part.area, height, width)
                width, height = min(x2, width) - x1, min(y2, height) - y1
            if isinstance(part, ShortSide):
                width, height = part.new_size(width, height)
            elif isinstance(part, Resize) and part.keep_ratio:
                width, height = mmcv.rescale_size((width, height), part.scale)
            elif isinstance(part, Resize):
                width, height = part.scale
        return height, width

    def own_size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image file, which its label map has too."""
        return image_size(self.get_data_info(index)["img_path"])

    def views(self, context: EncodeContext, frozen: Any = None) -> MapViews:
        """Each of the crops, or complete images as they are resized for tests."""
        sizes = [(self._side, self._side)] * (len(self) * len(self.crops))
        if not self.crops:
            sizes = [self.resized_shape(index) for index in range(len(self))]
        identity = {
            "images": self.image_hash(),
            "pipeline": self.image_steps,
            "crops": self.crops,
        }
        return MapViews(context, self, sizes, identity, frozen)

    def open(self, context: EncodeContext | None = None) -> None:
        super().open(context)
        if self.stores and self.crops:
            context = context or EncodeContext(torch.device("cpu"))
            self.stores = [
                *self.stores,
                open_store(*self._ground_truth_crops(context.progress), context),
            ]

    def load(self, item: int) -> dict[str, Any]:
        return self._load_image(self._info(item))

    def _draw_item(self, index: int) -> int:
        """The item of the store that is delivered of an image: its crop is drawn."""
        if not self.crops:
            return index
        return index * len(self.crops) + self.crops.index(self._draw_crop())

    def _sample(self, index: int, item: int) -> Any:
        """The sample of an image with the ground truth of an item of the store."""
        shapes = self.feature_store().metadata(item).items()
        metadata = {**self.get_data_info(index), **{name: tuple(shape) for name, shape in shapes}}
        if self.crops:
            (target,) = self.stores[1][item]
        else:
            target = channels_first(self.load_ground_truth(metadata)["gt_seg_map"])
        return dense_sample(metadata, self._field, target)

    def _info(self, item: int) -> dict[str, Any]:
        """The sample of an item of the store, with its crop."""
        if not self.crops:
            return self.get_data_info(item)
        image, crop = divmod(item, len(self.crops))
        return {**self.get_data_info(image), "crop": tuple(self.crops[crop])}

    def _ground_truth_crops(self, progress: Progress) -> tuple[CacheKey, Builder]:
        """The store of the ground truth of each crop, and what fills it."""
        spec, task = self.spec, DENSE_TASKS.find(self.spec.kind)
        dtype = task.stored_type(spec, len(self.metainfo["classes"]))
        item_bytes = self._side**2 * task.channels * DTYPES[dtype].itemsize
        targets = [Path(self.get_data_info(index)["target_path"]) for index in range(len(self))]
        identity = {
            "images": self.image_hash(),
            "ground truth": content_key(content_hashes(targets), 64),
            "pipeline": self.target_steps,
            "crops": self.crops,
            **DENSE_TASKS.origin(spec.kind),
        }

        def build(shards: Sequence[Sequence[int]]) -> Any:
            progress.start(f"cropping the ground truth of {spec.name}", sum(map(len, shards)))
            for item in (item for shard in shards for item in shard):
                sample = self._load_target(self._info(item))["data_samples"]
                target = sample.get(self._field).data
                yield item, [target.to(DTYPES[dtype])], {}
                progress.advance()

        sizes = [item_bytes] * (len(self) * len(self.crops))
        return CacheKey("ground truth", self.name, identity, (dtype,), sizes), build


def _without_images(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline for ground truth alone: a transform of it needs the size of the image alone."""
    return [
        {**part, "image": [0, 0, 0]} if part["type"] == "PadCrop" else part
        for part in without_images(pipeline)
    ]


@MODELS.register_module()
class ViewsPreprocessor(SegDataPreProcessor):
    """``SegDataPreProcessor`` that takes the maps of images, too, which it stacks."""

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        if isinstance(data["inputs"][0], Tensor):
            return super().forward(data, training)
        data = self.cast_data(data)
        return {**data, "inputs": tuple(map(torch.stack, zip(*data["inputs"], strict=True)))}
