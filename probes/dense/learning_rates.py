"""The choice of a learning rate, without ``val``: heads with each rate of each task's ``lr_grid``
train in one loop on train less a held-out tenth, and are scored on it; a head with the best rate is
then trained on all of train.

The held-out images follow from their content alone, so they are the same for all backbones, seeds
and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from probes.base import Context, Probe, RunLog
from probes.dense.config import dense_config
from probes.selection import Candidate, held_out_by_content, log_scores, select_candidate
from probes.train.head_trainer import HeadTrainer
from probes.train.loop import train_together

Choice = tuple[Context, list[str]]  # of a head with the best rate, and notes for the user


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for a head with this learning rate, without a grid."""
    return replace(context, settings=replace(context.settings, lr=rate, lr_grid=()))


def choose(
    tasks: Mapping[int, tuple[Probe, Context]], description: str
) -> dict[int, Choice | Exception]:
    """Train a head with each rate of each task's grid in one loop, and compare those of a task by
    its main metric on the held-out images. Returns the choice of each task, or its error. Of equals
    the lower rate wins; a head that fails is left out, and a task of which all fail has the error
    of the first.

    Each task's log gets ``select/METRIC/lr_…`` and ``select/lr``, and its cost that of its heads.
    """
    held_out = held_out_by_content(next(iter(tasks.values()))[1])
    heads = {}
    for index, (probe, context) in tasks.items():
        images = frozenset(context.data.encoded("train")[item].image for item in held_out)
        for rate in sorted(context.settings.lr_grid):
            folder = context.work_dir / f"lr_{rate:g}"
            folder.mkdir(parents=True, exist_ok=True)
            head = with_rate(context, rate)
            head = replace(head, work_dir=folder, log=_SuffixedLog(context.log, f"/lr_{rate:g}"))
            heads[index, rate] = dense_config(probe, head, images), head
    trained = train_together(heads, description=description, leave_out=held_out)
    choices = {}
    for index, (probe, context) in tasks.items():
        rates = {rate: trained[index, rate] for rate in sorted(context.settings.lr_grid)}
        choices[index] = _choose(probe, context, rates, len(held_out))
    return choices


def _choose(
    probe: Probe, context: Context, results: Mapping[float, HeadTrainer | Exception], held_out: int
) -> Choice | Exception:
    main, metric = next(iter(probe.metrics.items()))
    candidates, notes = [], list[str]()
    for rate, result in results.items():
        score = math.nan
        if isinstance(result, Exception):
            notes.append(f"learning rate {rate:g} failed: {result}")
        else:
            score = result.metrics[main]
            context.cost.add(result.cost)
        candidates.append(Candidate(rate, f"lr_{rate:g}", score, coordinate=rate))
    first = next(iter(results.values()))
    if isinstance(first, Exception) and len(notes) == len(results):
        return first
    log_scores(context.log, main, candidates, context.settings.max_iters)
    best, reason = select_candidate(candidates, main, held_out, metric.direction)
    context.log.log_metrics({"select/lr": best.value}, context.settings.max_iters)
    notes.insert(0, f"learning rate {best.value:g}: {reason}; then trained on all")
    return with_rate(context, best.value), notes


class _SuffixedLog:
    """A run's log that appends a suffix to the names of the curves of one head."""

    def __init__(self, log: RunLog, suffix: str) -> None:
        self._log, self._suffix = log, suffix

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        suffixed = {f"{name}{self._suffix}": value for name, value in metrics.items()}
        self._log.log_metrics(suffixed, step)
