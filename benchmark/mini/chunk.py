"""Chunks of a world, a unit of work: each chunk's files are written first and its record last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.files import write_text
from benchmark.execution.progress import Reporter, reporter
from benchmark.mini import layout
from benchmark.mini.captions import clean_captions, seen_objects, web_caption
from benchmark.mini.config import DENSE, SPLITS, Chunk, WorldConfig
from benchmark.mini.render import render_image, render_truth
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES


def render_chunks(root: Path, config: WorldConfig, chunks: Sequence[Chunk]) -> None:
    """Render some chunks of the world at ``root``; a unit of work. One that is killed leaves finished chunks and their records.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    progress = reporter()
    progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    for chunk in chunks:
        _render(root, config, chunk, progress)


def _render(root: Path, config: WorldConfig, chunk: Chunk, progress: Reporter) -> None:
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
        progress.advance()
    if members:
        layout.write_tar(files, f"pairs/{chunk.number:05d}.tar", members)
    text = json.dumps({"files": files.written, "pictures": pictures}, separators=(",", ":"))
    write_text(root / chunk.record, text)
