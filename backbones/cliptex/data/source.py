"""What image-caption pairs are, wherever they lie: read by index, in an order that follows from a
seed."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.cliptex.data.remote import RemoteFile
from common.errors import UserError
from common.images import to_rgb

MAX_BAD_SHARE = 0.01
HASHED_WHOLE_BYTES = 1 << 29


@dataclass(frozen=True)
class Pair:
    """One pair: its unique key, the shard it lies in, its caption, and the encoded image (JPEG, PNG
    or WebP bytes)."""

    key: str
    shard: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read in one go: pairs ``start`` to ``start + count`` (exclusive)
    of the source."""

    name: str
    path: Path | RemoteFile
    start: int
    count: int


class BadPair(ValueError):
    """One pair cannot be read; the message says why. Counted and named by ``Tally``, an error only
    past 1 %."""


class Tally:
    """Counts what could not be read: count in = count out + ``len(bad)``."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bad: dict[str, str] = {}

    def add(self, key: str, reason: str) -> None:
        self.bad[key] = reason

    def summary(self) -> str:
        """One line: how many, and the first few of them."""
        return f"{len(self.bad)} {self.what} cannot be used, first {', '.join(list(self.bad)[:5])}"

    def check(self, total: int) -> None:
        """Raises ``UserError`` when more than 1 % (and more than one) of ``total`` is bad."""
        if len(self.bad) > max(1, MAX_BAD_SHARE * total):
            named = "; ".join(f"{key}: {reason}" for key, reason in list(self.bad.items())[:3])
            raise UserError(
                f"{len(self.bad)} of {total} {self.what} cannot be read ({named}); repair or remove"
                " them"
            )


def decode_image(data: bytes, short_side: int | None = None, *, exact: bool = True) -> np.ndarray:
    """Encoded bytes → (H, W, 3) uint8 RGB; shrunk (antialiased) to ``short_side`` pixels on the
    short side if larger.

    Args:
        exact: otherwise only as far as the decoder does it for nothing (a JPEG at 1/2, 1/4, 1/8),
            and never below twice ``short_side``: for who resamples anyway.

    Raises:
        BadPair: the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
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
        name: what the user called it.
        shards: its shards, in order.
        skipped: (key, reason) of each pair left out when it was opened (no image, or no caption).
        fingerprint: hash over shards, keys and sizes, and over all bytes where the whole is under
            512 MiB.
    """

    name: str
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return self.shards[-1].start + self.shards[-1].count if self.shards else 0

    def place_of(self, index: int) -> int:
        """Which shard pair ``index`` lies in. Raises ``IndexError`` past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return bisect.bisect_right(self.shards, index, key=lambda shard: shard.start) - 1

    def key(self, index: int) -> str:
        """Key of pair ``index``, ``SHARD/…``, unique in the source, without reading the pair."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:
        """Pair ``index``. Raises ``BadPair`` when its bytes cannot be read (they are not decoded
        here)."""
        raise NotImplementedError

    def iter_shard(self, shard: Shard) -> Iterator[int]:
        """Indices of a shard's pairs, in the order they lie on disk."""
        return iter(range(shard.start, shard.start + shard.count))

    def epoch_order(self, seed: int, epoch: int, window: int = 100_000) -> np.ndarray:
        """A permutation of all indices, (N,) int64, a function of (seed, epoch) alone.

        Shards are shuffled, then pairs within neighbouring shards that hold at least ``window``
        pairs together, so that reading stays local; a source smaller than that is shuffled as a
        whole.
        """
        random = np.random.default_rng([seed, epoch])
        order: list[np.ndarray] = []
        block: list[np.ndarray] = []
        for place in random.permutation(len(self.shards)):
            shard = self.shards[place]
            block.append(np.arange(shard.start, shard.start + shard.count))
            if sum(map(len, block)) >= window:
                order.append(random.permutation(np.concatenate(block)))
                block = []
        if block:
            order.append(random.permutation(np.concatenate(block)))
        return np.concatenate(order)
