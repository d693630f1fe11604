"""The mini world on disk, rendered once from its seed, in parallel, chunk by chunk.

A chunk is a webdataset shard, or a hundred pictures of another split. It writes its files first and
its record last; a chunk whose record does not fit its files is rendered again. ``manifest.json`` is
written at the end, so ``build_world`` resumes a killed build and repairs a damaged world.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from benchmark.execution.base import Executor
from benchmark.execution.exclusive import exclusive_async
from benchmark.execution.progress import reporter
from benchmark.mini import layout
from benchmark.mini.captions import clean_captions, seen_objects, web_caption
from benchmark.mini.config import DENSE, SPLITS, Chunk, WorldConfig, chunks_of
from benchmark.mini.render import draw_picture
from benchmark.mini.shapes import CLASSES
from common.errors import UserError
from common.files import home, write_json, write_text
from common.locks import mark_in_use

PIECES = 4  # units per worker, so that all end at about the same time
MANIFEST = "manifest.json"


async def build_world(config: WorldConfig, executor: Executor) -> Path:
    """The folder of a world, rendered or completed as needed.

    Raises:
        UserError: the disk is too small.
    """
    root = home() / "mini" / config.key()
    mark_in_use(root)
    async with exclusive_async(root):
        if is_complete(root, config):
            return root
        missing = [chunk for chunk in chunks_of(config) if _read_record(root, chunk) is None]
        _prepare(root, config, missing)
        pieces = min(len(missing), PIECES * executor.cpu_slots)
        units = []
        for n in range(pieces):
            chunks, name = missing[n::pieces], f"render {n + 1}/{pieces}"
            units.append(executor.run("render", render_chunks, root, config, chunks, name=name))
        await asyncio.gather(*units)
        _finish(root, config)
    return root


def render_chunks(root: Path, config: WorldConfig, chunks: Sequence[Chunk]) -> None:
    """Render some chunks of the world at ``root``; a resumable unit of work."""
    progress = reporter()
    progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    for chunk in chunks:
        files, pictures = layout.Files(root), []
        for index in range(chunk.start, chunk.stop):
            pictures.append(_render(files, config, chunk.split, index))
            progress.advance()
        if chunk.split == "pairs":
            samples = [picture.pop("sample") for picture in pictures]
            files.write(f"pairs/{chunk.number:05d}.tar", layout.shard(samples))
        text = json.dumps({"files": files.written, "pictures": pictures}, separators=(",", ":"))
        write_text(root / chunk.record, text)


def _render(files: layout.Files, config: WorldConfig, name: str, index: int) -> dict[str, Any]:
    """Write a picture, or return it with its caption as the ``sample`` of a shard."""
    split, rng = SPLITS[name], Random(f"{config.seed}/{name}/{index}")
    subject = CLASSES[index % len(CLASSES)] if split.layout == "class" else None
    scene, pixels, ground_truth = draw_picture(rng, split.domain, config.size, subject)
    picture = layout.jpeg(pixels)
    if name in DENSE:
        stem = f"{split.first + index:012d}"
        return layout.write_dense(files, split, stem, picture, scene, ground_truth)
    if subject:
        files.write(f"imagefolder/{split.part}/{subject}/{index:06d}.jpg", picture)
        return {}
    seen = seen_objects(scene, ground_truth)
    if split.layout == "pairs":
        caption = web_caption(rng, scene, seen, config.noise)
        return {"sample": layout.pair_sample(f"{index:09d}", picture, caption, config.size)}
    file = f"{split.part}_{index:06d}.jpg"
    files.write(f"flickr30k/images/{file}", picture)
    captions = clean_captions(rng, scene, seen)
    return {"filename": file, "split": split.part, "captions": captions}


def is_complete(root: Path, config: WorldConfig) -> bool:
    """Whether the world at ``root`` is finished and undamaged."""
    manifest = _read(root, MANIFEST, "lists")
    if manifest is None or manifest.get("key") != config.key():
        return False
    return all(_read_record(root, chunk) is not None for chunk in chunks_of(config))


def _read_record(root: Path, chunk: Chunk) -> dict[str, Any] | None:
    record = _read(root, chunk.record, "files")
    if record and len(record.get("pictures", ())) == chunk.stop - chunk.start:
        return record
    return None


def _read(root: Path, name: str, files: str) -> dict[str, Any] | None:
    """The manifest or a record; None if it is missing or does not fit the ``files`` it lists."""
    try:
        record = json.loads((root / name).read_text(encoding="utf-8"))
        for file, fingerprint in record[files].items():
            if layout.fingerprint((root / file).read_bytes()) != fingerprint:
                return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record


def _finish(root: Path, config: WorldConfig) -> None:
    """Write lists and annotation files from all records, then the manifest."""
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for chunk in chunks_of(config):
        record = _read_record(root, chunk)
        if record is None:
            raise UserError(
                f"mini world in {root}: {chunk.record} was damaged meanwhile; run the command again"
            )
        records[chunk.split] += record["pictures"]
    captions = layout.karpathy_json(records["retrieval-train"] + records["retrieval"])
    lists = {"flickr30k/dataset_flickr30k.json": captions}
    for split in DENSE:
        lists |= layout.dense_lists(SPLITS[split], config.size, records[split])
    sizes: dict[str, list[Any]] = {}
    for name, text in lists.items():
        write_text(root / name, text)
        sizes[name] = layout.fingerprint(text.encode())
    write_json(root / MANIFEST, {"key": config.key(), "config": asdict(config), "lists": sizes})


def _prepare(root: Path, config: WorldConfig, chunks: list[Chunk]) -> None:
    """Create the folder without a manifest; raise ``UserError`` if the disk is too small.

    A picture takes about 1.3 bytes a pixel, and a file at least a block.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)
    files = sum((chunk.stop - chunk.start) * (6 if chunk.split in DENSE else 1) for chunk in chunks)
    needed = files * max(4096, int(1.5 * config.size**2))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"the mini world needs {needed / 1e6:.0f} MB in {root}, {free / 1e6:.0f} MB are free;"
            " free some space or set CLIPTEX_HOME to another folder"
        )
