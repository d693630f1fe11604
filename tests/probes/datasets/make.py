"""Small synthetic copies of every official layout, for tests of anything that reads datasets.

Each ``make_*`` writes a copy at ``root`` (the dataset's own folder) and returns it. Sizes are
(width, height).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48, 40
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "white": (230, 230, 230),
}


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(
    rng: np.random.Generator, size: tuple[int, int], colour: Sequence[int] = (128, 128, 128)
) -> np.ndarray:
    """A noisy picture of one colour, (H, W, 3) uint8."""
    noise = rng.integers(-25, 26, (size[1], size[0], 3))
    return (np.asarray(colour) + noise).clip(0, 255).astype(np.uint8)


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file off, as an interrupted download does."""
    os.truncate(path, int(path.stat().st_size * keep))
    return path


def labels(rng: np.random.Generator, size: tuple[int, int], values: Sequence[int]) -> np.ndarray:
    return rng.choice(np.asarray(values, dtype=np.uint8), (size[1], size[0]))


def make_voc(root: Path, n_train: int = 4, n_val: int = 3, n_aug: int = 0) -> Path:
    """VOC2012; with ``n_aug`` more images in ``trainaug.txt`` and ``SegmentationClassAug``."""
    rng = np.random.default_rng(0)
    names = [f"2007_{index:06d}" for index in range(n_train + n_val + n_aug)]
    train, val, aug = names[:n_train], names[n_train : n_train + n_val], names[n_train + n_val :]
    for name in names:
        save(root / f"JPEGImages/{name}.jpg", picture(rng, SIZE))
        folder = "SegmentationClassAug" if name in aug else "SegmentationClass"
        save(root / f"{folder}/{name}.png", labels(rng, SIZE, [*range(21), 255]))
    lists = {"train": train, "val": val}
    if aug:
        lists["trainaug"] = train + aug
    for name, entries in lists.items():
        path = root / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{entry}\n" for entry in entries))
    return root


def make_pairs(
    root: Path, counts: dict[str, int], values: Sequence[int], image: str, target: str
) -> Path:
    """Images and label maps, by formats of their file names."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for index in range(count):
            names = {"part": part, "index": index}
            save(root / f"images/{part}/{image.format(**names)}", picture(rng, SIZE))
            save(root / f"annotations/{part}/{target.format(**names)}", labels(rng, SIZE, values))
    return root


def make_ade(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """ADEChallengeData2016: stored labels 0 (unlabelled) to 150."""
    names = "ADE_{part}_{index:05d}.jpg", "ADE_{part}_{index:05d}.png"
    return make_pairs(root, {"training": n_train, "validation": n_val}, range(151), *names)


def make_camvid(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """11 classes and 255."""
    names = "frame_{part}_{index:05d}.jpg", "frame_{part}_{index:05d}.png"
    return make_pairs(root, {"train": n_train, "val": n_val}, [*range(11), 255], *names)


def make_coco_stuff(root: Path, n_train: int = 2, n_val: int = 2) -> Path:
    """171 classes and 255, as MMSegmentation stores them."""
    names = "{index:012d}.jpg", "{index:012d}_labelTrainIds.png"
    counts = {"train2017": n_train, "val2017": n_val}
    return make_pairs(root, counts, [*range(171), 255], *names)


def make_nyu(
    root: Path,
    n_train: int = 4,
    n_val: int = 3,
    size: tuple[int, int] = (64, 48),
    scenes: bool = False,
) -> Path:
    """Depth (16-bit millimetres, some 0) and normals (8-bit RGB, some invalid); in scene folders
    when ``scenes``."""
    rng = np.random.default_rng(0)
    for part, number in {"train": n_train, "test": n_val}.items():
        for index in range(number):
            name = f"{part}/kitchen_{index:04d}/frame" if scenes else f"{part}/nyu_{index:04d}"
            save(root / f"images/{name}.jpg", picture(rng, size))
            depth = rng.integers(700, 9900, (size[1], size[0]), dtype=np.uint16)
            depth[0] = 0
            save(root / f"annotations/{name}.png", depth)
            normals = rng.normal((0, 0, 2), 1, (size[1], size[0], 3))
            normals /= np.linalg.norm(normals, axis=2, keepdims=True)
            stored = np.rint((normals + 1) * 127.5).astype(np.uint8)
            stored[:2] = 0
            save(root / f"normals/{name}.png", stored)
    return root


def make_imagefolder(
    root: Path,
    n_train: int = 4,
    n_val: int = 3,
    size: tuple[int, int] = (40, 32),
    classes: Sequence[str] = tuple(COLOURS),
) -> Path:
    """``n_train`` and ``n_val`` images of each class, whose colour is the class where its name is a
    colour."""
    rng = np.random.default_rng(0)
    for split, number in {"train": n_train, "val": n_val}.items():
        for name in classes:
            for index in range(number):
                image = picture(rng, size, COLOURS.get(name, (128, 128, 128)))
                save(root / f"{split}/{name}/{index:04d}.JPEG", image, format="JPEG")
    return root


def make_flickr(root: Path, n_train: int = 4, n_test: int = 3, name: str = "flickr30k") -> Path:
    """Karpathy's json (with a val split that is not used) and images of the colour that their five
    captions name."""
    rng = np.random.default_rng(0)
    entries: list[dict] = []
    for split, number in {"train": n_train, "val": 1, "test": n_test}.items():
        for index in range(number):
            colour = list(COLOURS)[index % len(COLOURS)]
            filename = f"{split}{index:04d}.jpg"
            save(root / f"images/{filename}", picture(rng, (40, 32), COLOURS[colour]))
            captions = [f"A {colour} thing, seen {n} times in {filename} ." for n in range(5)]
            sentences = [{"raw": caption} for caption in captions]
            entries.append({"filename": filename, "split": split, "sentences": sentences})
    (root / f"dataset_{name}.json").write_text(json.dumps({"dataset": name, "images": entries}))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def encoded(array: np.ndarray, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, suffix)
    return buffer.getvalue()


def make_wds(
    root: Path,
    n_train: int = 4,
    n_test: int = 3,
    size: tuple[int, int] = (40, 32),
    classes: Sequence[str] = tuple(COLOURS),
    templates: Sequence[str] = ("a photo of a {c}.", "{c}, seen from afar"),
    groups: int = 0,
    captions: int = 0,
) -> Path:
    """A webdataset folder: each class's images in two shards of a split, whose colour is the class
    where its name is a colour.

    Args:
        groups: images have a KEY.npy with their group, in turn, and another number.
        captions: images have so many captions, and no class; the first is the same for images of
            one class.
    """
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    if captions:
        (root / "dataset_type.txt").write_text("retrieval\n")
    else:
        (root / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
        (root / "zeroshot_classification_templates.txt").write_text(
            "".join(f"{each}\n" for each in templates)
        )
    for split, number in {"train": n_train, "test": n_test}.items():
        shards: list[dict[str, bytes]] = [{}, {}]
        for index in range(number * len(classes)):
            label, key = index % len(classes), f"s{index:07d}"
            colour = COLOURS.get(classes[label], (128, 128, 128))
            members = {f"{key}.png": encoded(picture(rng, size, colour))}
            if captions:
                texts = [
                    f"a {classes[label]} thing",
                    *(f"{split} {index} is {n}" for n in range(1, captions)),
                ]
                members[f"{key}.txt"] = "\n".join(texts).encode()
            else:
                members[f"{key}.cls"] = str(label).encode()
            if groups:
                buffer = io.BytesIO()
                np.save(buffer, np.array([(index // len(classes)) % groups, 7]))
                members[f"{key}.npy"] = buffer.getvalue()
            shards[2 * index // (number * len(classes))] |= members
        for name, shard in enumerate(shards if number else []):
            write_tar(root / split / f"{name}.tar", shard)
        if number:
            (root / split / "nshards.txt").write_text(f"{len(shards)}\n")
    return root
