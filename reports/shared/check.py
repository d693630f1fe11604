"""Verifying shared results: each identity and metric is computed again from the file itself."""

from __future__ import annotations

import numpy as np

from cliptex_common.files import content_key
from reports.artifacts import DAMAGED, DETECTIONS, PARENT, PER_IMAGE, PROTOCOL, read_arrays
from reports.cell import Cell, cell_key
from reports.errors import TrackingError
from reports.shared.archive import SharedResults
from reports.stats.per_image import ImageScores, agrees, image_scores, why_unscored


def check_results(results: SharedResults) -> dict[str, ImageScores]:
    """Verify all cells of a file; returns the per-image scores of each, by its run's id.

    Raises:
        TrackingError: a cell lacks a field, its protocol or identity is not the one that its hash
            was made of, its images are not those of other cells on the same data, or a metric does
            not follow from its per-image scores.
    """
    images: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    scores = {}
    for cell in results.cells:
        try:
            scores[cell.run_id] = _check_cell(results, cell)
        except _Refused as error:
            raise TrackingError(f"{results.title}: {cell.label}: {error}") from error
        except DAMAGED as error:
            problem = f"a field or file is missing or damaged ({error!r})"
            raise TrackingError(f"{results.title}: {cell.label}: {problem}") from error
        names = scores[cell.run_id].images
        first, first_names = images.setdefault((cell.task, cell.fingerprint), (cell.label, names))
        if names != first_names:
            raise TrackingError(
                f"{results.title}: {cell.label}: its images are not those of {first}, though both"
                " claim the same data"
            )
    return scores


class _Refused(Exception):
    """Why a cell is not believed."""


def _check_cell(results: SharedResults, cell: Cell) -> ImageScores:
    parent, conditions = results.parents[cell.parent], results.json(cell, PROTOCOL)
    for field in ("backbone", "seed", "weights"):
        if getattr(cell, field) != getattr(parent, field):
            raise _Refused(f"its {field} is not that of its parent run")
    if content_key(conditions) != cell.protocol:
        raise _Refused("its protocol is not the one that the tag `protocol` is the hash of")
    dataset, task = conditions["dataset"], cell.task.partition(":")[0]
    described = (conditions["task"], dataset["name"], dataset["fingerprint"], task)
    if described != (cell.task, cell.dataset, cell.fingerprint, f"{cell.dataset}/{cell.probe}"):
        raise _Refused("task, dataset, probe or data fingerprint are not those of its protocol")
    identity = results.json(parent, PARENT)["backbone"]
    if identity["sha256"] != cell.weights:
        raise _Refused("its weights are not those of its parent run")
    if cell_key(identity, conditions, cell.seed, cell.head) != cell.key:
        raise _Refused(
            "backbone, protocol, seed and head are not those that the tag `cell` is the hash of"
        )
    arrays = {
        name: read_arrays(content)
        for name in (PER_IMAGE, DETECTIONS)
        if (content := results.members.get(f"{cell.run_id}/{name}"))
    }
    scores = None
    if PER_IMAGE in arrays:
        scores = image_scores(cell.kind, arrays[PER_IMAGE], arrays.get(DETECTIONS))
    if scores is None:
        raise _Refused(why_unscored(cell.kind))
    if cell.main not in cell.metrics:
        raise _Refused(f"its main metric {cell.main} is missing")
    for name, value in cell.metrics.items():
        again = scores.value(name) if name in scores.metrics else np.nan
        if not agrees(again, value):
            raise _Refused(f"{name} is {value:.6g}, but {again:.6g} by its per-image scores")
    return scores
