"""Pipelines of a config file, completed for a dataset, and changed by settings that are more than a
literal of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec
from probes.dense.settings import DenseSettings
from probes.dense.tasks import DENSE_TASKS
from probes.dense.transforms import COLOURS

Part = dict[str, Any]  # of a config


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
