"""Small datasets with dense truth that can be learnt from colour, in files as the official layouts
have them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import probes.datasets.levels  # noqa: F401  registers datasets
from probes.datasets.base import DatasetSpec, PreparedDataset, mirrored
from probes.datasets.check import prepare
from probes.registry import DATASETS, register_dataset
from tests.probes.datasets.make import make_bsds

CLASSES = ("red", "green", "blue")
list_samples = mirrored("images/{part}", "truth/{part}")

SPECS = {
    "segmentation": DatasetSpec("tiny-seg", "segmentation", "tiny", list_samples, classes=CLASSES),
    "depth": DatasetSpec(
        "tiny-depth",
        "depth",
        "tiny",
        list_samples,
        extra={"depth_scale": 1e-3, "min_depth": 1e-3, "max_depth": 10.0},
    ),
    "normals": DatasetSpec(
        "tiny-normals",
        "normals",
        "tiny",
        list_samples,
        extra={
            "axes": "x right, y up, z towards the camera",
            "encoding": "n = png / 127.5 - 1",
            "invalid": (0, 0, 0),
        },
    ),
}
SPECS["depth-order"] = replace(SPECS["depth"], name="tiny-depth-order", kind="depth-order")
SPECS["occlusion-edges"] = replace(SPECS["depth"], name="tiny-occlusion", kind="occlusion-edges")
SPECS["foreground"] = replace(
    SPECS["segmentation"], name="tiny-foreground", kind="foreground", extra={"background": (0,)}
)
SPECS |= {
    "corners": DATASETS["corners"],
    "orientation": DATASETS["orientation"],
    "boundaries": DATASETS["bsds500"],
}
for _spec in SPECS.values():
    if _spec.name not in DATASETS:
        register_dataset(_spec)


def blobs(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Three smooth fields in [0, 1], (height, width, 3) float32."""
    return cv2.resize(
        random.random((3, 4, 3), np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    ).clip(0, 1)


def draw(kind: str, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BGR uint8 image, and the truth as it is stored (BGR for normals)."""
    if kind in ("segmentation", "foreground"):
        labels = fields.argmax(axis=2)
        image = np.eye(3, dtype=np.uint8)[labels][..., ::-1] * 200 + 20
        target = labels.astype(np.uint8)
        target[:3] = 255
        return image, target
    if kind in ("depth", "depth-order", "occlusion-edges"):
        depth = 1 + 4 * fields[..., 0]
        target = (1000 * depth).astype(np.uint16)
        target[:3] = 0
        return np.repeat((depth * 50).astype(np.uint8)[..., None], 3, axis=2), target
    normals = fields * (2, 2, 1) - (1, 1, 0) + (0, 0, 0.5)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    stored = ((normals + 1) * 127.5).round().astype(np.uint8)[..., ::-1]
    target = stored.copy()
    target[:3] = 0
    return stored, target


def make(
    root: Path,
    kind: str,
    train: int = 6,
    val: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> PreparedDataset:
    """Write a dataset of ``kind`` with images of ``size`` (height, width), the second of ``val``
    turned on its side."""
    if kind == "boundaries":
        return prepare(SPECS[kind], make_bsds(root), partial=True)
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for folder in ("images", "truth"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = size[::-1] if (split, number) == ("val", 1) else size
            image, target = draw(kind, blobs(random, *shape))
            cv2.imwrite(str(root / f"images/{split}/{number:03}.png"), image)
            cv2.imwrite(str(root / f"truth/{split}/{number:03}.png"), target)
    return prepared(root, kind, seed)


def prepared(root: Path, kind: str, seed: int = 0) -> PreparedDataset:
    """A dataset that ``make`` wrote."""
    spec = DATASETS[SPECS[kind].name]
    samples = {split: spec.list_samples(root, split) for split in ("train", "val")}
    return PreparedDataset(spec.name, root, samples, fingerprint=f"{kind}-{seed}")


def with_declared(data: PreparedDataset, **changes: Any) -> PreparedDataset:
    """The dataset with another declaration than the registered one."""
    changed = replace(data)
    vars(changed)["spec"] = replace(data.spec, **changes)
    return changed


def pipelines(data: PreparedDataset, settings, crop, mean=(0, 0, 0)) -> tuple[list, list]:
    """Of train and val, as a config has them."""
    # they prepare mmseg, which takes seconds
    from probes.dense.pipelines import complete_pipelines
    from probes.train.config import apply_settings, config_files, read_config

    config = read_config(*config_files(data.spec.kind, "linear"))
    apply_settings(config, settings)
    complete_pipelines(config, data.spec, len(data.classes), settings, crop, mean)
    return tuple(
        config[f"{split}_dataloader"].dataset.to_dict()["pipeline"] for split in ("train", "val")
    )
