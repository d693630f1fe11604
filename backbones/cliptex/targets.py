"""Dense tasks of CLIPTeX: how each is labelled, stored, augmented, learned, measured and drawn.

``Task`` is a loss and its target, ``LabelMap`` one whose target is a stored label. ``ClassMap``,
``ScalarMap`` and ``VectorMap`` have a class, a number or a direction for each pixel; ``seg``,
``depth`` and ``normal`` are the paper's. A label is a map of one image, (H, W) or (C, H, W), that
an expert predicted or a person drew. A target is a batch of them as the loss compares them, after
crop and flip, with the task's own value where unknown.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.cliptex.ground_truth import LabelledImage, MapFolders, coco_samples
from backbones.cliptex.losses import (
    IGNORE,
    Summed,
    align_target,
    depth_loss,
    expected_angle,
    has_direction,
    normal_loss,
    segmentation_loss,
)
from cliptex_common.images import (
    GREY16_MODES,
    MIRRORED,
    normal_picture,
    open_image,
    palette,
    read_classes,
    read_rgb,
    read_scalars,
    read_stored,
    scalar_picture,
)
from cliptex_common.metrics import (
    Arrays,
    angles,
    class_areas,
    confusion,
    depth_scores,
    mean_of_images,
)


class Task(ABC):
    """What CLIPTeX learns beside the contrast: a loss and its target. An instance is registered in
    ``tasks.TASKS``. ``LabelMap`` learns from stored labels; a task that does not overrides
    ``make_target``, and is neither stored, scored nor drawn.

    Attributes:
        name: of the task and its λ (``lambda_NAME``).
        about: one line for lists, unless the registration has one.
        has_classes: whether labels are numbers of classes, whose names a label store keeps.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    has_classes: ClassVar[bool] = False

    def output_channels(self, classes: Sequence[str]) -> int:
        """Output channels of a head."""
        return 1

    def activate(self, output: Tensor) -> Tensor:
        """A head's output, (N, channels, H, W), in the form that the loss takes."""
        return output

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """(sum, count), see ``losses``."""

    @abstractmethod
    def count(self, target: Tensor) -> Tensor:
        """The count that ``loss`` returns, from the target alone; scalar float32. The objective
        divides by it, since it is needed before the forward pass."""

    def make_target(self, images: Tensor, size: int) -> Tensor:
        """The target of a step's images, as ``loss`` takes it, where it is not a stored label: a
        frozen teacher's features, soft labels … Called without gradient.

        Args:
            images: (N, 3, S, S), normalised for the image tower, on the device.
            size: side of the predictions.
        """
        raise NotImplementedError


class LabelMap(Task):
    """A task with a label for each image: a map, which an expert or a person made and a label store
    keeps. Scoring, which measures experts, and ground truth, by which they learn, are optional.

    Attributes:
        name: also of its files (``KEY.NAME.SUFFIX``) and its expert's predictions.
        suffix: of the files that ``encode`` makes; viewers go by it.
        quantisation: what ``encode`` loses, in words.
        missing: ``to_tensor`` of an image without a label.
        folders: of ground truth; None: ``NAME/images`` and ``NAME/annotations``.
    """

    suffix: ClassVar[str] = "png"
    quantisation: ClassVar[str] = "none"
    missing: ClassVar[Tensor]
    folders: ClassVar[MapFolders | None] = None

    def predict(self, output: Tensor) -> Tensor:
        """The labels of N images in a head's output, which is not activated yet."""
        return self.activate(output)

    @abstractmethod
    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        """Labels of N images, from ``to_tensor`` (or, when an expert learns, as they are), of any
        resolution → target (N, …, size, size)."""

    def ground_truth(self, root: Path, split: str) -> tuple[tuple[str, ...], list[LabelledImage]]:
        """What ``experts train`` learns from: names of the classes, and the samples of the
        ``train`` or ``val`` split in a data root; by default the files of ``folders``.

        Raises:
            UserError: it is missing or malformed.
        """
        folders = self.folders or MapFolders(self.name)
        names = folders.classes(root) if self.has_classes else ()
        return names, folders.samples(root, split, self.read)

    def from_expert(self, output: np.ndarray) -> np.ndarray:
        """The label of one image from what its expert predicted for it."""
        return output.astype(np.float32) if output.dtype.kind == "f" else output

    @abstractmethod
    def read(self, path: Path) -> np.ndarray:
        """A manual label, from a file of the official layouts.

        Raises:
            OSError, ValueError: it is no such file.
        """

    @abstractmethod
    def encode(self, label: np.ndarray) -> bytes:
        """A label as a file of ``suffix``, which any viewer shows."""

    @abstractmethod
    def decode(self, data: bytes) -> np.ndarray:
        """The inverse of ``encode``, up to ``quantisation``. Raises ``OSError``, ``ValueError``."""

    @abstractmethod
    def to_tensor(self, label: np.ndarray) -> Tensor:
        """A label in the form that is kept in memory and sent between processes: small."""

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Statistics of one image, from which ``summary`` computes metrics.

        Args:
            prediction, target: (1, H, W), or (3, H, W) of vectors.
        """
        raise NotImplementedError

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """The metrics of sets of images: here the mean of each statistic, without NaN.

        Args:
            arrays: the statistics of N images.
            weights: (R, N) how often each image is in each set.

        Returns:
            metric → (R,).
        """
        return {name: mean_of_images(values, weights) for name, values in arrays.items()}

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """The metrics of an expert's predictions of N images.

        Args:
            outputs: the expert's predictions by name (this task's, and a confidence if any).
            target: (N, …); classes from ``classes`` on are not scored.
        """
        scores = [
            self.score(*(torch.from_numpy(each).reshape(-1, *each.shape[-2:]) for each in pair))
            for pair in zip(outputs[self.name], target, strict=True)
        ]
        arrays = {name: np.stack([each[name].numpy() for each in scores]) for name in scores[0]}
        metrics = self.summary(arrays, np.ones((1, len(scores))))
        return {name: float(values[0]) for name, values in metrics.items()}

    @abstractmethod
    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 picture of the label of ``image`` (H, W, 3) uint8. Black is unknown."""


def resize_nearest(label: np.ndarray, side: int) -> np.ndarray:
    """A label shrunk to ``side`` pixels on the short side; 0 keeps its size.

    It takes the value in the middle of each cell: a mean over an edge would be a depth, a direction
    or a class that does not occur.
    """
    height, width = label.shape[-2:]
    if not side or min(height, width) <= side:
        return label
    scale = side / min(height, width)

    def centres(length: int) -> np.ndarray:
        cells = max(side, round(length * scale))
        return ((np.arange(cells) + 0.5) * length / cells).astype(int)

    return label[..., centres(height)[:, None], centres(width)]


@dataclass(frozen=True)
class Geometry:
    """What is done to each of N images, in fractions of the image, so that label maps of any
    resolution can follow.

    Attributes:
        box: (N, 4) float32: centre x, centre y, width and height of the crop, as shares of the
            image's own.
        flip: (N,) bool, left-right.
    """

    box: Tensor
    flip: Tensor

    def __getitem__(self, rows: slice) -> Geometry:
        return Geometry(self.box[rows], self.flip[rows])


def warp_images(images: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Images, uint8 or float (C, H, W) each, → (N, C, size, size) float32 in the same value range;
    bilinear.
    """
    return _warp(images, geometry, size, "bilinear")


def warp_classes(
    maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int, ignore: int = 255
) -> Tensor:
    """Class maps (H, W) each → (N, size, size) int64; nearest; ``ignore`` becomes ``IGNORE``."""
    sampled = _warp([m[None].float() for m in maps], geometry, size, "nearest")[:, 0].long()
    return sampled.masked_fill_(sampled == ignore, IGNORE)


def warp_depth(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Depth-like maps (H, W) each, NaN where unknown → (N, size, size) float32, NaN where unknown.

    Nearest: an average over a depth edge would be a surface that is not there.
    """
    return _warp([m[None].float() for m in maps], geometry, size, "nearest")[:, 0]


def warp_normals(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
    """Normal maps (3, H, W) each, axes ``cliptex_common.images.AXES``, zero where unknown → (N, 3,
    size, size).

    Nearest; x is negated by a flip.
    """
    sampled = _warp([m.float() for m in maps], geometry, size, "nearest")
    signs = torch.where(geometry.flip[:, None], torch.tensor(MIRRORED), 1.0)
    return sampled * signs[:, :, None, None]


def _warp(maps: Tensor | Sequence[Tensor], geometry: Geometry, size: int, mode: str) -> Tensor:
    """Sample each map (C, H, W) on its own crop: one call where all have one size, else one
    each."""
    if isinstance(maps, Tensor) or len({m.shape for m in maps}) == 1:
        stacked = maps if isinstance(maps, Tensor) else torch.stack(tuple(maps))
        grid = _grid(geometry, size)
        return F.grid_sample(
            stacked.float(), grid, mode=mode, padding_mode="border", align_corners=False
        )
    rows = [_warp(m[None], geometry[i : i + 1], size, mode) for i, m in enumerate(maps)]
    return torch.cat(rows)


def _grid(geometry: Geometry, size: int) -> Tensor:
    """(N, size, size, 2) positions in grid_sample's coordinates: source = centre + extent · F ·
    output."""
    sign = 1 - 2 * geometry.flip.float()
    theta = torch.zeros(len(sign), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = geometry.box[:, 2] * sign, geometry.box[:, 3]
    theta[:, :, 2] = geometry.box[:, :2] * 2 - 1
    return F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)


STEPS = 65534  # of a 16-bit file, whose 0 is unknown


class PixelMap(LabelMap):
    """A label with a value for each pixel, known or unknown; the losses count the known ones."""

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Where a target is labelled: (N, size, size) bool."""

    def count(self, target: Tensor) -> Tensor:
        return self.valid(target).sum().float()


class ClassMap(PixelMap):
    """A class for each pixel.

    A label is (H, W) uint8 or uint16, the largest value of its type where unknown; a target is
    (N, size, size) int64, ``IGNORE`` where unknown. ``loss`` takes logits (N, classes, size, size).
    """

    has_classes = True
    missing = torch.full((1, 1), IGNORE, dtype=torch.int16)

    def output_channels(self, classes: Sequence[str]) -> int:
        return len(classes)

    def valid(self, target: Tensor) -> Tensor:
        return target != IGNORE

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        ignore = IGNORE if maps[0].dtype.is_signed else torch.iinfo(maps[0].dtype).max
        return warp_classes(maps, geometry, size, ignore=ignore)

    def read(self, path: Path) -> np.ndarray:
        """A palette or grey PNG of class numbers, 8 or 16 bits; 255 (or 65535) is unknown."""
        return read_classes(path)

    def encode(self, label: np.ndarray) -> bytes:
        """A PNG: of 8 bits with PASCAL VOC's palette, or of 16 bits, grey."""
        image = Image.fromarray(label)
        if label.dtype == np.uint8:
            image.putpalette(palette(256)[: int(label.max(initial=0)) + 1].tobytes())
        file = io.BytesIO()
        image.save(file, "PNG", bits=8)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        return read_classes(io.BytesIO(data))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        """int16, ``IGNORE`` where unknown."""
        unknown = label == np.iinfo(label.dtype).max
        return torch.from_numpy(np.where(unknown, IGNORE, label.astype(np.int32)).astype(np.int16))

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Classes in PASCAL VOC's colours over the image."""
        colours = palette(256)[label.astype(int) % 256]
        small = np.asarray(Image.fromarray(image).resize(label.shape[::-1]))
        blend = np.where((label > 0)[..., None], 0.3 * small + 0.7 * colours, small)
        return np.where((label == np.iinfo(label.dtype).max)[..., None], 0, blend).astype(np.uint8)


class ScalarMap(PixelMap):
    """A number for each pixel.

    A label is (H, W) float32 in ``value_range``, NaN where unknown; so is a target (N, size, size).
    ``loss`` takes (N, size, size), of any range.

    Attributes:
        value_range: smallest and largest value of a label.
    """

    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    quantisation = "65535 steps of the range"
    missing = torch.full((1, 1), torch.nan)

    def activate(self, output: Tensor) -> Tensor:
        return output.squeeze(1)

    def valid(self, target: Tensor) -> Tensor:
        return torch.isfinite(target)

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        return warp_depth(maps, geometry, size)

    def read(self, path: Path) -> np.ndarray:
        """A grey PNG, 8 or 16 bits: black is the smallest value, white the largest."""
        return read_scalars(path, *self.value_range)

    def encode(self, label: np.ndarray) -> bytes:
        """A 16-bit grey PNG in even steps, 0 where unknown."""
        valid, (low, high) = np.isfinite(label), self.value_range
        unit = np.clip(np.where(valid, (label - low) / (high - low), 0), 0, 1)
        file = io.BytesIO()
        steps = np.where(valid, 1 + np.rint(unit * STEPS), 0)
        Image.fromarray(steps.astype(np.uint16)).save(file, "PNG")
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        low, high = self.value_range
        steps = np.array(open_image(io.BytesIO(data)), np.float32)
        values = low + (steps - 1) / STEPS * (high - low)
        return np.where(steps > 0, values, np.float32(np.nan))

    def to_tensor(self, label: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(label, np.float32))

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """In viridis, from dark to bright; black where unknown."""
        valid = np.isfinite(label)
        picture = scalar_picture(np.nan_to_num(label), *self.value_range, valid)
        return picture * valid[..., None]


class VectorMap(PixelMap):
    """A direction in space for each pixel.

    A label is (3, H, W) float32 unit vectors, axes ``cliptex_common.images.AXES``, zero where
    unknown; so is a target (N, 3, size, size). ``loss`` takes unit vectors (N, 3, size, size).
    """

    suffix = "webp"
    quantisation = "octahedral, 2 × 8 bits: at most 0.95 degrees"
    missing = torch.zeros(3, 1, 1, dtype=torch.int8)

    def output_channels(self, classes: Sequence[str]) -> int:
        return 3

    def activate(self, output: Tensor) -> Tensor:
        return F.normalize(output.float(), dim=1, eps=1e-6)

    def valid(self, target: Tensor) -> Tensor:
        return has_direction(target)

    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        exact = [each if each.is_floating_point() else each.float() / 127 for each in maps]
        return warp_normals(exact, geometry, size)

    def read(self, path: Path) -> np.ndarray:
        """An 8-bit RGB PNG, n = png / 127.5 - 1, axes as of labels; (0, 0, 0) is unknown."""
        code = read_rgb(path)
        vectors = code.astype(np.float32) / 127.5 - 1
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.moveaxis(np.where(code.any(-1, keepdims=True), vectors, 0), -1, 0)

    def encode(self, label: np.ndarray) -> bytes:
        """A lossless WebP: octahedral map in red and green, 255 in blue; 0 where unknown."""
        length = np.linalg.norm(label, axis=0)
        valid = np.isfinite(length) & (length > 0.5)
        unit = np.where(
            valid,
            label / np.where(valid, length, 1),
            np.array([0, 0, 1], np.float32)[:, None, None],
        )
        # 254 steps, not 255: the axes – walls and floors – are then stored exactly
        code = (
            np.concatenate([np.rint(octahedral(unit) * 127 + 127), np.full((1, *valid.shape), 255)])
            * valid
        )
        file = io.BytesIO()
        # method 2: a tenth larger than 4, at a third of the time
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(code.astype(np.uint8), 0, -1)))
        image.save(file, "WEBP", lossless=True, quality=50, method=2, exact=True)
        return file.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        red, green, valid = np.moveaxis(
            np.array(open_image(io.BytesIO(data)).convert("RGB")), -1, 0
        )
        code = np.stack([red, green]).astype(np.float32) / 127 - 1
        return from_octahedral(np.clip(code, -1, 1)) * (valid > 127)

    def to_tensor(self, label: np.ndarray) -> Tensor:
        """int8: 0.3° at worst."""
        return torch.from_numpy(np.rint(np.nan_to_num(label) * 127).astype(np.int8))

    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(n + 1) / 2 as a colour."""
        return normal_picture(label)


def octahedral(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (3, H, W) → the octahedron unfolded to the square [-1, 1]², (2, H, W).

    Cigolle et al., "A Survey of Efficient Representations for Independent Unit Vectors", JCGT 2014.
    """
    p = vectors[:2] / np.maximum(np.abs(vectors).sum(0), 1e-12)
    folded = (1 - np.abs(p[::-1])) * np.where(p >= 0, 1, -1)
    return np.where(vectors[2] < 0, folded, p)


def from_octahedral(p: np.ndarray) -> np.ndarray:
    """Inverse of :func:`octahedral`: (2, H, W) in [-1, 1] → unit vectors (3, H, W) float32."""
    n = np.concatenate([p, 1 - np.abs(p).sum(0, keepdims=True)]).astype(np.float32)
    fold = np.maximum(-n[2], 0)
    n[:2] -= np.where(n[:2] >= 0, fold, -fold)
    return n / np.linalg.norm(n, axis=0, keepdims=True)


class SegLabels(ClassMap):
    """Pixel-wise classes, learned by cross-entropy."""

    name = "seg"

    def ground_truth(self, root: Path, split: str) -> tuple[tuple[str, ...], list[LabelledImage]]:
        """Instances of COCO: 0 is the background, crowds are unknown."""
        return coco_samples(root, split)

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        return segmentation_loss(prediction, target)

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """Metrics in per cent.

        ``mIoU`` over classes that occur (unknown predictions count as wrong), ``aAcc``,
        ``object_acc`` (over pixels of objects), ``labelled`` (share not unknown) and
        ``labelled_acc`` (correct among those).
        """
        # one class more, which no pixel has, for unknown predictions; one after that, which
        # ``confusion`` ignores, for targets that are not scored
        predicted = torch.from_numpy(np.minimum(outputs[self.name], classes).astype(np.int64))
        real = torch.from_numpy(np.where(target < classes, target, classes + 1).astype(np.int64))
        areas = class_areas(confusion(predicted, real, classes + 1, classes + 1))
        hit, answered, label = (area.numpy() for area in areas.values())
        present = label > 0
        union = label[present] + answered[present] - hit[present]
        sure = answered[:classes].sum()
        return {
            "mIoU": 100 * float(np.mean(hit[present] / union)),
            "aAcc": 100 * float(hit.sum() / label.sum()),
            "object_acc": 100 * float(hit[1:].sum() / max(label[1:].sum(), 1)),
            "labelled": 100 * float(sure / label.sum()),
            "labelled_acc": 100 * float(hit.sum() / max(sure, 1)),
        }


SEG = SegLabels()


class InverseDepth(ScalarMap):
    """Inverse depth up to scale and shift, learned by the loss of MiDaS."""

    name = "depth"
    folders = MapFolders("nyu", val="test")
    quantisation = (
        "65535 steps of the square root of (d - min) / (max - min): over 0.3 to 10 m at most 0.3 mm"
    )

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        return depth_loss(prediction, target)

    def count(self, target: Tensor) -> Tensor:
        # of images, as ``depth_loss`` counts them; aligned there again, since count comes first
        return align_target(target)[2].sum().float()

    def read(self, path: Path) -> np.ndarray:
        """A 16-bit PNG in millimetres, 0 unknown → inverse depth in 1/m."""
        stored = read_stored(path, GREY16_MODES, "a depth map is a 16-bit grey PNG in millimetres")
        metres = stored.astype(np.float32) / 1000
        return np.divide(1, metres, out=np.full_like(metres, np.nan), where=metres > 0)

    def encode(self, label: np.ndarray) -> bytes:
        """In even steps of the square root of the label's own range, near is light.

        They are finest where inverse depth is small, where a step of it is many metres.
        """
        values = label[np.isfinite(label)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        return super().encode(np.sqrt((label - low) / max(high - low, 1e-30)))

    def decode(self, data: bytes) -> np.ndarray:
        """In [0, 1]: 0 the farthest and 1 the nearest of the image."""
        return np.square(super().decode(data))

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``abs_rel`` and ``delta1`` of depth, after the least-squares scale and shift of inverse
        depth (MiDaS's protocol: Ranftl et al. 2020); NaN with fewer than two labelled pixels."""
        valid = torch.isfinite(target)
        x, y = (each[valid].double().numpy() for each in (prediction, target))
        design = np.stack([x, np.ones_like(x)], 1)
        aligned = np.ones_like(y)
        if len(y) > 1:
            aligned = np.maximum(design @ np.linalg.lstsq(design, y, rcond=None)[0], y.min() / 10)
        depth, real = (torch.from_numpy(1 / each) for each in (aligned, y))
        scores = depth_scores(depth, real, torch.full((len(y),), len(y) > 1))
        return {name: scores[name] for name in ("abs_rel", "delta1")}


DEPTH = InverseDepth()


class NormalLabels(VectorMap):
    """Directions, learned by their angle."""

    name = "normal"
    folders = MapFolders("nyu", "normals", val="test")

    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        return normal_loss(prediction, target)

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """``normal_mean``, ``normal_median`` in degrees, ``normal_11.25`` in per cent.

        With a ``confidence`` also ``kappa_expected``: the mean angle that κ predicts, in degrees,
        to compare with ``normal_mean``.
        """
        valid = np.square(target).sum(1) > 0.25
        maps = (torch.from_numpy(each).movedim(1, 0) for each in (outputs[self.name], target))
        errors = angles(*maps).numpy()[valid]
        metrics = {
            "normal_mean": float(errors.mean()),
            "normal_median": float(np.median(errors)),
            "normal_11.25": 100 * float(np.mean(errors < 11.25)),
        }
        if "confidence" in outputs:
            expected = expected_angle(torch.from_numpy(outputs["confidence"][valid])).mean()
            metrics["kappa_expected"] = math.degrees(float(expected))
        return metrics


NORMAL = NormalLabels()
