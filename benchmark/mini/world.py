"""The mini world on disk: rendered once from its seed, in parallel, chunk by chunk, and found again by content.

A chunk (a webdataset shard, or a hundred pictures of another split) is rendered by one process. Its files are written
first, its record last; a chunk without a record that fits its files is rendered again. ``manifest.json`` is written
when all is there, so a killed build is resumed and a damaged world is mended by calling ``build_world`` once more.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError
from backbones.files import content_key, home, write_json, write_text
from benchmark.mini import layout
from benchmark.mini.chunk import render_chunk
from benchmark.mini.config import CONFIGS, DENSE, KARPATHY, SPLITS, VERSION, Chunk, WorldConfig, chunks_of
from benchmark.mini.shapes import CLASSES
from benchmark.mini.worker import render_in_worker, start_worker
from benchmark.side_by_side import cores

if TYPE_CHECKING:
    from probes.base import Progress

__all__ = ["CONFIGS", "WorldConfig", "build_world", "is_whole"]

MANIFEST = "manifest.json"


def build_world(config: WorldConfig, *, workers: int | None = None, progress: Progress | None = None) -> Path:
    """The folder of the world of ``config``, rendered if it is not there yet, finished or mended if it is not whole.

    Args:
        workers: rendering processes; default: one for each core this process may use. Never changes a byte.
        progress: told of every picture rendered.
    Raises:
        UserError: no space, a folder that cannot be written, or an unknown size.
    """
    root = home() / "mini" / config.key()
    workers = cores() if workers is None else workers
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root, progress):
            if is_whole(root, config):
                return root
            (root / MANIFEST).unlink(missing_ok=True)
            missing = [chunk for chunk in chunks_of(config) if _read_record(root, chunk) is None]
            _check_space(root, config, missing)
            _render_all(root, config, missing, workers, progress)
            _finish(root, config)
    except OSError as error:
        place = f"cannot write the mini world in {root}"
        raise UserError(
            f"{place}: {error.strerror or error}; free some space or set CLIPTEX_HOME to another folder"
        ) from error
    return root


def is_whole(root: Path, config: WorldConfig) -> bool:
    """Whether the world at ``root`` is finished and every byte of it is as it was written."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if manifest["key"] != config.key() or not _as_written(root, manifest["lists"]):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_read_record(root, chunk) is not None for chunk in chunks_of(config))


def _read_record(root: Path, chunk: Chunk) -> dict[str, Any] | None:
    """A chunk's record, or None where it is missing, damaged, or does not fit the files."""
    try:
        record = json.loads((root / chunk.record).read_text(encoding="utf-8"))
        whole = len(record["pictures"]) == chunk.stop - chunk.start and _as_written(root, record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _as_written(root: Path, files: dict[str, list[Any]]) -> bool:
    for name, (size, digest) in files.items():
        try:
            content = (root / name).read_bytes()
        except OSError:
            return False
        if len(content) != size or layout.digest(content) != digest:
            return False
    return True


def _render_all(root: Path, config: WorldConfig, chunks: list[Chunk], workers: int, progress: Progress | None) -> None:
    if not chunks:
        return
    if progress is not None:
        progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    report = progress.advance if progress is not None else lambda steps=1: None
    if workers <= 1 or len(chunks) == 1:
        for chunk in chunks:
            render_chunk(root, config, chunk, report)
        return
    # spawned, not forked: a parent with torch's threads running must not be forked
    context = multiprocessing.get_context("spawn")
    rendered, stop, told = context.Value("q", 0), context.Event(), 0
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, start_worker, (rendered, stop))
    try:
        running = {pool.submit(render_in_worker, root, config, chunk) for chunk in chunks}
        while running:
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            now = rendered.value
            report(now - told)
            told = now
    except BrokenProcessPool as error:
        raise UserError(
            "a rendering process died, perhaps for want of memory; run again to go on, or with fewer workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(root: Path, config: WorldConfig) -> None:
    """Lists and annotation files from all records, then the manifest."""
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    prints, volume = [], 0
    for chunk in chunks_of(config):
        record = _read_record(root, chunk)
        if record is None:
            raise UserError(f"mini world in {root}: {chunk.record} is gone or damaged while building; run again")
        records[chunk.split] += record["pictures"]
        prints.append(sorted(record["files"].items()))
        volume += sum(size for size, _ in record["files"].values())
    lists = {KARPATHY: layout.karpathy_json(records["retrieval-train"] + records["retrieval"])}
    for split, (prefix, part) in DENSE.items():
        lists |= layout.dense_lists(prefix, part, config.size, records[split])
    sizes: dict[str, list[Any]] = {}
    for name, text in lists.items():
        write_text(root / name, text)
        sizes[name] = [len(text.encode()), layout.digest(text.encode())]
    write_json(
        root / MANIFEST,
        {
            "key": config.key(),
            "version": VERSION,
            "config": asdict(config),
            "classes": list(CLASSES),
            "counts": {split: len(found) for split, found in records.items()},
            "bytes": volume + sum(size for size, _ in sizes.values()),
            "fingerprint": content_key([prints, sizes], length=64),
            "lists": sizes,
        },
    )


def _check_space(root: Path, config: WorldConfig, chunks: list[Chunk]) -> None:
    """Refuse to start where the disk cannot hold it: a picture takes about 1.3 bytes a pixel, a file at least a
    block."""
    each = {split: (6 if split in DENSE else 1) for split in SPLITS}
    picture = max(4096, int(1.5 * config.size**2))
    needed = sum((chunk.stop - chunk.start) * each[chunk.split] * picture for chunk in chunks)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"the mini world needs about {needed / 2**20:.0f} MiB in {root}, where {free / 2**20:.0f} MiB are free; "
            "free some space or set CLIPTEX_HOME to another folder"
        )


@contextmanager
def _only_one(root: Path, progress: Progress | None) -> Iterator[None]:
    """One builder at a time; a second one waits and then finds the world ready. The lock goes with its process."""
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None:
                progress.start("another process renders this mini world: waiting for it", 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
