"""Small copies of official layouts made of photographs, for runs by hand:

    python -m tests.probes.datasets.real DATA OUT

DATA holds the real subsets (camvid, coco, voc_from_coco, nyu). Labels follow those of the subsets;
instances and places are crops of photographs, so the numbers say nothing about the real datasets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import probes.catalog  # noqa: F401  registers every dataset
from probes.datasets.base import Split
from probes.registry import DATASETS
from tests.probes.datasets.make import save, write_ground_truth

SPLITS: tuple[Split, ...] = ("train", "val")
# Cityscapes' train ids of CamVid's classes
STREETS = [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 18]
# PASCAL-Context's names of VOC's classes where they differ
NAMES = {"diningtable": "table"}
DATE, DRIVE = "2011_09_26", "2011_09_26_drive_{:04d}_sync"


def cityscapes(data: Path, out: Path) -> None:
    """CamVid's photographs and labels."""
    table = np.full(256, 255, np.uint8)
    table[: len(STREETS)] = STREETS
    for split in SPLITS:
        for index, sample in enumerate(DATASETS["camvid"].list_samples(data / "camvid", split)):
            name = f"{split}/cambridge/cambridge_{index:06d}_000019"
            image = Image.open(data / "camvid" / sample.image).convert("RGB")
            save(out / f"leftImg8bit/{name}_leftImg8bit.png", np.asarray(image))
            labels = np.asarray(Image.open(data / "camvid" / sample.target))
            save(out / f"gtFine/{name}_gtFine_labelTrainIds.png", table[labels])


def pascal_context(data: Path, out: Path) -> None:
    """VOC's classes, which PASCAL-Context has too; all else is background."""
    root, voc = data / "voc_from_coco/VOCdevkit/VOC2012", DATASETS["voc"]
    names = DATASETS["pascal-context-59"].class_names(out)
    table = np.zeros(256, np.uint8)
    for label, name in enumerate(voc.class_names(root)):
        if NAMES.get(name, name) in names:
            table[label] = 1 + names.index(NAMES.get(name, name))
    (out / "ImageSets/SegmentationContext").mkdir(parents=True)
    for split in SPLITS:
        samples = voc.list_samples(root, split)
        for sample in samples:
            name = Path(sample.image).stem
            save(out / sample.image, np.asarray(Image.open(root / sample.image)), quality=95)
            labels = table[np.asarray(Image.open(root / sample.target))]
            save(out / f"SegmentationClassContext/{name}.png", labels)
        lines = "".join(f"{Path(sample.image).stem}\n" for sample in samples)
        (out / f"ImageSets/SegmentationContext/{split}.txt").write_text(lines)


def kitti(data: Path, out: Path) -> None:
    """NYU's rooms, enlarged; a metre is eight, two images a drive."""
    nyu, size = DATASETS["nyu-depth"], (1280, 960)
    box = (19, 300, 19 + 1242, 300 + 375)
    for split, part in (("train", "train"), ("val", "test")):
        lines = []
        for index, sample in enumerate(nyu.list_samples(data / "nyu", split)):
            drive = DRIVE.format(index // 2)
            name = f"{split}{index:010d}.png"
            image = f"{DATE}/{drive}/image_02/data/{name}"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{name}"
            photograph = Image.open(data / "nyu" / sample.image).convert("RGB").resize(size)
            save(out / f"input/{image}", np.asarray(photograph.crop(box)))
            stored = Image.open(data / "nyu" / sample.target)
            metres = np.asarray(stored.resize(size, Image.Resampling.NEAREST).crop(box)) / 125
            save(out / f"gt_depth/{depth}", (256 * metres).round().astype(np.uint16))
            lines.append(f"{image} {depth} 721.5377\n")
        (out / f"kitti_eigen_{part}.txt").write_text("".join(lines))


def part(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    """A random part of a photograph with this share of its sides."""
    width, height = (int(share * side) for side in image.size)
    x, y = (int(rng.integers(full - int(share * full) + 1)) for full in image.size)
    return image.crop((x, y, x + width, y + height))


def revisited(data: Path, out: Path) -> None:
    """A query is the middle of a photograph; easy are parts of it of four fifths, hard those of
    half in the mirror and dark, junk ones of a quarter; other photographs fill the gallery."""
    rng = np.random.default_rng(0)
    paths = sorted((data / "coco").rglob("*.jpg"))
    gallery: list[str] = []
    queries, entries = [], []
    for number, path in enumerate(paths):
        image = Image.open(path).convert("RGB")
        if number >= 30:
            gallery.append(f"other_{number:06d}")
            image.save(_jpg(out, gallery[-1]))
            continue
        entry: dict[str, list] = {"easy": [], "hard": [], "junk": []}
        for level, share in (
            ("easy", 0.8),
            ("easy", 0.8),
            ("hard", 0.5),
            ("hard", 0.5),
            ("junk", 0.25),
        ):
            each = part(image, rng, share)
            if level == "hard":
                each = ImageEnhance.Brightness(ImageOps.mirror(each)).enhance(0.5)
            gallery.append(f"place{number:02d}_{len(gallery):06d}")
            each.save(_jpg(out, gallery[-1]))
            entry[level].append(len(gallery))
        width, height = image.size
        entry["bbx"] = [0.15 * width, 0.15 * height, 0.85 * width, 0.85 * height]
        queries.append(f"query_{number:06d}")
        image.save(_jpg(out, queries[-1]))
        entries.append(entry)
    write_ground_truth(out / f"gnd_{out.name}.mat", gallery, queries, entries)


def _jpg(out: Path, name: str) -> Path:
    (out / "jpg").mkdir(parents=True, exist_ok=True)
    return out / f"jpg/{name}.jpg"


def amstertime(data: Path, out: Path) -> None:
    """Old is a grey, pale part of a photograph, new another part of it."""
    rng = np.random.default_rng(1)
    for index, path in enumerate(sorted((data / "coco").rglob("*.jpg"))[:100]):
        image = Image.open(path).convert("RGB")
        new, old = (part(image, rng, 0.7) for _ in range(2))
        old = ImageEnhance.Contrast(ImageOps.grayscale(old)).enhance(0.6)
        save(out / f"new/{index:04d}.png", np.asarray(new))
        save(out / f"old/{index:04d}.jpg", np.asarray(old))


MAKERS = {
    "cityscapes": cityscapes,
    "VOCdevkit/VOC2010": pascal_context,
    "kitti": kitti,
    "roxford5k": revisited,
    "rparis6k": revisited,
    "AmsterTime": amstertime,
}

if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    for folder, maker in MAKERS.items():
        maker(source, target / folder)
        print(target / folder)
