"""What ``data check --full`` says beyond whether files can be read: copies of an image under two
classes or in train and val, the balance of classes, extreme sizes, and maps of one value.

Copies are found by decoded pixels, whatever the files are: a difference hash of 64 bits of the grey
picture (Krawetz, "Kind of like that", 2013) finds candidates, and means of 8 × 8 cells decide. So a
picture that was resized or compressed again is a copy, a crop of it is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from cliptex_common.files import home, read_json_object, write_json
from cliptex_common.images import open_image, read_instances, to_rgb
from cliptex_common.progress import Progress
from probes.datasets.base import PreparedDataset, Sample, Split
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import image_source

VERSION = 1  # raised whenever the sentences change
BITS = 3  # of 64, by which hashes of copies differ at most: one of four parts is equal
LEVELS = 3.0  # of 255, by which their cells differ at most on average
FLAT = 8  # pictures whose cells differ by less are copies of none
AREA, SHAPE, SIDE = 16, 4, 32  # times the median area, long side by short side, pixels


class Look(NamedTuple):
    """What is seen of a sample.

    Attributes:
        bits: (64,) bool.
        cells: (64,) uint8.
        classes: name → how many images (1), objects or pixels.
        is_constant: whether its map has one value.
    """

    size: tuple[int, int]
    bits: np.ndarray
    cells: np.ndarray
    classes: Mapping[str, int]
    is_constant: bool


def describe_quality(data: PreparedDataset, workers: int, progress: Progress) -> list[str]:
    """A line for each finding; decodes every image, unless that was done before."""
    cache = home() / "datasets" / f"{data.name}-quality-{VERSION}-{data.fingerprint}.json"
    if cached := read_json_object(cache):
        return cached["lines"]
    progress.start(f"looking at {data.name}", sum(map(len, data.samples.values())))
    lines, looks = list[str](), dict[Split, list[Look]]()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for split in get_args(Split):
            samples = data.samples.get(split)
            if not samples:
                continue
            objects = _objects(data, split)
            looks[split] = []
            for look in pool.map(partial(look_at, data, objects), samples):
                looks[split].append(look)
                progress.advance()
            lines += [f"{split}: {line}" for line in _split_lines(data, split, looks[split])]
    lines = [*_copy_lines(data, looks), *lines]
    write_json(cache, {"lines": lines})
    return lines


def look_at(
    data: PreparedDataset, objects: Mapping[int, Mapping[str, int]], sample: Sample
) -> Look:
    """Decode a sample.

    Args:
        objects: of detection: id of an image → name of a class → how many objects.
    """
    with open_image(image_source(data.root / sample.image)) as image:
        size = image.size
        image.draft("RGB", (64, 64))  # JPEGs are decoded no larger than that needs
        grey = to_rgb(image).convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    cells = np.asarray(grey.resize((8, 8), Image.Resampling.BOX))
    classes, is_constant = dict[str, int](), False
    if data.spec.kind == "classification":
        labels = sample.target if isinstance(sample.target, list) else [sample.target]
        classes = {data.classes[label]: 1 for label in labels}
    elif objects:
        classes = dict(objects[sample.target.image_id])
    elif data.spec.kind in DENSE_TASKS:
        classes, is_constant = _look_at_map(data, sample)
    return Look(size, (np.diff(rows, axis=1) > 0).ravel(), cells.ravel(), classes, is_constant)


def _objects(data: PreparedDataset, split: Split) -> dict[int, Mapping[str, int]]:
    if not data.spec.annotations:
        return {}
    names, images = read_instances(data.root / data.spec.annotations[split])
    return {
        number: Counter(names[each["category_id"]] for each in image["annotations"])
        for number, image in images.items()
    }


def _look_at_map(data: PreparedDataset, sample: Sample) -> tuple[dict[str, int], bool]:
    spec, task = data.spec, DENSE_TASKS[data.spec.kind]
    options = task.reading(spec, len(data.classes))
    values = task.load(str(data.root / sample.target), **options).reshape(-1, task.channels)
    if not task.has_classes:
        values = values[task.labelled(values)]
        return {}, bool(len(values) and (values == values[0]).all())
    labels, counts = np.unique(values[values != spec.ignore_index], return_counts=True)
    names = [data.classes[label] for label in labels]
    return dict(zip(names, counts.tolist(), strict=True)), len(names) == 1


def _split_lines(data: PreparedDataset, split: Split, looks: Sequence[Look]) -> Iterator[str]:
    """The balance of classes, extreme sizes, and maps of one value."""
    names = [sample.image for sample in data.samples[split]]
    totals = Counter[str]()
    for look in looks:
        totals.update(look.classes)
    if totals:
        shares = [f"{name} {100 * n / totals.total():.3g} %" for name, n in totals.most_common()]
        absent = [name for name in data.classes if name not in totals]
        text = f"most frequent class {shares[0]}, rarest {shares[-1]}"
        if absent:
            text += f", {len(absent)} of {len(data.classes)} absent, such as {absent[0]}"
        yield text
    sizes = np.array([look.size for look in looks])
    area = sizes.prod(axis=1) / np.median(sizes.prod(axis=1))
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    typical = np.median(short) >= SIDE
    extreme = (
        (area > AREA) | (area < 1 / AREA) | (long > SHAPE * short) | (typical & (short < SIDE))
    )
    if extreme.any():
        example = int(extreme.argmax())
        width, height = sizes[example]
        yield (
            f"{extreme.sum()} images of extreme size or shape, such as {names[example]}"
            f" ({width}×{height})"
        )
    constant = [name for name, look in zip(names, looks, strict=True) if look.is_constant]
    if constant:
        yield f"{len(constant)} maps have one value, such as that of {constant[0]}"


def _copy_lines(data: PreparedDataset, looks: Mapping[Split, Sequence[Look]]) -> list[str]:
    """Images of val that train shows, too, and images under two classes of a split."""
    samples = [(split, each) for split in looks for each in data.samples[split]]
    each_look = [look for split in looks.values() for look in split]
    shared, torn = dict[str, str](), dict[str, str]()
    for first, second in copies(
        np.array([look.bits for look in each_look]), np.array([look.cells for look in each_look])
    ):
        (split, original), (split_of_copy, copy) = samples[first], samples[second]
        if split != split_of_copy:
            shared.setdefault(copy.image, original.image)
        elif data.spec.kind == "classification" and original.target != copy.target:
            torn.setdefault(copy.image, original.image)
    of_val = f"of {len(looks.get('val', ()))} val images are copies of train images, by pixels"
    of_class = "images are copies of one of another class in the same split, by pixels"
    return [
        f"{len(pairs)} {text}, such as {' of '.join(next(iter(pairs.items())))}"
        for pairs, text in ((shared, of_val), (torn, of_class))
        if pairs
    ]


def copies(bits: np.ndarray, cells: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of numbers of pictures that are copies, the smaller number first.

    Args:
        bits, cells: (N, 64) of each picture, see ``Look``.
    """
    signs = 2 * bits.astype(np.float32) - 1
    is_flat = np.ptp(cells, axis=1) < FLAT
    pairs = set[tuple[int, int]]()
    for part in np.packbits(bits, axis=1).view(np.uint16).T:
        order = np.argsort(part, kind="stable")
        order = order[~is_flat[order]]
        for rows in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            alike = signs[rows] @ signs[rows].T >= bits.shape[1] - 2 * BITS
            first, second = (rows[each] for each in np.nonzero(np.triu(alike, 1)))
            gaps = np.abs(cells[first].astype(np.int16) - cells[second]).mean(axis=1)
            is_copy = gaps <= LEVELS
            pairs.update(zip(first[is_copy].tolist(), second[is_copy].tolist(), strict=True))
    return sorted(pairs)
