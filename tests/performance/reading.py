"""Reading pairs and their labels at the size of CC3M: what grows with the number of shards, and
what does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.performance.harness import Result, bench, limited, own_home
from tests.performance.toys import write_pairs

PER_SHARD = 1000


@bench(shards=(1, 2), reads=20)
def reading(shards: tuple[int, int] = (10, 1000), reads: int = 2000) -> list[Result]:
    """10⁴ and 10⁶ tiny pairs with labels in shards of 1,000: microseconds a pair of indexing and of
    opening what is indexed, private memory a pair, and CPU of reading a pair and its label in the
    order of an epoch."""
    with own_home() as folder:
        shard = one_shard(folder)
        few, many = (measured(folder, shard, count, reads) for count in shards)
    counts = " pairs against ".join(f"{count * PER_SHARD:,}" for count in shards[::-1])
    note = f"shards of {PER_SHARD:,}, one file under many names"
    return [
        limited(
            f"{name}: {counts}",
            many[name],
            max(few[name], 1e-9),
            "bytes" if "memory" in name else "µs",
            note,
            most=1.2,
        )
        for name in few
    ]


def one_shard(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A tar of pairs, one of their labels, and what is said of the second."""
    import numpy as np

    from backbones.cliptex.labels import LabelWriter, encode

    pairs = write_pairs(folder / "pairs.tar", PER_SHARD, (16, 16))
    writer = LabelWriter(folder / "one", {"bench": 1}, ["seg"], {"seg": ["a", "b"]})
    label = encode({"seg": np.zeros((8, 8), np.uint8)})
    with writer.shard("pairs") as shard:
        for number in range(PER_SHARD):
            shard.add(f"pairs/{number:09}", label)
    summary = writer.finished("pairs")
    assert summary is not None
    return pairs, folder / "one" / "pairs.tar", summary


def measured(
    folder: Path, shard: tuple[Path, Path, dict[str, Any]], count: int, reads: int
) -> dict[str, float]:
    """Figures a pair for ``count`` shards, links to one."""
    import psutil

    from backbones.cliptex.labels import LabelStore, LabelWriter
    from backbones.cliptex.pairs import open_pairs

    pairs_tar, labels_tar, summary = shard
    names = [f"{number:05}" for number in range(count)]
    folders = folder / f"pairs-{count}", folder / f"labels-{count}"
    for target, tar in zip(folders, (pairs_tar, labels_tar), strict=True):
        target.mkdir()
        for name in names:
            (target / f"{name}.tar").hardlink_to(tar)
    writer = LabelWriter(folders[1], {"bench": 1}, ["seg"], {"seg": ["a", "b"]})
    writer.finish([{**summary, "name": name} for name in names])
    total, process = count * PER_SHARD, psutil.Process()

    def opened() -> tuple[Any, Any]:
        pairs, store = open_pairs(folders[0]), LabelStore(folders[1])
        pairs[0], store.get(pairs.key(0))
        return pairs, store

    started = time.perf_counter()
    opened()
    indexed, memory_before = time.perf_counter(), process.memory_full_info().uss
    pairs, store = opened()
    ready, memory_after = time.perf_counter(), process.memory_full_info().uss
    order = pairs.epoch_order(0, 0)
    keys = [(int(index), pairs.key(int(index))) for index in order[: 2 * reads]]
    for index, key in keys[:reads]:  # opens the files of the first window
        pairs[index], store.get(key)
    warm = time.process_time()
    for index, key in keys[reads:]:
        pairs[index], store.get(key)
    read = time.process_time()
    return {
        "indexing pairs and labels": 1e6 * (indexed - started) / total,
        "opening them again": 1e6 * (ready - indexed) / total,
        "private memory that opening takes, a pair": max(memory_after - memory_before, 0) / total,
        "reading a pair and its label": 1e6 * (read - warm) / reads,
    }
