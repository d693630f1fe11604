"""Pictures of one coloured shape on a slanted ground, with captions and exact labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from backbones.cliptex.pairs import PairSource, open_pairs
from tests import recorder
from tests.probes.datasets.make import encoded, write_tar

CLASSES = ("background", "disc", "square")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 70, 220),
    "yellow": (220, 210, 50),
}
SIDES = ("left", "right")


def scene(index: int, size: int = 32) -> tuple[np.ndarray, str, dict[str, np.ndarray]]:
    """(size, size, 3) uint8 image, caption, and its ``seg``, ``depth`` (inverse) and ``normal``."""
    random = np.random.default_rng(index)
    colour = random.choice(list(COLOURS))
    shape = random.choice(CLASSES[1:])
    side = random.integers(2)
    y, x = np.mgrid[:size, :size] + 0.5
    cx, cy = size * (0.28 if side == 0 else 0.72), size * random.uniform(0.3, 0.7)
    r = size * random.uniform(0.12, 0.25)
    distance = np.hypot(x - cx, y - cy)
    if shape == "square":
        distance = np.maximum(abs(x - cx), abs(y - cy))
    inside = distance < r
    ground = (60 + 120 * y / size)[..., None] * random.uniform(0.7, 1, 3)
    image = np.where(inside[..., None], COLOURS[colour], ground) + random.normal(
        0, 8, (size, size, 3)
    )
    tilt = random.uniform(-0.6, 0.6)
    normal = np.zeros((3, size, size), np.float32)
    normal[0], normal[2] = np.sin(tilt), np.cos(tilt)
    normal[:, inside] = np.array([0, 0, 1], np.float32)[:, None]
    labels = {
        "seg": np.where(inside, CLASSES.index(shape), 0).astype(np.uint8),
        "depth": np.where(inside, 2.0, y / size + 0.2).astype(np.float32),
        "normal": normal,
    }
    return image.clip(0, 255).astype(np.uint8), f"a {colour} {shape} on the {SIDES[side]}", labels


def write_pairs(folder: Path, count: int, shards: int = 2, size: int = 32) -> Path:
    """``count`` scenes as webdataset shards, as img2dataset writes them (jpg/png, txt and json)."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for index in range(shard, count, shards):
            image, caption, _ = scene(index, size)
            key = f"{index:09d}"
            members[f"{key}.json"] = json.dumps(
                {"caption": caption, "key": key, "status": "success"}
            ).encode()
            members[f"{key}.png"] = encoded(image)
            members[f"{key}.txt"] = caption.encode()
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def damaged_pairs(
    folder: Path, count: int = 200, corrupt: tuple[int, ...] = (), silent: tuple[int, ...] = ()
) -> PairSource:
    """A shard of scenes, some with a corrupt image or an empty caption."""
    members = {}
    for index in range(count):
        image, caption, _ = scene(index)
        members[f"{index:09d}.png"] = b"corrupt" if index in corrupt else encoded(image)
        members[f"{index:09d}.txt"] = b"  " if index in silent else caption.encode()
    return open_pairs(write_tar(folder / "00000.tar", members))


class ToyLabels:
    """Exact labels of the scenes by key; has the interface of a label store."""

    classes: ClassVar = {"seg": CLASSES}

    def __init__(
        self,
        tasks: tuple[str, ...] = ("seg", "depth", "normal"),
        size: int = 32,
        missing: tuple[str, ...] = (),
    ):
        self.tasks, self.size, self.missing, self.reads = tasks, size, missing, 0
        self.identity = hashlib.sha256(repr((tasks, size, missing)).encode()).hexdigest()

    def get(self, key: str, tasks=None) -> dict[str, np.ndarray]:
        self.reads += 1
        if key in self.missing:
            raise KeyError(key)
        labels = scene(int(key.split("/")[-1]), self.size)[2]
        return {task: labels[task] for task in self.tasks if tasks is None or task in tasks}

    def tasks_of(self, key: str) -> tuple[str, ...]:
        return () if key in self.missing else self.tasks


class Recorder(recorder.Recorder):
    """Counts the steps of training."""

    def advance(self, steps: int = 1) -> None:
        if self.started[-1][0].startswith("train"):
            super().advance(steps)
