"""The mini world on disk: rendered once from its seed, in parallel, chunk by chunk, and found again
by content.

A chunk (a webdataset shard, or a hundred pictures of another split) writes its files first and its
record last; a chunk without a record that fits its files is rendered again. ``manifest.json`` is
written when all is there, so a killed build is resumed and a damaged world is mended by calling
``build_world`` once more.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.execution.base import Executor
from benchmark.execution.progress import reporter
from benchmark.mini import layout
from benchmark.mini.captions import clean_captions, seen_objects, web_caption
from benchmark.mini.config import DENSE, KARPATHY, SPLITS, Chunk, WorldConfig, chunks_of
from benchmark.mini.render import render_image, render_truth
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES
from benchmark.stages.stage import one_maker_async
from common.errors import UserError
from common.files import home, write_json, write_text
from common.locks import mark_in_use

PIECES = 4  # units for each worker, so that all end at about the same time
MANIFEST = "manifest.json"


async def build_world(config: WorldConfig, executor: Executor) -> Path:
    """The folder of the world of ``config``, rendered if it is not there yet, finished or mended if
    it is not complete.

    Raises:
        UserError: no space, or a folder that cannot be written.
    """
    root = home() / "mini" / config.key()
    mark_in_use(root)
    async with one_maker_async(root):
        if is_complete(root, config):
            return root
        missing = [chunk for chunk in chunks_of(config) if _read_record(root, chunk) is None]
        _prepare(root, config, missing)
        pieces = min(len(missing), PIECES * executor.cpu_slots)
        units = [
            executor.run(
                "render",
                render_chunks,
                root,
                config,
                missing[n::pieces],
                name=f"render {n + 1}/{pieces}",
            )
            for n in range(pieces)
        ]
        await asyncio.gather(*units)
        _finish(root, config)
    return root


def render_chunks(root: Path, config: WorldConfig, chunks: Sequence[Chunk]) -> None:
    """Render some chunks of the world at ``root``; a unit of work. One that is killed leaves
    finished chunks and their records.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    progress = reporter()
    progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    for chunk in chunks:
        files = layout.Files(root)
        members: list[tuple[str, bytes]] = []
        pictures: list[dict[str, Any]] = []
        for index in range(chunk.start, chunk.stop):
            pictures.append(_render(files, members, config, chunk, index))
            progress.advance()
        if members:
            layout.write_shard(files, f"pairs/{chunk.number:05d}.tar", members)
        text = json.dumps({"files": files.written, "pictures": pictures}, separators=(",", ":"))
        write_text(root / chunk.record, text)


def _render(
    files: layout.Files,
    members: list[tuple[str, bytes]],
    config: WorldConfig,
    chunk: Chunk,
    index: int,
) -> dict[str, Any]:
    """Write a picture, or add it to the ``members`` of a shard; returns what the lists must know of
    it."""
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
        return {"key": key}
    if chunk.split in DENSE:
        prefix, part = DENSE[chunk.split]
        return layout.write_dense(
            files, prefix, part, f"{split.first + index:012d}", picture, scene, truth
        )
    if dominant:
        part = chunk.split.removeprefix("class-")
        name = f"imagefolder/{part}/{dominant}/{part}_{index:06d}.jpg"
        files.write(name, layout.jpeg(picture))
        return {"name": name}
    part = "train" if chunk.split == "retrieval-train" else "test"
    name = f"{part}_{index:06d}.jpg"
    files.write(f"flickr30k/images/{name}", layout.jpeg(picture))
    return {
        "filename": name,
        "split": part,
        "captions": clean_captions(rng, scene, seen_objects(scene, truth)),
    }


def is_complete(root: Path, config: WorldConfig) -> bool:
    """Whether the world at ``root`` is finished and every byte of it is as it was written."""
    manifest = _read(root, MANIFEST, "lists")
    if manifest is None or manifest.get("key") != config.key():
        return False
    return all(_read_record(root, chunk) is not None for chunk in chunks_of(config))


def _read_record(root: Path, chunk: Chunk) -> dict[str, Any] | None:
    record = _read(root, chunk.record, "files")
    return (
        record if record and len(record.get("pictures", ())) == chunk.stop - chunk.start else None
    )


def _read(root: Path, name: str, files: str) -> dict[str, Any] | None:
    """The manifest or a chunk's record; None where it is missing, damaged, or does not fit the
    ``files`` that it lists."""
    try:
        record = json.loads((root / name).read_text(encoding="utf-8"))
        for file, written in record[files].items():
            if layout.fingerprint((root / file).read_bytes()) != written:
                return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record


def _finish(root: Path, config: WorldConfig) -> None:
    """Lists and annotation files from all records, then the manifest."""
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for chunk in chunks_of(config):
        record = _read_record(root, chunk)
        if record is None:
            raise UserError(
                f"mini world in {root}: {chunk.record} is gone or damaged while building; run again"
            )
        records[chunk.split] += record["pictures"]
    lists = {KARPATHY: layout.karpathy_json(records["retrieval-train"] + records["retrieval"])}
    for split, (prefix, part) in DENSE.items():
        lists |= layout.dense_lists(prefix, part, config.size, records[split])
    sizes: dict[str, list[Any]] = {}
    for name, text in lists.items():
        write_text(root / name, text)
        sizes[name] = layout.fingerprint(text.encode())
    write_json(root / MANIFEST, {"key": config.key(), "config": asdict(config), "lists": sizes})


def _prepare(root: Path, config: WorldConfig, chunks: list[Chunk]) -> None:
    """The folder, without a manifest. Refuses to start where the disk cannot hold the world: a
    picture takes about 1.3 bytes a pixel, a file at least a block."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)
    picture = max(4096, int(1.5 * config.size**2))
    files = sum((chunk.stop - chunk.start) * (6 if chunk.split in DENSE else 1) for chunk in chunks)
    needed = files * picture
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"the mini world needs about {needed / 2**20:.0f} MiB in {root}, where"
            f" {free / 2**20:.0f} MiB are free; free some space or set CLIPTEX_HOME to another"
            " folder"
        )
