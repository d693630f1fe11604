"""Sizes, splits and chunks of a mini world."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmark.mini.captions import CaptionNoise
from common.files import content_key

VERSION = 3  # raise it when the same config gives other bytes
CHUNK = 100  # pictures a chunk, except for pairs, whose chunks are shards


@dataclass(frozen=True)
class WorldConfig:
    """Sizes and rates of a mini world; all of them are part of its key.

    Attributes:
        size: height and width of the pictures in pixels.
        pairs: image-caption pairs, in shards of ``shard_size``.
        expert_train, expert_val: pictures with dense ground truth from the shifted domain.
        probe_train, val: pictures with dense ground truth for dense probes and detection.
        class_train, class_val: pictures with one dominant object, classes in turn.
        retrieval_train, retrieval: pictures with five clean captions; the first monitor a training.
        close_ups: share of pictures with a dominant object; the rest are wide shots.
        noise: of the pairs' captions.
    """

    seed: int = 0
    size: int = 64
    pairs: int = 5_000
    expert_train: int = 2_000
    expert_val: int = 200
    probe_train: int = 600
    val: int = 400
    class_train: int = 600
    class_val: int = 400
    retrieval_train: int = 50
    retrieval: int = 400
    close_ups: float = 0.6
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)

    def key(self) -> str:
        """Identity of the world: config and version of the generator."""
        return content_key({"version": VERSION, "config": asdict(self)})


CONFIGS: dict[str, WorldConfig] = {
    "smoke": WorldConfig(
        pairs=600,
        expert_train=160,
        expert_val=40,
        probe_train=80,
        val=60,
        class_train=100,
        class_val=60,
        retrieval_train=20,
        retrieval=60,
        shard_size=150,
    ),
    "mini": WorldConfig(),
}
CONFIGS["sweep"] = CONFIGS["mini"]  # one world for both


class _Split(NamedTuple):
    """The number of a split in the seed, its domain, and the number of its first picture."""

    stream: int
    domain: str
    first: int = 0


# the stream is part of every picture's seed, so that no two splits share a scene
SPLITS: dict[str, _Split] = {
    "pairs": _Split(0, "home"),
    "expert-train": _Split(1, "expert", 1),
    "expert-val": _Split(2, "expert", 500_001),
    "probe-train": _Split(3, "home", 1),
    "val": _Split(4, "home", 500_001),
    "class-train": _Split(5, "home"),
    "class-val": _Split(6, "home"),
    "retrieval-train": _Split(7, "home"),
    "retrieval": _Split(8, "home"),
}
# splits with dense ground truth: the folder of their layouts, and the split's official name
DENSE = {
    "expert-train": ("expert/", "train"),
    "expert-val": ("expert/", "val"),
    "probe-train": ("", "train"),
    "val": ("", "val"),
}
KARPATHY = "flickr30k/dataset_flickr30k.json"


class Chunk(NamedTuple):
    """Pictures ``start`` to ``stop`` of a split, and the chunk's number in it."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def record(self) -> str:
        return f".chunks/{self.split}-{self.number:05d}.json"


def chunks_of(config: WorldConfig) -> list[Chunk]:
    """All chunks of a world, in a fixed order."""
    chunks = []
    for split in SPLITS:
        total = getattr(config, split.replace("-", "_"))
        step = config.shard_size if split == "pairs" else CHUNK
        for number, start in enumerate(range(0, total, step)):
            chunks.append(Chunk(split, number, start, min(start + step, total)))
    return chunks
