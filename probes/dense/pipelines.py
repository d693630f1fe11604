"""Pipelines of a dense probe's images and their ground truth: the transforms that neither mmcv nor
mmseg has, and the pipelines of a config completed with settings.

Within a pipeline the ground truth is ``results["gt_seg_map"]``, the name that mmcv's transforms
know, as ``DenseTask.read`` gives it. Random numbers are numpy's; those of ``ColorJitter`` are
torch's. Images are (H, W, 3) BGR, 0–255. Importing this imports no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform, Resize
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image

import probes.features.maps  # noqa: F401  registers ``FixedCrop``
from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec
from probes.dense.patches.probe import ImageSettings
from probes.dense.settings import DenseSettings, bounds_read
from probes.dense.tasks import DENSE_TASKS
from probes.mmseg import mmseg

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
        from torchvision.transforms.functional import adjust_saturation

        return _adjusted(img, adjust_saturation, 0.5, 1.5)

    def hue(self, img: np.ndarray) -> np.ndarray:
        from torchvision.transforms.functional import adjust_hue

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
        from torchvision import transforms

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


def complete_pipelines(
    config: Config,
    spec: DatasetSpec,
    classes: int,
    settings: DenseSettings,
    crop: tuple[int, ...],
    mean: Sequence[float],
) -> None:
    """Complete the pipelines of both loaders.

    Args:
        spec: how the ground truth is stored.
        classes: number of classes, if the task has some.
        settings: of sizes, crops and augmentation.
        crop: (height, width) in pixels, as the backbone takes it.
        mean: RGB mean (0–255) of the backbone, the colour of the padding.
    """
    train, test = config.train_dataloader.dataset, config.val_dataloader.dataset
    stated = stated_sizes(config)["size"]
    train.pipeline = _training(list(train.pipeline), settings, crop, stated)
    test.pipeline = _testing(list(test.pipeline), settings, stated)
    task = DENSE_TASKS.find(spec.kind)
    colour = [0, 0, 0] if settings.padding == "black" else [round(x) for x in reversed(mean)]
    derived: dict[str, Part] = {
        "LoadGroundTruth": {"kind": spec.kind, **task.reading(spec, classes, settings)},
        "FollowImage": {"kind": spec.kind},
        "PackRGB": {"kind": spec.kind},
        "PadCrop": {"size": crop, "image": colour, "ground_truth": task.padding(spec)},
        "RandomRotate": {"seg_pad_val": task.padding(spec)},
        "RandomCrop": {"crop_size": crop},
    }
    for part in (*train.pipeline, *test.pipeline):
        part.update(derived.get(part["type"], {}))
        if "cat_max_ratio" in part:
            part["ignore_index"] = spec.ignore_index


def stated_sizes(config: Config) -> dict[str, Any]:
    """The settings ``size`` and ``crop`` by the literals of a file's pipelines."""
    test, train = config.val_dataloader.dataset.pipeline, config.train_dataloader.dataset.pipeline
    size = next((part["scale"][-1] for part in test if "scale" in part), 0)
    crop = next((tuple(part["crop_size"]) for part in train if "crop_size" in part), ())
    return {"size": size, "crop": () if crop == (size, size) else crop}


def _training(
    parts: list[Part], settings: DenseSettings, crop: tuple[int, ...], stated: int
) -> list[Part]:
    after_loading: list[Part] = []
    if settings.colours == "probe3d":  # the contrast is that of the complete image
        after_loading.append({"type": "ColorJitter"})
    if settings.train_area:
        after_loading.append({"type": "ReadArea", "area": settings.train_area})
    if settings.enlarge < 1:
        after_loading.append({"type": "Enlarge", "least": settings.enlarge})
    _insert(parts, "LoadGroundTruth", after_loading, after=True)
    if settings.fixed_crops:
        fixed_crop = {
            "type": "FixedCrop",
            "size": settings.size,
            "crop": crop[0],
            "scale_range": settings.scale_range,
            "fixed_crops": settings.fixed_crops,
            "flip": settings.flip,
        }
        _replace(parts, "RandomCrop", [fixed_crop])
        _replace(parts, "RandomResize", [])
        _replace(parts, "RandomFlip", [])
    else:
        _resize(parts, "RandomResize", settings, stated)
        if degrees := getattr(settings, "rotation", 0):
            rotation = {"type": "RandomRotate", "prob": 0.5, "degree": degrees}
            _insert(parts, "RandomCrop", [rotation])
    if settings.max_class_share == 1:
        for part in parts:
            part.pop("cat_max_ratio", None)
    if settings.colours in COLOURS:
        _insert(parts, "FollowImage", [{"type": COLOURS[settings.colours]}])
    return parts


def _testing(parts: list[Part], settings: DenseSettings, stated: int) -> list[Part]:
    if settings.test_area:
        area = {"type": "ReadArea", "area": settings.test_area}
        _insert(parts, "LoadImageFromFile", [area], after=True)
    _resize(parts, "Resize", settings, stated)
    return parts


def _resize(parts: list[Part], kind: str, settings: DenseSettings, stated: int) -> None:
    """Images of the ``size`` of the settings, if the file states another, by their
    ``interpolation``."""
    size = settings.size
    for part in [part for part in parts if part["type"] == kind]:
        if size != stated:  # as in mmseg's configs the long side is within four times it
            part["scale"] = (4 * size, size)
        if settings.interpolation != "bilinear":
            part["resize_type" if kind == "RandomResize" else "type"] = "PillowResize"
            part["interpolation"] = settings.interpolation.removeprefix("pillow-")
        if size:
            continue
        if kind == "RandomResize" and settings.scale_range != (1.0, 1.0):
            del part["scale"], part["keep_ratio"]
            part["type"] = "ScaleImage"
        else:
            parts.remove(part)


def _insert(parts: list[Part], kind: str, inserted: list[Part], after: bool = False) -> None:
    """Insert before (or ``after``) the part of a type."""
    if inserted:
        index = _index(parts, kind) + after
        parts[index:index] = inserted


def _replace(parts: list[Part], kind: str, replacement: list[Part]) -> None:
    index = _index(parts, kind)
    parts[index : index + 1] = replacement


def _index(parts: list[Part], kind: str) -> int:
    kinds = [part["type"] for part in parts]
    if kind not in kinds:
        raise UserError(f"the settings change {kind}, and the pipeline has {', '.join(kinds)}")
    return kinds.index(kind)


def resize_step(settings: ImageSettings, divisor: int) -> dict[str, Any]:
    """The step of a pipeline that resizes images, for patches of ``divisor`` pixels."""
    side = settings.size
    if settings.resize == "short-side-bicubic":
        return {"type": "ShortSide", "side": side}
    if not settings.is_square:
        return {"type": "Resize", "scale": (4 * side, side), "keep_ratio": True}
    side = side // divisor * divisor
    return {
        "type": "Resize",
        "scale": (side, side),
        "keep_ratio": False,
        "backend": "pillow",
        "interpolation": settings.resize.removeprefix("square-"),
    }
