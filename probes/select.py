"""Choosing hyper-parameters on a held-out part of train; ``val`` has no say.

A linear grid, random-crop heads, attentive heads, k-NN, patches and the learning rates of dense
probes and detectors all choose here. Few-shot chooses by leaving each image out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cliptex_common.errors import OutOfMemory, UserError
from cliptex_common.files import content_key
from probes.base import Context, Probe, RunLog
from probes.features.files import content_hashes
from reports.records import BEYOND_GRID

T = TypeVar("T")
SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Candidate(Generic[T]):
    """One value of a grid, and how it scores on the held-out part.

    Attributes:
        value: the hyper-parameters.
        name: of its curve, such as ``lr_0.1``.
        score: of the main metric.
        loss: decides between equal scores; a candidate whose loss is not finite ranks last.
        coordinate: its position in a grid of numbers, where a best value at the edge is reported.
    """

    value: T
    name: str
    score: float
    loss: float = 0.0
    coordinate: float | None = None


def log_scores(log: RunLog, metric: str, candidates: Sequence[Candidate[T]], step: int) -> None:
    """Log ``select/METRIC/NAME`` of each candidate that has a score."""
    scores = {f"select/{metric}/{each.name}": each.score for each in candidates}
    log.log_metrics({name: score for name, score in scores.items() if score == score}, step)


def select_candidate(
    candidates: Sequence[Candidate[T]], metric: str, images: int, direction: float = 1
) -> tuple[Candidate[T], str]:
    """The best candidate, and a note on the choice.

    Of candidates that are equal in score and loss the first wins; scores that are NaN rank last.

    Args:
        images: number of held-out training images that the scores are measured on.
        direction: 1 where a higher score is better, -1 where a lower one is.
    """

    def rank(candidate: Candidate[T]) -> tuple[bool, float, float]:
        valid = math.isfinite(candidate.loss) and not math.isnan(candidate.score)
        return valid, direction * candidate.score, -candidate.loss

    best = max(candidates, key=rank)
    note = (
        f"best of {len(candidates)} on {images} held-out training images"
        f" ({metric} {best.score:.4g})"
    )
    grid = {each.coordinate for each in candidates if each.coordinate is not None}
    if len(grid) > 1 and best.coordinate in (min(grid), max(grid)):
        edge = "lowest" if best.coordinate == min(grid) else "highest"
        note += f"; the {edge} of its grid: {BEYOND_GRID}"
    return best, note


def shuffled_classes(labels: Tensor, seed: int) -> Iterator[Tensor]:
    """Shuffled indices of each class's samples, by ``seed`` and the labels alone."""
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        yield members[torch.randperm(len(members), generator=generator)]


def stratified_split(labels: Tensor, share: float, seed: int, advice: str) -> tuple[Tensor, Tensor]:
    """Indices (training, held out), each sorted.

    About ``share`` of every class is held out, at least one image of two or more, and never all.
    Args:
        labels: (N,) classes.
        advice: what to do without the choice, for the error.
    Raises:
        UserError: every class has a single image.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for members in shuffled_classes(labels, seed):
        held_out[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    if not held_out.any():
        raise UserError(
            "every class has only one training image, which leaves none to choose a setting on;"
            f" {advice}"
        )
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def held_out_by_content(context: Context) -> list[int]:
    """Positions of a tenth of the training images among those that are encoded, in random order, so
    that the first of them are a fair sample.

    The images follow from the hash of their content, so they are the same for all backbones, seeds
    and tasks; copies of an image stay together.

    Raises:
        UserError: there are fewer than two different images.
    """
    data = context.data
    hashes = content_hashes([data.root / sample.image for sample in data.samples["train"]])
    ranked = sorted(set(hashes), key=lambda digest: content_key(["held out", digest]))
    if len(ranked) < 2:
        raise UserError(
            "choosing a setting needs two different training images or more, one of them held out;"
            " give a single value instead"
        )
    held_out = ranked[: max(1, round(SHARE * len(ranked)))]
    rank = {digest: number for number, digest in enumerate(held_out)}
    positions = data.train_indices or range(len(hashes))
    pairs = zip(positions, hashes, strict=True)
    chosen = [(rank[digest], position) for position, digest in pairs if digest in rank]
    return [position for _, position in sorted(chosen)]


Choice = tuple[Context, list[str]]  # of a head with the best rate, and notes for the user


def rates_of(settings: Any) -> tuple[float, ...]:
    """The learning rates to choose from, of the settings of a dense probe or a detector: of the
    backbone where it is tuned, else of the head; none for ``lr``."""
    return settings.backbone_rates or getattr(settings, "lr_grid", ())


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for a training with this one of ``rates_of``, without a choice."""
    if context.settings.is_tuned:
        settings = replace(context.settings, tune_rates=(rate,))
    else:
        settings = replace(context.settings, lr=rate, lr_grid=())
    return replace(context, settings=settings, config=None)


def contexts_of_rates(context: Context) -> dict[float, Context]:
    """Each of ``rates_of``, from the lowest on → ``context`` for its head, with a folder and curves
    of its own."""
    contexts = {}
    for rate in sorted(rates_of(context.settings)):
        folder = context.work_dir / f"lr_{rate:g}"
        folder.mkdir(parents=True, exist_ok=True)
        log = _SuffixedLog(context.log, f"/lr_{rate:g}")
        contexts[rate] = replace(with_rate(context, rate), work_dir=folder, log=log)
    return contexts


def select_rate(
    probe: Probe, context: Context, results: Mapping[float, Any], held_out: int
) -> Choice | Exception:
    """The choice of a task among its rates, or its error. Of equals the lower rate wins; a head
    that failed is left out, and a task of which all did has the error of the first. The task's log
    gets ``select/METRIC/lr_…`` and ``select/lr``, and its cost that of the heads.

    Args:
        results: rate → its head's ``metrics`` and ``cost`` (a ``HeadTrainer``), or its error.
        held_out: number of images that the metrics are of.
    """
    main, metric = next(iter(probe.metrics.items()))
    candidates, notes = [], list[str]()
    for rate, result in results.items():
        score = math.nan
        if isinstance(result, OutOfMemory):
            return result  # a choice must not depend on the machine
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
    subject = "learning rate of the backbone" if context.settings.is_tuned else "learning rate"
    notes.insert(0, f"{subject} {best.value:g}: {reason}; then trained on all")
    return with_rate(context, best.value), notes


class _SuffixedLog:
    """A run's log that appends a suffix to the names of the curves of one head."""

    def __init__(self, log: RunLog, suffix: str) -> None:
        self._log, self._suffix = log, suffix

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        suffixed = {f"{name}{self._suffix}": value for name, value in metrics.items()}
        self._log.log_metrics(suffixed, step)
