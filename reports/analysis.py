"""From the selected runs to numbers with intervals, which all parts of a report are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Any

import numpy as np

from reports.cell import Cell
from reports.mlflow.query import Store
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
from reports.stats.per_image import ClassScores, ImageScores, agrees, load_scores
from reports.stats.resampling import Contrast, Sample, contrast, image_weights
from reports.stats.seeds import NO_PRIOR, SeedNoise, SeedPrior, seed_prior

Key = tuple[str, TaskProtocol, str]  # backbone, column, metric


@dataclass(frozen=True)
class Gain:
    """A backbone's gain over the baseline in percent, over tasks.

    Several protocols of a task are averaged first.

    Attributes:
        typical: interquartile mean over tasks.
        mean: mean over tasks.
        improvement: probability that a run of the backbone beats one of the baseline on a task.
        columns: the columns that count.
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
        differences: number - the baseline's, each at ``level``; those of main metrics hold jointly.
        task_gains: differences of main metrics in percent of the baseline's number, positive where
            the backbone is better.
        level: at which the differences of main metrics of one backbone on one task are judged (of
            one column: ``level_of``), ``comparisons`` in all; each mean gain is judged at
            ``gain_level``. The probability of any false one is 5 %, half of it for differences and
            half for mean gains, which are few (see ``multiplicity``).
        seed_prior: what is known of the seed variance of a difference from all of them.
        scores: (backbone, column) → per-image scores of its first seed, to choose pictures by.
        images: column → number of images that its numbers are computed from.
        classes: (backbone, column) → the metric of each class, one for each seed.
        ranks: backbone → mean rank over the tasks that all have (1 = best; ties share).
        excluded: column → why it is in no mean gain.
        inconsistent: numbers that differ from those of their per-image scores.
        unscored: numbers with resamples that have nothing to score, and how many.
        best: (column, metric) → the backbone that beats all others there, '' for none; all columns
            hold jointly.
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
    excluded: dict[TaskProtocol, str] = field(default_factory=dict)
    level: float = LEVEL / 2
    gain_level: float = LEVEL / 2
    comparisons: int = 0
    seed_prior: SeedPrior = NO_PRIOR
    inconsistent: list[str] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    best: dict[tuple[TaskProtocol, str], str] = field(default_factory=dict)

    def verdict(self, backbone: str, column: TaskProtocol) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown`` in a column's main metric; '' without one."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.sign(column.main))

    def level_of(self, column: TaskProtocol) -> float:
        """At which a difference in a column is judged: the columns of a task share its level."""
        return self.level / self.family(column)

    def family(self, column: TaskProtocol) -> int:
        """How many columns the task of a column has: variants and protocols."""
        return sum(other.base == column.base for other in self.selection.columns)

    def tasks(self, backbone: str) -> dict[str, str]:
        """Task → verdict against the baseline.

        Of several protocols or variants the decided verdict, ``tie`` where they contradict.
        """
        verdicts: dict[str, set[str]] = {}
        for column in self.selection.columns:
            if verdict := self.verdict(backbone, column):
                verdicts.setdefault(column.base, set()).add(verdict)
        result = {}
        for task, several in verdicts.items():
            agreed = several & {"win", "loss"} or several & {"tie"} or several
            result[task] = agreed.pop() if len(agreed) == 1 else "tie"
        return result


def shown_metrics(column: TaskProtocol) -> list[str]:
    """Metrics of a column that the detailed tables show, the main one first."""
    return [name for name, metric in column.metrics if metric.shown or name == column.main]


def analyse(
    store: Store,
    selection: Selection,
    advance: Callable[[], None] = lambda: None,
) -> Analysis:
    """Read per-image scores, resample them, and compute all numbers of a report.

    Args:
        advance: called once for each backbone of each column.

    Raises:
        TrackingError: an artifact is damaged.
    """
    analysis = Analysis(selection)
    for column in selection.columns:
        in_column = selection.column_cells(column)
        loaded = parallel(lambda cell: load_scores(store, cell), in_column)
        by_run = {cell.run_id: scores for cell, scores in zip(in_column, loaded, strict=True)}
        for backbone in selection.backbones:
            cells = selection.cells.get((backbone, column), [])
            if cells:
                scores = [each for cell in cells if (each := by_run[cell.run_id]) is not None]
                if first := by_run[cells[0].run_id]:
                    analysis.scores[backbone, column] = first
                analysis.classes[backbone, column] = [s.classes for s in scores if s.classes]
                complete = len(scores) == len(cells) and len({s.units for s in scores}) == 1
                _sample(analysis, backbone, column, cells, scores if complete else [])
            advance()
    image_weights.cache_clear()
    conclude(analysis)
    for column in selection.columns:
        for metric in shown_metrics(column):
            analysis.best[column, metric] = _find_best(analysis, column, metric)
    return analysis


def parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``function`` of each item in threads: numpy and zlib release the interpreter's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def _sample(
    analysis: Analysis,
    backbone: str,
    column: TaskProtocol,
    cells: Sequence[Cell],
    scores: Sequence[ImageScores],
) -> None:
    """Add the samples of a backbone's column.

    Args:
        scores: of each cell, over the same units; empty where a cell has none.
    """
    images = scores[0].units if scores else ()
    analysis.images.setdefault(column, 0)
    for metric in shown_metrics(column):
        usable = [
            number
            for number, cell in enumerate(cells)
            if np.isfinite(cell.metrics.get(metric, np.nan))
        ]
        if not usable:
            continue
        seeds = tuple(cells[number].seed for number in usable)
        values = np.array([cells[number].metrics[metric] for number in usable])
        sample = Sample(seeds, values)
        if scores and all(metric in score.metrics for score in scores):
            computed = [scores[number].metrics[metric] for number in usable]
            ones = np.ones((1, len(images)), np.float32)
            again = np.array([float(compute(ones)[0]) for compute in computed])
            consistent = agrees(again, values)
            if consistent.all():
                rows = min(score.most_resamples for score in scores)
                resample = methodcaller("__call__", image_weights(images)[:rows])
                sampled = np.stack(parallel(resample, computed))
                valid = np.isfinite(sampled).all(axis=0)
                if valid.sum() >= FEW:
                    sampled = np.where(valid, sampled, np.nan)
                    sample = Sample(seeds, values, sampled, len(images))
                if not valid.all():
                    share = f"{valid.size - valid.sum()} of {valid.size}"
                    analysis.unscored.append(f"{backbone} · {column.title} · {metric} ({share})")
            else:
                wrong = np.flatnonzero(~consistent)[0]
                analysis.inconsistent.append(
                    f"{backbone} · {column.title} · {metric} (stored {values[wrong]:.4g}, from"
                    f" images {again[wrong]:.4g})"
                )
        analysis.images[column] = max(sample.images, analysis.images[column])
        analysis.samples[backbone, column, metric] = sample


def conclude(analysis: Analysis, error_rate: float = LEVEL) -> None:
    """Compute from the samples: intervals, differences, gains, and their joint levels.

    Args:
        error_rate: probability of any false statement among them if all backbones were equal.
    """
    base = analysis.selection.baseline
    numbers = {key: Contrast((sample,)) for key, sample in analysis.samples.items()}
    gaps = {
        key: contrast(sample, analysis.samples[base, *key[1:]])
        for key, sample in analysis.samples.items()
        if key[0] != base and (base, *key[1:]) in analysis.samples
    }
    noise = [n for key, each in numbers.items() if key[2] == key[1].main for n in each.seed_noise]
    prior = seed_prior(noise, noise)
    for key, number in numbers.items():
        declared = key[1].metric(key[2])
        low = -np.inf if declared.low is None else declared.low
        high = np.inf if declared.high is None else declared.high
        analysis.estimates[key] = replace(estimate(number, prior), least=low, most=high)
    main = {key: gap for key, gap in gaps.items() if key[2] == key[1].main}
    prior = analysis.seed_prior = _prior_of_differences(analysis, main)
    differences = {key: estimate(gap, prior) for key, gap in gaps.items()}
    factors = _factors(analysis, main)
    scaled = {key: main[*key, key[1].main].times(factor) for key, factor in factors.items()}
    analysis.task_gains = {
        key: differences[*key, key[1].main].times(factor) for key, factor in factors.items()
    }
    resampled = _gains(analysis, scaled)
    judged = [differences[key] for key in main]
    analysis.comparisons = sum(difference.has_interval for difference in judged)
    moved = [gap.deviations() for gap in main.values()]
    families = [analysis.family(column) for _, column, _ in main]
    analysis.level = joint_level(judged, moved, error_rate / 2, families)
    typical = [gain.typical for gain in analysis.gains.values()]
    level = analysis.gain_level = joint_level(typical, resampled, error_rate / 2)
    analysis.differences = {
        key: gap.at(analysis.level_of(key[1])) for key, gap in differences.items()
    }
    analysis.task_gains = {
        key: gain.at(analysis.level_of(key[1])) for key, gain in analysis.task_gains.items()
    }
    analysis.gains = {
        name: replace(gain, typical=gain.typical.at(level), mean=gain.mean.at(level))
        for name, gain in analysis.gains.items()
    }
    _rank(analysis)


def _prior_of_differences(analysis: Analysis, gaps: dict[Key, Contrast]) -> SeedPrior:
    """The prior of the seed variance of main metrics' differences.

    A backbone's own noise is relative to half of its difference's noise of images; the baseline's
    to the mean over the differences in a column.
    """
    scales = defaultdict(list)
    for (backbone, column, metric), gap in gaps.items():
        for name in (backbone, analysis.selection.baseline):
            if gap.varies:
                scales[name, column, metric].append(gap.image_variance / 2)
    samples = [(analysis.samples[key], float(np.mean(own))) for key, own in scales.items()]
    cells = [SeedNoise(sample.seeds, sample.values, scale) for sample, scale in samples]
    return seed_prior(cells, [noise for gap in gaps.values() for noise in gap.seed_noise])


def _find_best(analysis: Analysis, column: TaskProtocol, metric: str) -> str:
    names = [b for b in analysis.selection.backbones if (b, column, metric) in analysis.samples]
    if len(names) < 2:
        return ""
    sign = column.sign(metric)
    # never at a higher level than the printed differences, or bold could contradict "undecided"
    tasks = {other.base for other in analysis.selection.columns}
    level = min(sidak(len(tasks)) / analysis.family(column), analysis.level_of(column))
    leader = max(names, key=lambda name: sign * analysis.estimates[name, column, metric].value)
    sample = analysis.samples[leader, column, metric]
    for name in names:
        if name == leader:
            continue
        other = contrast(sample, analysis.samples[name, column, metric])
        gap = estimate(other, analysis.seed_prior)
        if gap.at(level).verdict(sign) != "win":
            return ""
    return leader


def _factors(
    analysis: Analysis, gaps: dict[Key, Contrast]
) -> dict[tuple[str, TaskProtocol], float]:
    """What makes differences percent of the baseline's number on the same seeds, better positive.

    Columns in which that number is too near zero are excluded.
    """
    factors = {}
    for (backbone, column, metric), gap in gaps.items():
        key = analysis.selection.baseline, column, metric
        base = analysis.samples[key]
        if not has_ratio(analysis.estimates[key]):
            analysis.excluded[column] = f"{analysis.selection.baseline} is too near zero"
            continue
        seeds = analysis.samples[backbone, column, metric].seeds
        shared = [seed for seed in base.seeds if seed in seeds]
        paired = shared and len(gap.samples) == 1
        value = (base.of(shared) if paired else base).values.mean()
        declared = column.metric(metric)
        factors[backbone, column] = 100 * declared.direction / max(abs(value), declared.floor)
    return factors


def _gains(
    analysis: Analysis, scaled: dict[tuple[str, TaskProtocol], Contrast]
) -> list[np.ndarray | None]:
    """Compute each backbone's gain; returns what resampling the images adds to it.

    A task with unknown noise or too few images is excluded if the backbone has other tasks.
    """
    resampled: list[np.ndarray | None] = []
    base = analysis.selection.baseline
    for name in analysis.selection.backbones:
        mine = {column: gap for (backbone, column), gap in scaled.items() if backbone == name}
        if not mine:
            continue
        unsure = {column: reason for column, gap in mine.items() if (reason := _exclude(gap))}
        complete = len(unsure) < len(mine)
        if complete:
            analysis.excluded |= unsure
            mine = {column: gap for column, gap in mine.items() if column not in unsure}
        gaps, tasks = list(mine.values()), by_task([column.base for column in mine])
        typical = lambda values, tasks=tasks: interquartile_mean(tasks @ values)
        mean = lambda values, tasks=tasks: (tasks @ values).mean(axis=0)
        values = np.array([gap.value for gap in gaps])
        noise = np.array([analysis.task_gains[name, column].variance for column in mine])
        around = without_noise(values, noise)
        estimates = [combine(gaps, typical, around), combine(gaps, mean)]
        if not complete:
            estimates = [replace(each, parts=(), images=0) for each in estimates]
        pairs = [
            (analysis.samples[name, c, c.main], analysis.samples[base, c, c.main], c.sign(c.main))
            for c in mine
        ]
        improvement = probability_of_improvement(pairs, [column.base for column in mine])
        analysis.gains[name] = Gain(estimates[0], estimates[1], improvement, list(mine))
        moved = typical(around[:, None] + deviations(gaps)) if estimates[0].images else None
        resampled.append(moved)
    return resampled


def _exclude(gap: Contrast) -> str:
    """Why a gain must not count in a mean; '' if it counts."""
    if not gap.has_noise:
        return "its noise is unknown"
    return f"it has fewer than {FEW} images" if 0 < gap.images < FEW else ""


def _rank(analysis: Analysis) -> None:
    names = analysis.selection.backbones
    shared = shared_columns(analysis, names)
    if not shared or len(names) < 2:
        return
    values = np.array(
        [
            [c.sign(c.main) * analysis.estimates[name, c, c.main].value for c in shared]
            for name in names
        ]
    )
    better = (values[None] > values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1) - 1
    ranks = by_task([column.base for column in shared]) @ (1 + better + 0.5 * equal).T
    analysis.ranks = dict(zip(names, ranks.mean(axis=0).tolist(), strict=True))


def shared_columns(analysis: Analysis, backbones: Sequence[str]) -> list[TaskProtocol]:
    """Columns in which all of these backbones have a number."""
    return [
        c
        for c in analysis.selection.columns
        if all((b, c, c.main) in analysis.samples for b in backbones)
    ]
