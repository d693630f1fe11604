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

from common.errors import UserError
from common.files import content_key
from probes.base import Context, Probe, RunLog
from probes.dense.config import dense_config
from probes.features.content_hashes import content_hashes
from probes.runner.training import Member, train_together

SHARE = 0.1


@dataclass(frozen=True)
class Choice:
    """What came out of the choice: the best rate, what to tell of it, and what all heads of the
    grid cost together."""

    rate: float
    notes: list[str]
    cost: dict[str, float]


def held_out(context: Context) -> list[int]:
    """The training images to choose on (their places among those that are encoded): a tenth, by the
    hash of their content; copies stay together.

    Raises:
        UserError: there are too few images to hold one out.
    """
    found = content_hashes(
        [context.data.root / sample.image for sample in context.data.samples["train"]]
    )
    ranked = sorted(set(found), key=lambda digest: content_key(["held out", digest]))
    if len(ranked) < 2:
        raise UserError(
            "lr_grid needs two different training images or more: one to choose on; set lr instead"
        )
    held = set(ranked[: max(1, round(SHARE * len(ranked)))])
    places = context.data.places or range(len(found))
    return [place for place, digest in zip(places, found, strict=True) if digest in held]


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for a head with this learning rate, and no choice."""
    return replace(context, settings=replace(context.settings, lr=rate, lr_grid=()))


def choose(tasks: Sequence[tuple[Probe, Context]], description: str) -> list[Choice | Exception]:
    """Train a head with each rate of each task's grid in one pass, and compare those of a task by
    its main metric on the held-out images; its choice, or why there is none. Of equals the lower
    rate wins. A head that breaks is out; ``NonFiniteLoss`` when no head is left.

    Each task's log gets ``select/METRIC/lr_…`` and ``select/lr``.
    """
    held = held_out(tasks[0][1])
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
    main = next(iter(probe.metrics))
    sign = probe.metrics[main].direction
    trained = {rate: one for rate, one in found.items() if isinstance(one, Member)}
    if not trained:
        return next(one for one in found.values() if isinstance(one, Exception))
    scores = {rate: one.metrics[main] for rate, one in trained.items()}
    best = max(scores, key=lambda rate: (not math.isnan(scores[rate]), sign * scores[rate], -rate))
    told = {f"select/{main}/lr_{rate:g}": value for rate, value in scores.items()}
    context.log.log_metrics({**told, "select/lr": best}, context.settings.max_iters)
    broken = "".join(
        f"; with {rate:g}: {one}" for rate, one in found.items() if isinstance(one, Exception)
    )
    notes = [
        f"learning rate {best:g}: best of {len(found)} on {held} held-out training images "
        f"({main} {scores[best]:.4g}), then trained on all{broken}"
    ]
    if best in (min(found), max(found)):
        edge, beyond = ("lowest", "lower") if best == min(found) else ("highest", "higher")
        notes.append(
            f"learning rate {best:g} is the {edge} of lr_grid: a {beyond} one may be better"
        )
    return Choice(best, notes, added([one.cost for one in trained.values()]))


def added(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of costs; of speeds the last one."""
    total: dict[str, float] = {}
    for cost in costs:
        for name, value in cost.items():
            total[name] = value if name.endswith("per_second") else total.get(name, 0.0) + value
    return total


class _Suffixed:
    """A run's log in which the curves of one head are told from those of the others:
    ``train/loss/lr_0.01``."""

    def __init__(self, log: RunLog, rate: float) -> None:
        self._log, self._suffix = log, f"/lr_{rate:g}"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log.log_metrics(
            {f"{name}{self._suffix}": value for name, value in metrics.items()}, step
        )
