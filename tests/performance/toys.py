"""Photographs and datasets for measurements."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backbones.backbone import Backbone
from cliptex_common.progress import Silent
from probes.base import Context
from probes.datasets.base import DATASETS, DatasetSpec, PreparedDataset, Sample
from tests.performance.beside import TEMPLATES, class_files
from tests.probes import tiny_dense
from tests.probes.datasets.make import picture, write_tar


def photograph(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of smooth colours, of (width, height) pixels."""
    small = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def jpegs(folder: Path, count: int, size: tuple[int, int] = (320, 240)) -> list[Path]:
    """Write ``count`` photographs of (width, height) pixels."""
    random, paths = np.random.default_rng(0), [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        path.write_bytes(photograph(random, size))
    return paths


def write_pairs(path: Path, count: int, size: tuple[int, int]) -> Path:
    """A tar of ``count`` photographs with captions."""
    random = np.random.default_rng(0)
    members = {}
    for number in range(count):
        members[f"{number:09}.jpg"] = photograph(random, size)
        members[f"{number:09}.txt"] = f"picture {number}".encode()
    return write_tar(path, members)


def dense(folder: Path, kind: str, train: int, val: int, side: int) -> PreparedDataset:
    """Write a dataset of ``kind``; those of all kinds have the same photographs."""
    data = tiny_dense.make(folder, kind, train, val, (side, side))
    photographs = tiny_dense.make(folder / "shared", "segmentation", train, val, (side, side))
    shutil.copytree(photographs.root / "images", folder / "images", dirs_exist_ok=True)
    return data


def context(
    backbone: Backbone, config: dict[str, Any], data: PreparedDataset, settings: Any, work: Path
) -> Context:
    """A task of a run, without tracking, in an empty folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Context(
        device=device,
        backbone=backbone.to(device),
        backbone_config=config,
        data=data,
        settings=settings,
        seed=0,
        work_dir=work,
        log=Silent(),
    )


def classes(folder: Path, train: int, val: int, count: int = 10) -> None:
    """Write photographs of ``count`` classes, which their colours tell apart."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (count, 3))
    for split, number in (("train", train), ("val", val)):
        (folder / split).mkdir()
        for index in range(number):
            kind = index % count
            image = Image.fromarray(picture(random, (320, 240), colours[kind]))
            image.save(folder / f"{split}/{kind:02}-{index:04}.jpg", quality=90)


def classified(folder: Path) -> PreparedDataset:
    """A dataset that ``classes`` wrote."""
    samples = {
        split: [Sample(f"{split}/{path.name}", kind) for path, kind in class_files(folder, split)]
        for split in ("train", "val")
    }
    names = tuple(f"class {kind}" for kind in range(1 + max(s.target for s in samples["train"])))
    spec = DATASETS["colours"] = DatasetSpec(
        "colours",
        "classification",
        "",
        lambda root, split: samples[split],
        classes=names,
        extra={"templates": TEMPLATES},
    )
    return PreparedDataset(spec.name, folder, samples, fingerprint="colours")
