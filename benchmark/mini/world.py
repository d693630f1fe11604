"""The mini world on disk, rendered once from its seed, in parallel, chunk by chunk.

A chunk is a webdataset shard, or a hundred pictures of another split. It writes its files first and
its record, with their sizes, last; ``manifest.json`` is written at the end. So ``build_world``
resumes a killed build, and renders chunks again whose files are missing or cut short.
"""

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from webdataset import TarWriter

from benchmark.execution.base import Executor
from benchmark.execution.exclusive import exclusive_async
from benchmark.execution.progress import reporter
from benchmark.mini import layout
from benchmark.mini.captions import clean_captions, seen_objects, web_caption
from benchmark.mini.config import DENSE, SPLITS, Chunk, WorldConfig, chunks_of
from benchmark.mini.render import draw_picture
from benchmark.mini.shapes import CLASSES
from cliptex_common.errors import UserError
from cliptex_common.files import home, write_text
from cliptex_common.locks import mark_in_use

PIECES = 4  # units per worker, so that all end at about the same time
MANIFEST = "manifest.json"


async def build_world(config: WorldConfig, executor: Executor) -> Path:
    """The folder of a world, rendered or completed as needed."""
    root = home() / "mini" / config.key()
    mark_in_use(root)
    async with exclusive_async(root):
        if is_complete(root, config):
            return root
        root.mkdir(parents=True, exist_ok=True)
        (root / MANIFEST).unlink(missing_ok=True)
        missing = [chunk for chunk in chunks_of(config) if _read(root, chunk.record) is None]
        pieces = min(len(missing), PIECES * executor.cpu_slots)
        units = []
        for n in range(pieces):
            unit = root, config, missing[n::pieces]
            name = f"render {n + 1}/{pieces}"
            units.append(
                executor.run(render_chunks, *unit, name=name, kind="render", on_device=False)
            )
        await asyncio.gather(*units)
        _write_lists(root, config)
    return root


def render_chunks(root: Path, config: WorldConfig, chunks: Sequence[Chunk]) -> None:
    """Render some chunks of the world at ``root``; a resumable unit of work."""
    progress = reporter()
    progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    for chunk in chunks:
        files: dict[str, bytes] = {}
        shard, pictures = io.BytesIO(), []
        with TarWriter(shard, mtime=0) as writer:  # the same pairs give the same bytes
            for index in range(chunk.start, chunk.stop):
                pictures.append(_render(files, writer, config, chunk.split, index))
                progress.advance()
        if chunk.split == "pairs":
            files[f"pairs/{chunk.number:05d}.tar"] = shard.getvalue()
        _write(root, files, chunk.record, pictures)


def _render(
    files: dict[str, bytes], shard: TarWriter, config: WorldConfig, split: str, index: int
) -> dict[str, Any]:
    """Add a picture to ``files``, or a pair to ``shard``; returns its entry in list files."""
    rng = Random(f"{config.seed}/{split}/{index}")
    kind, _, part = split.rpartition("_")
    subject = CLASSES[index % len(CLASSES)] if kind == "class" else None
    domain = "expert" if kind == "expert" else "home"
    scene, pixels, target = draw_picture(rng, domain, config.size, subject)
    picture = layout.encode_image(pixels, format="JPEG", quality=92, subsampling=0)  # it is small
    if split in DENSE:
        stem, prefix = f"{part}{index:06d}", "expert/" if kind == "expert" else ""
        dense = layout.dense_files(part, stem, picture, target)
        files |= {f"{prefix}{name}": content for name, content in dense.items()}
        return {"stem": stem, "annotations": layout.instance_annotations(scene, target)}
    if subject:
        files[f"imagefolder/{part}/{subject}/{index:06d}.jpg"] = picture
        return {}
    seen = seen_objects(scene, target)
    if split == "pairs":
        caption, key = web_caption(rng, scene, seen, config.noise), f"{index:09d}"
        metadata = {"key": key, "caption": caption, "width": config.size, "height": config.size}
        shard.write({"__key__": key, "jpg": picture, "txt": caption, "json": metadata})
        return {}
    part = "train" if part == "train" else "test"
    name = f"{part}_{index:06d}.jpg"
    files[f"flickr30k/images/{name}"] = picture
    return {"filename": name, "split": part, "captions": clean_captions(scene, seen)}


def _write(root: Path, files: Mapping[str, bytes], record: str, content: Any) -> None:
    """Write ``files``, then a record of their sizes and of ``content``."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sizes = {name: len(data) for name, data in files.items()}
    write_text(root / record, json.dumps({"files": sizes, "content": content}))


def _read(root: Path, record: str) -> Any:
    """The content of a record; None if it, or one of its files, is missing or cut short."""
    try:
        values = json.loads((root / record).read_text(encoding="utf-8"))
        if any((root / name).stat().st_size != size for name, size in values["files"].items()):
            return None
        return values["content"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def is_complete(root: Path, config: WorldConfig) -> bool:
    """Whether the world at ``root`` is finished and undamaged."""
    records = (chunk.record for chunk in chunks_of(config))
    return all(_read(root, record) is not None for record in (MANIFEST, *records))


def _write_lists(root: Path, config: WorldConfig) -> None:
    """Write lists and annotation files from all records, then the manifest."""
    pictures: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for chunk in chunks_of(config):
        content = _read(root, chunk.record)
        if content is None:
            raise UserError(
                f"mini world in {root}: {chunk.record} was damaged meanwhile; run the command again"
            )
        pictures[chunk.split] += content
    captions = layout.karpathy_json(pictures["retrieval_train"] + pictures["retrieval"])
    lists = {"flickr30k/dataset_flickr30k.json": captions}
    for split in DENSE:
        prefix, part = ("expert/" if "expert" in split else ""), split.rpartition("_")[2]
        texts = layout.dense_lists(part, config.size, pictures[split])
        lists |= {f"{prefix}{name}": text for name, text in texts.items()}
    _write(root, {name: text.encode() for name, text in lists.items()}, MANIFEST, asdict(config))
