"""From the chosen runs to numbers with intervals: the one place where every figure, table and
sentence of a report comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Any

import numpy as np

from reports.mlflow.query import Scored, Store
from reports.selection import Selection, TaskProtocol
from reports.stats.gains import (
    by_task,
    has_ratio,
    interquartile_mean,
    probability_of_improvement,
    without_noise,
)
from reports.stats.intervals import FEW, LEVEL, Estimate, combine, deviations, estimate
from reports.stats.multiplicity import joint_level, sidak
from reports.stats.per_image import ClassScores, ImageScores, load_scores
from reports.stats.resampling import RESAMPLES, Contrast, Sample, contrast, image_weights

AGREES = 1e-3  # of its size: by how much a metric and what its per-image scores give may differ

Key = tuple[str, TaskProtocol, str]  # backbone, column, metric


@dataclass(frozen=True)
class Gain:
    """A backbone's gain over the baseline in percent, over tasks; several protocols of a task are
    averaged first.

    Attributes:
        typical: interquartile mean over tasks.
        mean: over all of them.
        improvement: probability that a run of the backbone beats one of the baseline on a task.
        columns: over which.
    """

    typical: Estimate
    mean: Estimate
    improvement: float
    columns: list[TaskProtocol]


@dataclass
class Analysis:
    """All numbers of a report.

    Attributes:
        estimates: the numbers, each with its own 95 % interval.
        differences: number - the baseline's, each at ``level``: those of main metrics hold
            together.
        task_gains: differences of main metrics in percent of the baseline's number, so that more is
            better.
        level: at which each of ``comparisons`` differences of main metrics is judged,
            ``gain_level`` each mean gain: the chance of any false one is 5 %, half of it for
            differences and half for mean gains, which are few (see ``multiplicity``).
        scores: (backbone, column) → per-image scores of its first seed (for choosing pictures).
        images: column → how many its numbers are computed from.
        classes: (backbone, column) → the metric of each class, one for each seed.
        ranks: backbone → mean rank over the tasks that all have (1 = best; ties share).
        left_out: column → why it is in no mean gain.
        doubted: numbers that their per-image scores do not give back.
    """

    selection: Selection
    samples: dict[Key, Sample] = field(default_factory=dict)
    estimates: dict[Key, Estimate] = field(default_factory=dict)
    differences: dict[Key, Estimate] = field(default_factory=dict)
    scores: dict[tuple[str, TaskProtocol], ImageScores] = field(default_factory=dict)
    images: dict[TaskProtocol, int] = field(default_factory=dict)
    classes: dict[tuple[str, TaskProtocol], list[ClassScores]] = field(default_factory=dict)
    task_gains: dict[tuple[str, TaskProtocol], Estimate] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    left_out: dict[TaskProtocol, str] = field(default_factory=dict)
    level: float = LEVEL / 2
    gain_level: float = LEVEL / 2
    comparisons: int = 0
    doubted: list[str] = field(default_factory=list)
    _best: dict[tuple[TaskProtocol, str], str] = field(default_factory=dict)

    def verdict(self, backbone: str, column: TaskProtocol) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown`` of a column's main metric against the baseline;
        '' without a number."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.sign(column.main))

    def tasks(self, backbone: str) -> dict[str, str]:
        """Task → verdict; of several protocols or variants what they agree on or what is decided,
        ``tie`` where they contradict."""
        found: dict[str, set[str]] = {}
        for column in self.selection.columns:
            if told := self.verdict(backbone, column):
                found.setdefault(column.base, set()).add(told)
        agreed = {
            task: told & {"win", "loss"} or told & {"tie"} or told for task, told in found.items()
        }
        return {task: told.pop() if len(told) == 1 else "tie" for task, told in agreed.items()}

    def best(self, column: TaskProtocol, metric: str) -> str:
        """The backbone that beats every other one there, at a level at which all columns together
        hold; '' when no one does."""
        key = column, metric
        if key not in self._best:
            self._best[key] = self._find_best(column, metric)
        return self._best[key]

    def _find_best(self, column: TaskProtocol, metric: str) -> str:
        there = [b for b in self.selection.backbones if (b, column, metric) in self.samples]
        if len(there) < 2:
            return ""
        # never at more than the differences that are printed beside it, or bold would stand over an
        # "undecided"
        sign, level = column.sign(metric), min(sidak(len(self.selection.columns)), self.level)
        leader = max(there, key=lambda b: sign * self.estimates[b, column, metric].value)
        mine = self.samples[leader, column, metric]
        gaps = (
            combine([contrast(mine, self.samples[b, column, metric])]) for b in there if b != leader
        )
        return leader if all(gap.at(level).verdict(sign) == "win" for gap in gaps) else ""


def shown_metrics(column: TaskProtocol) -> list[str]:
    """Metrics of a column that the detailed tables show, the main one first."""
    return [name for name, one in column.metrics if one.shown or name == column.main]


def analyse(
    store: Store,
    selection: Selection,
    *,
    resamples: int = RESAMPLES,
    advance: Callable[[], None] = lambda: None,
) -> Analysis:
    """Read per-image scores, resample, and compute all that a report says.

    Args:
        advance: called once for each backbone of each column.

    Raises:
        TrackingError: an artifact is damaged.
    """
    analysis = Analysis(selection)
    weights: dict[tuple[str, ...], np.ndarray] = {}
    for column in selection.columns:
        for backbone in selection.backbones:
            cells = selection.cells.get((backbone, column), [])
            if cells:
                scores = at_once(lambda cell: load_scores(store, cell.run, cell.kind), cells)
                if scores[0] is not None:
                    analysis.scores[backbone, column] = scores[0]
                analysis.classes[backbone, column] = [
                    s.classes for s in scores if s is not None and s.classes
                ]
                _sample(analysis, (backbone, column), cells, scores, weights, resamples)
            advance()
        if len(weights) > 2:  # tasks of one dataset come one after another; more need not be kept
            weights = dict(list(weights.items())[-2:])
    conclude(analysis)
    return analysis


def at_once(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``function`` of each item, on all cores: numpy and zlib let threads work side by side."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def _sample(
    analysis: Analysis,
    where: tuple[str, TaskProtocol],
    cells: Sequence[Scored],
    scores: Sequence[ImageScores | None],
    weights: dict[tuple[str, ...], np.ndarray],
    resamples: int,
) -> None:
    backbone, column = where
    whole = [score for score in scores if score is not None]
    same = len(whole) == len(cells) and len({score.images for score in whole}) == 1
    for metric in shown_metrics(column):
        have = [
            number
            for number, cell in enumerate(cells)
            if np.isfinite(cell.metrics.get(metric, np.nan))
        ]
        if not have:
            continue
        seeds = tuple(cells[number].seed for number in have)
        values = np.array([cells[number].metrics[metric] for number in have])
        drawn, images = None, whole[0].images if same else ()
        if same and all(metric in score.metrics for score in whole):
            if images not in weights:
                weights[images] = image_weights(images, resamples)
            used = weights[images][: min(score.most_resamples for score in whole)]
            ones = np.ones((1, len(images)), np.float32)
            computed = [whole[number].metrics[metric] for number in have]
            again = np.array([float(compute(ones)[0]) for compute in computed])
            if (
                wrong := np.flatnonzero(~(np.abs(again - values) <= AGREES * np.abs(values) + 1e-6))
            ).size:
                told = f"stored {values[wrong[0]]:.4g}, from images {again[wrong[0]]:.4g}"
                analysis.doubted.append(f"{backbone} · {column.title} · {metric} ({told})")
            else:
                drawn = np.stack(at_once(methodcaller("__call__", used), computed))
                there = np.isfinite(drawn).all(axis=0)  # a resample may hold nothing to score
                drawn = np.where(there, drawn, values[:, None]) if there.sum() >= FEW else None
        count = len(images) if drawn is not None else 0
        analysis.images[column] = max(count, analysis.images.get(column, 0))
        analysis.samples[backbone, column, metric] = Sample(seeds, values, drawn, count)


def conclude(analysis: Analysis, chance: float = LEVEL) -> None:
    """Everything that follows from the samples: intervals, differences, gains, and the level at
    which they hold together.

    Args:
        chance: of any false statement among them, if all backbones were equal.
    """
    base = analysis.selection.baseline
    gaps: dict[Key, Contrast] = {}
    for key, sample in analysis.samples.items():
        _, column, metric = key
        declared = column.metric(metric)
        ends = (
            (-np.inf if declared.low is None else declared.low),
            (np.inf if declared.high is None else declared.high),
        )
        analysis.estimates[key] = replace(estimate(sample), least=ends[0], most=ends[1])
        theirs = analysis.samples.get((base, column, metric))
        if theirs is not None and key[0] != base:
            gaps[key] = contrast(sample, theirs)
    analysis.differences = {key: combine([gap]) for key, gap in gaps.items()}
    main = {key: gap for key, gap in gaps.items() if key[2] == key[1].main}
    scaled = _scaled(analysis, main)
    resampled = _gains(analysis, scaled)
    judged = [analysis.differences[key] for key in main]
    analysis.comparisons = sum(one.known for one in judged)
    level = analysis.level = joint_level(
        judged, [gap.deviations() for gap in main.values()], chance / 2
    )
    at = analysis.gain_level = joint_level(
        [gain.typical for gain in analysis.gains.values()], resampled, chance / 2
    )
    analysis.differences = {key: gap.at(level) for key, gap in analysis.differences.items()}
    analysis.task_gains = {where: combine([gap]).at(level) for where, gap in scaled.items()}
    for name, gain in analysis.gains.items():
        analysis.gains[name] = replace(gain, typical=gain.typical.at(at), mean=gain.mean.at(at))
    _ranks(analysis)


def _scaled(
    analysis: Analysis, gaps: dict[Key, Contrast]
) -> dict[tuple[str, TaskProtocol], Contrast]:
    """Differences in percent of the baseline's number on the same seeds, where that is well away
    from zero."""
    found = {}
    for (backbone, column, metric), gap in gaps.items():
        base = analysis.samples[analysis.selection.baseline, column, metric]
        own = analysis.estimates[analysis.selection.baseline, column, metric]
        if not has_ratio(own):
            analysis.left_out[column] = f"{analysis.selection.baseline} is too near zero there"
            continue
        shared = [
            seed for seed in base.seeds if seed in analysis.samples[backbone, column, metric].seeds
        ]
        value = (
            base.of(shared).values.mean()
            if shared and len(gap.samples) == 1
            else base.values.mean()
        )
        declared = column.metric(metric)
        found[backbone, column] = gap.times(
            100 * declared.direction / max(abs(value), declared.floor)
        )
    return found


def _gains(
    analysis: Analysis, scaled: dict[tuple[str, TaskProtocol], Contrast]
) -> list[np.ndarray | None]:
    """Each backbone's gain; returns what resampling the images adds to it.

    A task of which nothing is known, or too few images, would decide without a measure of its
    noise: it is left out where there are others.
    """
    resampled: list[np.ndarray | None] = []
    base = analysis.selection.baseline
    for name in analysis.selection.backbones:
        mine = {column: gap for (backbone, column), gap in scaled.items() if backbone == name}
        unsure = {column: told for column, gap in mine.items() if (told := _unsure(gap))}
        known = len(unsure) < len(mine)
        if known:
            analysis.left_out |= unsure
            mine = {column: gap for column, gap in mine.items() if column not in unsure}
        if not mine:
            continue
        gaps, tasks = list(mine.values()), by_task([column.base for column in mine])
        typical = lambda values, tasks=tasks: interquartile_mean(tasks @ values)
        mean = lambda values, tasks=tasks: (tasks @ values).mean(axis=0)
        values = np.array([gap.value for gap in gaps])
        noise = np.array([sum(part.variance for part in combine([gap]).parts) for gap in gaps])
        around = without_noise(values, noise)
        found = [combine(gaps, typical, around), combine(gaps, mean)]
        if not known:
            found = [replace(one, parts=(), images=0) for one in found]
        pairs = [
            (analysis.samples[name, c, c.main], analysis.samples[base, c, c.main], c.sign(c.main))
            for c in mine
        ]
        analysis.gains[name] = Gain(
            found[0], found[1], probability_of_improvement(pairs), list(mine)
        )
        resampled.append(typical(around[:, None] + deviations(gaps)) if found[0].images else None)
    return resampled


def _unsure(gap: Contrast) -> str:
    """Why a gain must not count in a mean; '' where it may."""
    if not gap.known:
        return "nothing is known of its noise"
    return f"it has fewer than {FEW} images" if 0 < gap.images < FEW else ""


def _ranks(analysis: Analysis) -> None:
    selection = analysis.selection
    shared = shared_columns(analysis, selection.backbones)
    if not shared or len(selection.backbones) < 2:
        return
    values = np.array(
        [
            [c.sign(c.main) * analysis.estimates[b, c, c.main].value for c in shared]
            for b in selection.backbones
        ]
    )
    better = (values[None] > values[:, None]).sum(axis=1) + 0.5 * (
        (values[None] == values[:, None]).sum(axis=1) - 1
    )
    mean = by_task([column.base for column in shared]) @ (1 + better.T)
    analysis.ranks = dict(zip(selection.backbones, mean.mean(axis=0).tolist(), strict=True))


def shared_columns(analysis: Analysis, backbones: Sequence[str]) -> list[TaskProtocol]:
    """Columns in which all of these backbones have a number."""
    return [
        c
        for c in analysis.selection.columns
        if all((b, c, c.main) in analysis.samples for b in backbones)
    ]
