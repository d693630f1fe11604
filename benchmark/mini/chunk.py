"""One chunk of a world: rendered by one process, its files written first and its record last."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.mini import layout
from benchmark.mini.captions import clean_captions, seen_objects, web_caption
from benchmark.mini.config import DENSE, SPLITS, Chunk, WorldConfig
from benchmark.mini.render import render_image, render_truth
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES


def render_chunk(root: Path, config: WorldConfig, chunk: Chunk, step: Callable[[], None] = lambda: None) -> None:
    """Render a chunk, write its files and then its record. ``step`` is called before every picture; what it raises ends
    the chunk, which then has no record.
    """
    files, members = layout.Files(root), []
    pictures: list[dict[str, Any]] = []
    for index in range(chunk.start, chunk.stop):
        step()
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
    record = root / chunk.record
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(record)
