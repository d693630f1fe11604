"""Sizes and chunks of a mini world."""

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from benchmark.mini.captions import CaptionNoise
from cliptex_common.files import content_key

VERSION = 5  # raise it when the same config gives other pictures or captions
CHUNK = 100  # pictures a chunk, except for pairs, whose chunks are shards
DENSE = ("expert_train", "expert_val", "probe_train", "val")  # have dense ground truth
SPLITS = ("pairs", *DENSE, "class_train", "class_val", "retrieval_train", "retrieval")


@dataclass(frozen=True)
class WorldConfig:
    """A mini world: pictures in each of the ``SPLITS``, and what they depend on."""

    pairs: int = 5_000  # with noisy captions
    expert_train: int = 2_000  # from the shifted domain
    expert_val: int = 100
    probe_train: int = 400
    val: int = 300
    class_train: int = 400  # with one dominant object, classes in turn
    class_val: int = 300
    retrieval_train: int = 50  # with five clean captions; monitors a training
    retrieval: int = 300
    seed: int = 0
    size: int = 64  # height and width in pixels
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)  # of the pairs

    def key(self) -> str:
        """Identity of the world: config and version of the generator."""
        return content_key({"version": VERSION, "config": asdict(self)})


MINI = WorldConfig()
SMOKE = WorldConfig(600, 160, 40, 80, 60, 100, 60, 20, 60, shard_size=150)


class Chunk(NamedTuple):
    """Pictures ``start`` to ``stop`` of a split, which are rendered together."""

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
        total, step = getattr(config, split), config.shard_size if split == "pairs" else CHUNK
        for number, start in enumerate(range(0, total, step)):
            chunks.append(Chunk(split, number, start, min(start + step, total)))
    return chunks
