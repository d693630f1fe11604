"""What a mini world is made of: sizes, splits, and the chunks it is rendered in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmark.mini.captions import CaptionNoise
from common.files import content_key

VERSION = 2  # raised whenever the same config would give other bytes
CHUNK = 100  # pictures a chunk, except for pairs, whose chunks are shards


@dataclass(frozen=True)
class WorldConfig:
    """What a mini world is made of; all of it is part of the world's key."""

    seed: int = 0
    size: int = 64  # height and width of the pictures in pixels
    pairs: int = 5_000  # image-caption pairs, written as shards of ``shard_size``
    expert_train: int = (
        2_000  # pictures with all truth from the shifted domain, to train and measure experts
    )
    expert_val: int = 200
    probe_train: int = 600  # pictures with all truth for the dense probes and detection
    val: int = 400
    class_train: int = 600  # pictures with one dominant object (classes in turn)
    class_val: int = 400
    retrieval_train: int = 50  # pictures with five clean captions, for watching a training
    retrieval: int = 400  # the same, for tests
    close_ups: float = 0.6  # share of pictures with a dominant object; the rest are wide shots
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)  # how bad the pairs' captions are

    def key(self) -> str:
        """What the world is found by: config and version of the generator."""
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
CONFIGS["sweep"] = CONFIGS["mini"]  # the same world, so that nothing is made twice


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
# splits with all truth: the folder that holds their layouts, and the split's official name
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
    found = []
    for split in SPLITS:
        total, step = (
            getattr(config, split.replace("-", "_")),
            config.shard_size if split == "pairs" else CHUNK,
        )
        found += [
            Chunk(split, n, start, min(start + step, total))
            for n, start in enumerate(range(0, total, step))
        ]
    return found
