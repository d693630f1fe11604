"""Sizes, splits and chunks of a mini world."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmark.mini.captions import CaptionNoise
from common.files import content_key

VERSION = 4  # raise it when the same config gives other pictures or captions
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
        noise: of the pairs' captions.
    """

    seed: int = 0
    size: int = 64
    pairs: int = 5_000
    expert_train: int = 2_000
    expert_val: int = 100
    probe_train: int = 400
    val: int = 300
    class_train: int = 400
    class_val: int = 300
    retrieval_train: int = 50
    retrieval: int = 300
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)

    def key(self) -> str:
        """Identity of the world: config and version of the generator."""
        return content_key({"version": VERSION, "config": asdict(self)})


MINI = WorldConfig()
SMOKE = WorldConfig(
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
)
CONFIGS = {"smoke": SMOKE, "mini": MINI, "sweep": MINI}  # one world for both


class Split(NamedTuple):
    """A split: its domain, its official part in the layout, the number of its first picture.

    ``layout`` is ``pairs``, ``class``, ``retrieval``, or the folder (``""`` for the root) of
    pictures with dense ground truth.
    """

    domain: str
    layout: str
    part: str = "train"
    first: int = 0


# a split's name is part of every picture's seed, so that no two splits share a scene
SPLITS = {
    "pairs": Split("home", "pairs"),
    "expert-train": Split("expert", "expert/", "train", 1),
    "expert-val": Split("expert", "expert/", "val", 500_001),
    "probe-train": Split("home", "", "train", 1),
    "val": Split("home", "", "val", 500_001),
    "class-train": Split("home", "class", "train"),
    "class-val": Split("home", "class", "val"),
    "retrieval-train": Split("home", "retrieval", "train"),
    "retrieval": Split("home", "retrieval", "test"),
}
DENSE = ("expert-train", "expert-val", "probe-train", "val")


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
