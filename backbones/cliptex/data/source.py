"""Image-caption pairs of any layout: read by index, in an order that follows from a seed."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.images import open_image, to_rgb

MAX_BAD_SHARE = 0.01
FULL_HASH_BYTES = 1 << 29  # sources up to this size are hashed completely


@dataclass(frozen=True)
class Pair:
    """One pair: its unique key, its caption, and the encoded image (JPEG, PNG or WebP bytes)."""

    key: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read sequentially: pairs ``start`` to ``start + count``
    (exclusive) of the source."""

    name: str
    path: Path
    start: int
    count: int


class BadPair(ValueError):
    """A pair cannot be read or labelled; the message says why. An error only past 1 %, see
    ``FailureCounter``."""


class FailureCounter:
    """Counts items that cannot be used.

    Attributes:
        bad: key → reason.
    """

    def __init__(self, items: str) -> None:
        self.items = items
        self.bad: dict[str, str] = {}

    def summary(self) -> str:
        """One line: how many, and the first few of them."""
        examples = ", ".join(list(self.bad)[:5])
        return f"{len(self.bad)} {self.items} cannot be used, first {examples}"

    def check(self, total: int) -> None:
        """Raises ``UserError`` if more than 1 % (and more than one) of ``total`` failed."""
        if len(self.bad) > max(1, MAX_BAD_SHARE * total):
            examples = "; ".join(f"{key}: {why}" for key, why in list(self.bad.items())[:3])
            raise UserError(
                f"{len(self.bad)} of {total} {self.items} cannot be read ({examples}); repair or"
                " remove them"
            )


def decode_image(data: bytes, short_side: int | None = None, *, exact: bool = True) -> np.ndarray:
    """Encoded bytes → (H, W, 3) uint8 RGB; a larger image is shrunk (antialiased) to ``short_side``
    pixels on the short side.

    Args:
        exact: otherwise shrink only as far as the decoder does at no cost (a JPEG at 1/2, 1/4, 1/8;
            never below twice ``short_side``): for callers that resample anyway.

    Raises:
        BadPair: the bytes are not a complete image.
    """
    try:
        with open_image(io.BytesIO(data)) as image:
            if short_side:
                image.draft("RGB", (short_side * 2, short_side * 2))
            decoded = to_rgb(image)
            if short_side and exact and min(decoded.size) > short_side:
                scale = short_side / min(decoded.size)
                size = (
                    max(short_side, round(decoded.width * scale)),
                    max(short_side, round(decoded.height * scale)),
                )
                decoded = decoded.resize(size, Image.Resampling.BICUBIC)
            return np.array(decoded)
    except Exception as error:  # PIL raises nearly anything on corrupt bytes
        raise BadPair(f"not a readable image ({type(error).__name__}: {error})") from error


class PairSource:
    """Pairs in a stable order, read by index. Open with ``open_pairs``; cheap to pickle and to
    share with workers.

    Attributes:
        name: as the user wrote it.
        shards: in order.
        skipped: (key, reason) of each pair left out when the source was opened (no image, or no
            caption).
        fingerprint: hash over shards, keys and sizes, and over all bytes of sources under 512 MiB.
    """

    name: str
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].count if self.shards else 0

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds pair ``index``. Raises ``IndexError`` past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bisect.bisect_right(self.shards, index, key=lambda shard: shard.start) - 1

    def key(self, index: int) -> str:
        """Key of pair ``index``, ``SHARD/…``, unique in the source, without reading the pair."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:
        """Pair ``index``. Raises ``BadPair`` if its bytes cannot be read (they are not decoded
        here)."""
        raise NotImplementedError

    def iter_shard(self, shard: Shard) -> Iterator[int]:
        """Indices of a shard's pairs, in the order of the file."""
        return iter(range(shard.start, shard.start + shard.count))

    def epoch_order(self, seed: int, epoch: int, window: int = 100_000) -> np.ndarray:
        """A permutation of all indices, (N,) int64, a function of (seed, epoch) alone.

        Shards are shuffled, then pairs within neighbouring shards that hold at least ``window``
        pairs together, so that reading stays local. A smaller source is shuffled as one.
        """
        random = np.random.default_rng([seed, epoch])
        order: list[np.ndarray] = []
        block: list[np.ndarray] = []
        for number in random.permutation(len(self.shards)):
            shard = self.shards[number]
            block.append(np.arange(shard.start, shard.start + shard.count))
            if sum(map(len, block)) >= window:
                order.append(random.permutation(np.concatenate(block)))
                block = []
        if block:
            order.append(random.permutation(np.concatenate(block)))
        return np.concatenate(order)
