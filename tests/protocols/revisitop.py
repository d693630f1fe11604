"""revisitop's fields: the scores of rankings by random features, and a cropped query.

Its example runs when it is imported; of it only the part after the ranking is executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

PROBE = "instance-retrieval/retrieval"
TOLERANCE = {"average precisions": 1e-6, "means": 1e-6}
IMAGES, QUERIES = 40, 6
BOX = [10.4, 3.5, 40.6, 30.5]
LEVELS = ("easy", "medium", "hard")


def features() -> np.ndarray:
    """(images, D), the queries' last, of unit length."""
    values = np.random.default_rng(0).normal(size=(IMAGES + QUERIES, 5))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def ground_truth() -> list[dict[str, list[int]]]:
    """Numbers of images from 0 on; the second query has no easy and the third no hard one."""
    rng = np.random.default_rng(1)
    entries = []
    for query in range(QUERIES):
        images = rng.permutation(IMAGES).tolist()
        easy, hard, junk = images[:5], images[5:12], images[12:20]
        if query == 1:
            easy = []
        if query == 2:
            hard = []
        entries.append({"easy": easy, "hard": hard, "junk": junk})
    return entries


def photograph() -> Image.Image:
    pixels = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
    return Image.fromarray(pixels)


def fields(precisions: dict[str, Any], means: dict[str, Any], query: Image.Image) -> dict[str, Any]:
    """Average precisions in percent, -1 without positives."""
    return {
        "average precisions": precisions,
        "means": means,
        "query": [list(query.size), np.asarray(query).mean(axis=(0, 1))],
    }


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    folder = checkout / "python"
    names: dict[str, Any] = {"np": np}
    exec((folder / "evaluate.py").read_text(), names)
    example = (folder / "example_evaluate.py").read_text().partition("gnd = cfg['gnd']\n")[2]
    values = features()
    names["gnd"] = [{k: np.array(v, int) for k, v in entry.items()} for entry in ground_truth()]
    names["ranks"] = np.argsort(-(values[:IMAGES] @ values[IMAGES:].T), axis=0)
    names["test_dataset"] = "roxford5k"
    exec(example, names)
    assert ".crop(cfg['gnd'][i]['bbx'])" in (folder / "example_process_images.py").read_text()
    precisions = {level: 100 * names[f"aps{level[0].upper()}"] for level in LEVELS}
    means = {level: 100 * names[f"map{level[0].upper()}"] for level in LEVELS}
    precisions = {level: np.nan_to_num(each, nan=-1) for level, each in precisions.items()}
    return {PROBE: fields(precisions, means, photograph().crop(tuple(BOX)))}


def suite() -> dict[str, dict[str, Any]]:
    import probes.catalog  # noqa: F401  registers everything
    from cliptex_common.settings import with_changes
    from probes.matching.instances import RetrievalViews
    from probes.registry import find_preset, find_task
    from tests.probes.datasets import make
    from tests.probes.whole_images import context

    spec, probe = find_task("roxford5k/retrieval")
    settings = with_changes(probe.settings_type(), find_preset("revisitop", spec, probe).settings)
    entries: list[dict[str, Any]] = [
        {key: [number + 1 for number in numbers] for key, numbers in entry.items()} | {"bbx": BOX}
        for entry in ground_truth()
    ]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        gallery, queries = (
            [f"{kind}_{number:06d}" for number in range(count)]
            for kind, count in (("image", IMAGES), ("query", QUERIES))
        )
        (root / "jpg").mkdir()
        for image in (*gallery, *queries):
            photograph().save(root / f"jpg/{image}.jpg", "PNG")  # without loss
        make.write_ground_truth(root / "gnd_roxford5k.mat", gallery, queries, entries)
        task = context(probe, spec, root, **vars(settings))
        values = torch.from_numpy(features())
        with mock.patch.object(RetrievalViews, "embeddings", lambda views: values):
            result = probe.run(task)
        query = RetrievalViews(task).image(IMAGES)
    precisions = {level: result.per_image[f"AP_{level}"] for level in LEVELS}
    means = {level: result.metrics[f"mAP_{level}"] for level in LEVELS}
    return {PROBE: fields(precisions, means, query)}
