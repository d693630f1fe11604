"""J and F of masks, and of objects over the frames of videos, as the DAVIS challenge's own code
scores them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.metrics import contour_accuracy, region_similarity
from probes.matching.videos import (
    Frame,
    read_masks,
    score_object,
)
from tests.probes.datasets.make import save
from tests.probes.matching.layouts import make_davis, noisy_scene

SOURCE, COMMIT = "davisvideochallenge/davis2017-evaluation", "ac7c43f"
DIFFERS: dict[str, str] = {}
TOLERANCE = dict.fromkeys(("J", "F", "objects"), 1e-6)
FRAMES = 6


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and others near them, of several sizes; some empty, full, or at the border."""
    masks = []
    for seed, size in enumerate([(60, 91), (200, 133), (97, 300)]):
        random = np.random.default_rng(seed)
        blobs = np.kron(random.random((5, 7)) < 0.4, np.ones((size[0] // 5, size[1] // 7), bool))
        first, second = np.zeros((2, *size), bool)
        first[: len(blobs), : blobs.shape[1]] = blobs
        second[-len(blobs) :, -blobs.shape[1] :] = blobs
        masks += [(first, second), (first, np.roll(first, seed + 2, axis=1)), (first, ~second)]
        masks += [(first, first & False), (first | True, second), (first & False, first & False)]
    return masks


def write(folder: Path) -> None:
    """Two videos with some unknown pixels, and results that lag behind and forget an object."""
    scenes = {name: noisy_scene(seed) for seed, name in enumerate(("bear", "camel"))}
    make_davis(folder / "DAVIS", scenes, FRAMES, step=8)
    for name in scenes:
        for number in range(FRAMES):
            path = folder / f"DAVIS/Annotations/480p/{name}/{number:05}.png"
            masks = read_masks(path)
            late = np.roll(masks, 4 * number, axis=1)
            late[late == (2 if number > 3 else 9)] = 0
            save(folder / f"results/{name}/{number:05}.png", late)
            masks[:5] = 255
            save(path, masks)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    from davis2017.evaluation import DAVISEvaluation
    from davis2017.metrics import db_eval_boundary, db_eval_iou

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        evaluation = DAVISEvaluation(f"{folder}/DAVIS", "semi-supervised", "val")
        results = evaluation.evaluate(f"{folder}/results")
    return {
        "masks": {
            "J": [float(db_eval_iou(*pair)) for pair in pairs()],
            "F": [float(db_eval_boundary(*pair)) for pair in pairs()],
            "objects": [results["J"]["M"], results["F"]["M"]],
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    scores = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for video in ("bear", "camel"):
            paths = [f"{video}/{number:05}.png" for number in range(FRAMES)]
            frames = [
                Frame(
                    folder,
                    read_masks(folder / f"DAVIS/Annotations/480p/{path}"),
                    read_masks(folder / f"results/{path}"),
                )
                for path in paths
            ]
            scores += [score_object(frames[1:-1], label) for label in (1, 2)]
    return {
        "masks": {
            "J": [region_similarity(*pair) for pair in pairs()],
            "F": [contour_accuracy(*pair) for pair in pairs()],
            "objects": np.array(scores).T,
        }
    }
