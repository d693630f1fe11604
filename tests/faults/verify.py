"""Compare the metrics of finished cells in MLflow with the artifacts they were computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from common.files import content_key
from reports.errors import TrackingError
from reports.mlflow.query import Scored, Store, scored
from reports.parts.provenance import read_json
from reports.stats.per_image import load_scores

# sums in float32 and medians from histograms; a number of another cell or of other images is
# further away
TOLERANCE = {"rel_tol": 1e-3, "abs_tol": 1e-4}


def verify(
    store: Store,
    experiments: Sequence[str],
    start: Callable[[str, int], None],
    advance: Callable[[], None],
) -> tuple[int, list[str]]:
    """How many finished cells the named experiments have (all, where none is named), and a line for
    each thing that is wrong.

    Args:
        start, advance: tell progress.

    Raises:
        TrackingError: an experiment does not exist, or the store cannot be read.
    """
    cells = [
        cell
        for cell in scored(store.runs(experiments or sorted(store.experiments())))
        if cell.status == "FINISHED"
        and cell.parent == cell.run.parent  # not once more for who reused it
    ]
    start("verifying", len(cells))
    problems = []
    for cell in cells:
        where = (
            f"{cell.run.experiment} · {cell.backbone} · {cell.task} · seed {cell.seed} (run"
            f" {cell.run.id})"
        )
        try:
            problems += [f"{where}: {wrong}" for wrong in _wrong(store, cell)]
        except TrackingError as error:
            problems.append(f"{where}: {error}")
        advance()
    return len(cells), problems


def _wrong(store: Store, cell: Scored) -> Iterator[str]:
    main = next(iter(cell.declared), "")
    if not cell.metrics:
        yield f"has no metrics; {main or 'its main one'} is missing"
    written = read_json(store, cell.run, "metrics.json")
    if not isinstance(written, dict) or not written:
        yield "has no metrics.json"
    else:
        yield from _differences(
            cell,
            {name: value for name, value in written.items() if value is not None},
            "metrics.json",
        )
    protocol = read_json(store, cell.run, "protocol.json")
    if not protocol:
        yield "has no protocol.json"
    elif content_key(protocol) != cell.protocol:
        yield "protocol.json is not the protocol that its tag names"
    scores = load_scores(store, cell.run, cell.kind)
    if scores is None:
        yield "has no per-image scores"
    else:
        everything = np.ones((1, len(scores.images)))
        again = {
            name: float(compute(everything)[0])
            for name, compute in scores.metrics.items()
            if name in cell.metrics
        }
        yield from _differences(cell, again, "its per-image scores")


def _differences(cell: Scored, values: dict[str, float], source: str) -> Iterator[str]:
    for name, value in values.items():
        stored = cell.metrics.get(name) if name in cell.declared else value
        if (
            stored is None
            or not isinstance(value, int | float)
            or not math.isclose(stored, value, **TOLERANCE)
        ):
            yield f"{name} is {stored} in MLflow and {value} by {source}"
