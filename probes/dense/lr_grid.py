"""The learning rate of dense probes, chosen without a look at ``val``: heads with each rate of each
task's ``lr_grid`` train in one pass on train less a held-out tenth and are scored there; a head
with the best one is then trained on all of train.

Which images are held out follows from their content alone, so it is the same for all backbones,
seeds and tasks on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from probes.base import Context, Probe, RunLog
from probes.cost import Cost
from probes.dense.config import dense_config
from probes.runner.training import Member, train_together
from probes.selection import Candidate, held_out_by_content, log_scores, select


@dataclass(frozen=True)
class Choice:
    """What came out of the choice: the best rate, what to tell of it, and what all heads of the
    grid cost together."""

    rate: float
    notes: list[str]
    cost: Cost


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for a head with this learning rate, and no choice."""
    return replace(context, settings=replace(context.settings, lr=rate, lr_grid=()))


def choose(tasks: Sequence[tuple[Probe, Context]], description: str) -> list[Choice | Exception]:
    """Train a head with each rate of each task's grid in one pass, and compare those of a task by
    its main metric on the held-out images; its choice, or why there is none. Of equals the lower
    rate wins. A head that breaks is out; ``NonFiniteLoss`` when no head is left.

    Each task's log gets ``select/METRIC/lr_…`` and ``select/lr``.
    """
    held = held_out_by_content(tasks[0][1])
    images = [
        {context.data.encoded("train")[place].image for place in held} for _, context in tasks
    ]
    heads = []
    for (probe, context), scored in zip(tasks, images, strict=True):
        for rate in sorted(context.settings.lr_grid):
            folder, log = context.work_dir / f"lr_{rate:g}", _Suffixed(context.log, rate)
            folder.mkdir(parents=True, exist_ok=True)
            one = replace(with_rate(context, rate), work_dir=folder, log=log)
            heads.append((dense_config(probe, one, frozenset(scored)), one))
    found = iter(train_together(heads, description=description, leave_out=held))
    return [
        _best(
            probe,
            context,
            {rate: next(found) for rate in sorted(context.settings.lr_grid)},
            len(held),
        )
        for probe, context in tasks
    ]


def _best(
    probe: Probe, context: Context, found: Mapping[float, Member | Exception], held: int
) -> Choice | Exception:
    main, declared = next(iter(probe.metrics.items()))
    trained = {rate: member for rate, member in found.items() if isinstance(member, Member)}
    if not trained:
        return next(error for error in found.values() if isinstance(error, Exception))
    candidates = []
    for rate, member in found.items():
        score = member.metrics[main] if isinstance(member, Member) else math.nan
        candidates.append(Candidate(rate, f"lr_{rate:g}", score, coordinate=rate))
    log_scores(context.log, main, candidates, context.settings.max_iters)
    best, reason = select(candidates, main, held, declared.direction)
    context.log.log_metrics({"select/lr": best.value}, context.settings.max_iters)
    notes = [f"learning rate {best.value:g}: {reason}; then trained on all"]
    notes += [
        f"learning rate {rate:g} failed: {error}"
        for rate, error in found.items()
        if isinstance(error, Exception)
    ]
    cost = Cost()
    for member in trained.values():
        cost.add(member.cost)
    return Choice(best.value, notes, cost)


class _Suffixed:
    """A run's log in which the curves of one head are told from those of the others:
    ``train/loss/lr_0.01``."""

    def __init__(self, log: RunLog, rate: float) -> None:
        self._log, self._suffix = log, f"/lr_{rate:g}"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log.log_metrics(
            {f"{name}{self._suffix}": value for name, value in metrics.items()}, step
        )
