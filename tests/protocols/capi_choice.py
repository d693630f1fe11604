"""Which neighbours, distance and strength of the penalty CAPI chooses on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any
from unittest import mock

from probes.base import Context
from probes.dense.patches import knn, logreg
from probes.dense.patches.memory import remember
from probes.image_level.linear import Standardiser

CHOSEN_ON = [32, 33]  # numbers of the held-out pictures
COUNTS, STRENGTHS = (1, 3, 10, 100), (1e-4, 1e-2, 1.0)
TOLERANCE = {"held-out mIoU": 0.5}  # solvers differ in a few of 392 patches

# classifier, its options and the numbers of the held-out pictures → see ``capi._evaluate``
Evaluate = Callable[[str, Mapping[str, Any], list[int]], Any]


def source_knn(evaluate: Evaluate) -> dict[str, Any]:
    grid = {"num_neighbors": COUNTS, "distance": ("cosine", "L2")}
    fields, chosen = _source(evaluate, "knn", {"device": "cpu", **grid})
    return {**fields, "chosen": [chosen["num_neighbors"], chosen["distance"].lower()]}


def source_logreg(evaluate: Evaluate) -> dict[str, Any]:
    fields, chosen = _source(evaluate, "logreg", {"C": STRENGTHS})
    return {**fields, "chosen": chosen["C"]}


def _source(
    evaluate: Evaluate, classifier: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """mIoU in percent of each value of a grid, in its order; and the values that are chosen."""
    results, _, chosen = evaluate(classifier, options, CHOSEN_ON)
    scores = [value for name, value in results.items() if name.startswith("hparam_fitting")]
    return {"held-out mIoU": scores}, chosen


def suite_knn(prepare: Callable[..., Context], train: list[int]) -> dict[str, Any]:
    task = prepare(train + CHOSEN_ON, neighbours=COUNTS)
    pairs = list(product(COUNTS, task.settings.distances))
    return _suite(knn, task, len(train), True, pairs)


def suite_logreg(prepare: Callable[..., Context], train: list[int]) -> dict[str, Any]:
    return _suite(logreg, prepare(train + CHOSEN_ON, c=STRENGTHS), len(train), False)


def _suite(module: Any, task: Context, trained: int, pixels: bool, *grid: Any) -> dict[str, Any]:
    """What a probe chooses on all images but the first ``trained``, by the moments of these (see
    the field "patches to standardise by")."""
    held_out = list(range(trained, trained + len(CHOSEN_ON)))
    memory = remember(task, pixels)
    standardise = Standardiser.fit(memory.features[memory.owner < trained])
    with mock.patch.object(module, "held_out_images", lambda context: held_out):
        chosen, *_ = module.choose(memory, standardise, *grid, task)
    ((_, scores),) = task.log.metrics  # type: ignore[attr-defined]
    return {"held-out mIoU": list(scores.values()), "chosen": chosen}
