"""The mini world on disk: rendered once from its seed, in parallel, chunk by chunk, and found again by content.

A chunk (a webdataset shard, or a hundred pictures of another split) is rendered by one process. Its files are written
first, its record last; a chunk without a record that fits its files is rendered again. ``manifest.json`` is written
when all is there, so a killed build is resumed and a damaged world is mended by calling ``build_world`` once more.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from backbones.errors import UserError
from backbones.files import content_key, home, write_json, write_text
from benchmark.mini import layout
from benchmark.mini.captions import CaptionNoise, clean_captions, seen_objects, web_caption
from benchmark.mini.render import render_image, render_truth
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES

if TYPE_CHECKING:
    from probes.base import Progress

VERSION = 1  # raised whenever the same config would give other bytes
CHUNK = 100  # pictures a chunk, except for pairs, whose chunks are shards
RECORDS = ".chunks"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class WorldConfig:
    """What a mini world is made of; all of it is part of the world's key.

    Attributes:
        seed: of everything.
        size: height and width of the pictures in pixels.
        pairs: image-caption pairs, written as shards of ``shard_size``.
        expert_train, expert_val: pictures with all truth from the shifted domain, to train and measure experts.
        probe_train, val: pictures with all truth for the dense probes and detection.
        class_train, class_val: pictures with one dominant object (classes in turn).
        retrieval_train, retrieval: pictures with five clean captions; the first are for watching a training, the
            second for tests.
        close_ups: share of pictures with a dominant object; the rest are wide shots.
        noise: how bad the pairs' captions are.
    """

    seed: int = 0
    size: int = 64
    pairs: int = 12_000
    expert_train: int = 1_800
    expert_val: int = 200
    probe_train: int = 800
    val: int = 400
    class_train: int = 1_000
    class_val: int = 400
    retrieval_train: int = 100
    retrieval: int = 400
    close_ups: float = 0.6
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 512:
            raise UserError(f"mini world: size={self.size}; choose 32 to 512 pixels")
        counts = {
            name: value
            for name, value in asdict(self).items()
            if isinstance(value, int) and name not in ("seed", "size")
        }
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"mini world: {name}={value}; every split needs at least one picture")
        rates = {"close_ups": self.close_ups, **asdict(self.noise)}
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise UserError(f"mini world: {name}={rate}; a rate lies between 0 and 1")
        if self.seed < 0:
            raise UserError(f"mini world: seed={self.seed}; choose 0 or more")

    def key(self) -> str:
        """What the world is found by: config and version of the generator."""
        return content_key({"version": VERSION, "config": asdict(self)})


CONFIGS: dict[str, WorldConfig] = {
    "smoke": WorldConfig(
        pairs=600, expert_train=160, expert_val=40, probe_train=80, val=60, class_train=100, class_val=60,
        retrieval_train=20, retrieval=60, shard_size=150,
    ),
    "mini": WorldConfig(),
}  # fmt: skip


class _Split(NamedTuple):
    """How a split is made: its number in the seed, its domain, and the number of its first picture."""

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
        return f"{RECORDS}/{self.split}-{self.number:05d}.json"


def chunks_of(config: WorldConfig) -> list[Chunk]:
    """All chunks of a world, in a fixed order."""
    found = []
    for split in SPLITS:
        total, step = getattr(config, split.replace("-", "_")), config.shard_size if split == "pairs" else CHUNK
        found += [Chunk(split, n, start, min(start + step, total)) for n, start in enumerate(range(0, total, step))]
    return found


def build_world(config: WorldConfig, *, workers: int | None = None, progress: Progress | None = None) -> Path:
    """The folder of the world of ``config``, rendered if it is not there yet, finished or mended if it is not whole.

    Args:
        workers: rendering processes; default: one for each core this process may use. Never changes a byte.
        progress: told of every picture rendered.
    Raises:
        UserError: no space, a folder that cannot be written, or an unknown size.
    """
    root = home() / "mini" / config.key()
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root):
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


def render_chunk(root: Path, config: WorldConfig, chunk: Chunk) -> int:
    """Render a chunk, write its files and then its record; returns the number of pictures."""
    files, members = layout.Files(root), []
    pictures: list[dict[str, Any]] = []
    for index in range(chunk.start, chunk.stop):
        split = SPLITS[chunk.split]
        rng = np.random.default_rng([config.seed, split.stream, index])
        dominant = CLASSES[index % len(CLASSES)] if chunk.split.startswith("class-") else None
        scene = make_scene(rng, split.domain, dominant=dominant, close_ups=config.close_ups)
        truth = render_truth(scene, config.size)
        picture = render_image(scene, config.size, rng)
        if chunk.split == "pairs":
            key = f"{chunk.number:05d}{index - chunk.start:04d}"
            caption = web_caption(rng, scene, seen_objects(scene, truth), config.noise)
            members += layout.pair_members(key, layout.jpeg(picture), caption.text, config.size)
            pictures.append({"key": key})
        elif chunk.split in DENSE:
            prefix, part = DENSE[chunk.split]
            stem = f"{split.first + index:012d}"
            pictures.append(layout.write_dense(files, prefix, part, stem, picture, scene, truth))
        elif chunk.split.startswith("class-"):
            part = chunk.split.removeprefix("class-")
            name = f"imagefolder/{part}/{dominant}/{part}_{index:06d}.jpg"
            files.write(name, layout.jpeg(picture))
            pictures.append({"name": name})
        else:
            part = "train" if chunk.split == "retrieval-train" else "test"
            name = f"{part}_{index:06d}.jpg"
            files.write(f"flickr30k/images/{name}", layout.jpeg(picture))
            captions = clean_captions(rng, scene, seen_objects(scene, truth))
            pictures.append({"filename": name, "split": part, "captions": captions})
    if members:
        layout.write_tar(files, f"pairs/{chunk.number:05d}.tar", members)
    text = json.dumps({"files": files.written, "pictures": pictures}, separators=(",", ":"))
    write_text(root / chunk.record, text)
    return len(pictures)


def _render_all(root: Path, config: WorldConfig, chunks: list[Chunk], workers: int, progress: Progress | None) -> None:
    if not chunks:
        return
    if progress is not None:
        progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    report = progress.advance if progress is not None else lambda steps: None
    if workers <= 1 or len(chunks) == 1:
        for chunk in chunks:
            report(render_chunk(root, config, chunk))
        return
    # spawned, not forked: a parent with torch's threads running must not be forked
    pool = ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn"), _start_worker)
    try:
        waiting = iter(chunks)
        running = {pool.submit(render_chunk, root, config, chunk) for chunk in itertools.islice(waiting, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                report(future.result())
                running |= {pool.submit(render_chunk, root, config, chunk) for chunk in itertools.islice(waiting, 1)}
    except BrokenProcessPool as error:
        raise UserError(
            "a rendering process died, perhaps for want of memory; run again to go on, or with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """A worker ends with its parent, even when the parent was killed and could not say so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
    lists: list[str] = []
    for split, (prefix, part) in DENSE.items():
        lists += layout.write_dense_lists(root, prefix, part, config.size, records[split])
    lists += layout.write_karpathy(root, KARPATHY, records["retrieval-train"] + records["retrieval"])
    contents = {name: (root / name).read_bytes() for name in lists}
    sizes = {name: [len(content), layout.digest(content)] for name, content in contents.items()}
    write_json(
        root / MANIFEST,
        {
            "key": config.key(),
            "version": VERSION,
            "config": asdict(config),
            "classes": list(CLASSES),
            "counts": {split: len(found) for split, found in records.items()},
            "bytes": volume + sum(len(content) for content in contents.values()),
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
def _only_one(root: Path) -> Iterator[None]:
    """One builder at a time; a second one waits and then finds the world ready. The lock goes with its process."""
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
