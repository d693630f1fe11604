"""The learning rate of a dense probe, chosen without a look at ``val``: heads with each rate train side by side on one
stream, on train less a held-out tenth, and the one that does best there is then scored on ``val``, once.

Which images are held out follows from their content alone, so it is the same for all backbones, seeds and tasks on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backbones.errors import NonFiniteLoss, UserError
from backbones.files import content_key
from probes.base import Context, RunLog
from probes.features.content_hashes import content_hashes
from probes.features.cost import EncodeCost
from probes.runner.lockstep import JointBar, Steps, in_lockstep
from probes.runner.stream import Seat

if TYPE_CHECKING:
    from probes.dense.probe import DenseProbe

SHARE = 0.1


@dataclass(frozen=True)
class Choice:
    """What came out of the choice.

    Attributes:
        context: of the head that won: its rate, and the folder with its state, where training is over.
        held: the images that it was chosen on.
        notes: what to tell.
        cost: summed over the heads that lost.
        encoding: what encoding took, where features are kept.
    """

    context: Context
    held: frozenset[str]
    notes: list[str]
    cost: dict[str, float]
    encoding: EncodeCost | None


def held_out(context: Context) -> frozenset[str]:
    """The training images (relative paths) to choose on: a tenth, by the hash of their content; copies stay together.

    Raises:
        UserError: there are too few images to hold one out.
    """
    images = [sample.image for sample in context.data.samples["train"]]
    found = dict(zip(images, content_hashes([context.data.root / image for image in images]), strict=True))
    ranked = sorted(set(found.values()), key=lambda digest: content_key(["held out", digest]))
    if len(ranked) < 2:
        raise UserError("lr_grid needs two different training images or more: one to choose on; set lr instead")
    held = set(ranked[: max(1, round(SHARE * len(ranked)))])
    return frozenset(image for image, digest in found.items() if digest in held)


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for the head with this learning rate."""
    settings = replace(context.settings, lr=rate, lr_grid=())
    folder, log = context.work_dir / f"lr_{rate:g}", _Suffixed(context.log, rate)
    return replace(context, settings=settings, work_dir=folder, log=log)


def choose(probe: DenseProbe, context: Context, seat: Seat | None) -> Steps[Choice]:
    """Train a head with each rate of ``lr_grid`` and compare them by the probe's main metric on the held-out images.

    Of equals the lower rate wins. A head whose loss is not finite is out. Logs ``select/METRIC/lr_…`` and ``select/lr``.

    Raises:
        NonFiniteLoss: no head's loss stayed finite.
    """
    from probes.dense.config import dense_config
    from probes.runner.training import training_steps

    seat = seat or Seat()
    rates = sorted(context.settings.lr_grid)
    held, title, bar = held_out(context), probe.title(context), JointBar(context.progress, probe.title(context))
    contexts = {rate: replace(with_rate(context, rate), progress=bar.part(title, f"lr {rate:g}")) for rate in rates}
    for each in contexts.values():
        each.work_dir.mkdir(parents=True, exist_ok=True)
    notes = list[str]()
    configs = {rate: dense_config(probe, each, held, score_held_out=True) for rate, each in contexts.items()}
    cost, encoding = dict[str, float](), None
    if context.settings.cache != "none":
        from probes.features.precompute import provide

        notes, encoding = provide(configs[rates[0]], context)
    heads = {rate: training_steps(configs[rate], each, description=title, seat=seat) for rate, each in contexts.items()}

    def ended(rate: float, result: object) -> None:
        bar.drop(f"lr {rate:g}")
        if isinstance(result, Exception) and not isinstance(result, NonFiniteLoss):
            raise result

    found = yield from in_lockstep(heads, ended)
    main, sign = next(iter(probe.metrics.items()))
    scores = {rate: each.metrics[main] for rate, each in found.items() if not isinstance(each, NonFiniteLoss)}
    if not scores:
        raise found[rates[0]]
    best = max(scores, key=lambda rate: (not math.isnan(scores[rate]), sign * scores[rate], -rate))
    told = {f"select/{main}/lr_{rate:g}": value for rate, value in scores.items()}
    context.log.log_metrics({**told, "select/lr": best}, context.settings.max_iters)
    broken = [f"{rate:g}" for rate in rates if rate not in scores]
    notes.append(
        f"learning rate {best:g}: best of {len(rates)} on {len(held)} held-out training images ({main} {scores[best]:.4g})"
        + (f"; the loss was not finite with {', '.join(broken)}" if broken else "")
    )
    for rate in scores:
        if rate != best:
            for name in ("train_seconds", "eval_seconds", "train_flops", "eval_flops", "flops"):
                cost[name] = cost.get(name, 0.0) + found[rate].cost[name]
    chosen = found[best].cost  # its training is counted where it is scored
    for name, part in (("eval_seconds", "eval_seconds"), ("eval_flops", "eval_flops"), ("flops", "eval_flops")):
        cost[name] = cost.get(name, 0.0) + chosen[part]
    cost["train_images_per_second"] = chosen["train_images_per_second"]
    return Choice(replace(contexts[best], progress=context.progress), held, notes, cost, encoding)


class _Suffixed:
    """A run's log in which the curves of one head are told from those of the others: ``train/loss/lr_0.01``."""

    def __init__(self, log: RunLog, rate: float) -> None:
        self._log, self._suffix = log, f"/lr_{rate:g}"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log.log_metrics({f"{name}{self._suffix}": value for name, value in metrics.items()}, step)
