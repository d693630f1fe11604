"""Backbones against a baseline: intervals, differences, gains, and the levels they hold at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from reports.measurements import GridKey, Key
from reports.selection import Selection, TaskColumn
from reports.stats.gains import (
    by_task,
    has_ratio,
    interquartile_mean,
    probability_of_improvement,
    without_noise,
)
from reports.stats.intervals import LEVEL, MIN_IMAGES, Estimate, combine, deviations, estimate
from reports.stats.multiplicity import joint_level
from reports.stats.resampling import MetricSample, Quantity, difference
from reports.stats.seeds import SeedNoise, SeedPrior, seed_prior


@dataclass(frozen=True)
class Gain:
    """A backbone's gain over the baseline in percent, over tasks.

    Several protocols of a task are averaged first.

    Attributes:
        iqm: interquartile mean over tasks.
        mean: mean over tasks.
        improvement: probability that a run of the backbone beats one of the baseline on a task.
        columns: the columns that count.
    """

    iqm: Estimate
    mean: Estimate
    improvement: float
    columns: list[TaskColumn]


@dataclass(frozen=True)
class Judgement:
    """All backbones against one baseline.

    Attributes:
        estimates: the numbers, each with its own 95 % interval.
        differences: number - the baseline's, each at ``level``; those of main metrics hold jointly.
        task_gains: differences of main metrics in percent of the baseline's number, positive where
            the backbone is better.
        excluded: column → why it is in no mean gain.
        level: of each difference of a main metric, divided by the columns of its task
            (``level_of``). The probability of any false one is half of the report's 5 %.
        gain_level: of each mean gain, which have the other half, because they are few.
        comparisons: how many differences share ``level``.
        seed_prior: what is known of the seed variance of a difference from all of them.
    """

    selection: Selection
    estimates: dict[Key, Estimate]
    differences: dict[Key, Estimate]
    task_gains: dict[GridKey, Estimate]
    gains: dict[str, Gain]
    excluded: dict[TaskColumn, str]
    level: float
    gain_level: float
    comparisons: int
    seed_prior: SeedPrior

    def outcome(self, backbone: str, column: TaskColumn) -> str:
        """``Estimate.verdict`` on a column's main metric; '' without a difference."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.sign(column.main))

    def level_of(self, column: TaskColumn) -> float:
        """At which a difference in a column is judged: the columns of a task share its level."""
        return self.level / family_size(self.selection, column)

    def tasks(self, backbone: str) -> dict[str, str]:
        """Task → outcome against the baseline.

        Of several protocols or variants the decided outcome, ``tie`` where they contradict.
        """
        outcomes: dict[str, set[str]] = {}
        for column in self.selection.columns:
            if outcome := self.outcome(backbone, column):
                outcomes.setdefault(column.base, set()).add(outcome)
        result = {}
        for task, of_columns in outcomes.items():
            agreed = of_columns & {"win", "loss"} or of_columns & {"tie"} or of_columns
            result[task] = agreed.pop() if len(agreed) == 1 else "tie"
        return result


def family_size(selection: Selection, column: TaskColumn) -> int:
    """How many columns the task of a column has: variants and protocols."""
    return sum(other.base == column.base for other in selection.columns)


def judge_differences(
    selection: Selection, samples: Mapping[Key, MetricSample], error_rate: float = LEVEL
) -> Judgement:
    """Intervals, differences, gains, and their joint levels.

    Args:
        error_rate: probability of any false statement among them if all backbones were equal.
    """
    base = selection.baseline
    estimates = _estimate_numbers(samples)
    gaps = {
        key: difference(sample, samples[base, *key[1:]])
        for key, sample in samples.items()
        if key[0] != base and (base, *key[1:]) in samples
    }
    main = {key: gap for key, gap in gaps.items() if key[2] == key[1].main}
    prior = _prior_of_differences(selection, samples, main)
    differences = {key: estimate(gap, prior) for key, gap in gaps.items()}
    factors, excluded = _percent_factors(selection, samples, estimates, main)
    scaled = {key: main[*key, key[1].main].times(factor) for key, factor in factors.items()}
    task_gains = {
        key: differences[*key, key[1].main].times(factor) for key, factor in factors.items()
    }
    gains, resampled, unsure = _mean_gains(selection, samples, scaled, task_gains)
    judged = [differences[key] for key in main]
    families = [family_size(selection, column) for _, column, _ in main]
    every = [gap.deviations() for gap in main.values()]
    level = joint_level(judged, every, error_rate / 2, families)
    gain_level = joint_level([gain.iqm for gain in gains.values()], resampled, error_rate / 2)
    levels = {column: level / family_size(selection, column) for column in selection.columns}
    return Judgement(
        selection,
        estimates,
        differences={key: gap.at(levels[key[1]]) for key, gap in differences.items()},
        task_gains={key: gain.at(levels[key[1]]) for key, gain in task_gains.items()},
        gains={
            name: replace(gain, iqm=gain.iqm.at(gain_level), mean=gain.mean.at(gain_level))
            for name, gain in gains.items()
        },
        excluded=excluded | unsure,
        level=level,
        gain_level=gain_level,
        comparisons=sum(gap.has_interval for gap in judged),
        seed_prior=prior,
    )


def _estimate_numbers(samples: Mapping[Key, MetricSample]) -> dict[Key, Estimate]:
    numbers = {key: Quantity((sample,)) for key, sample in samples.items()}
    noise = [n for key, each in numbers.items() if key[2] == key[1].main for n in each.seed_noise]
    prior = seed_prior(noise, noise)
    estimates = {}
    for key, number in numbers.items():
        declared = key[1].metric(key[2])
        low = -np.inf if declared.low is None else declared.low
        high = np.inf if declared.high is None else declared.high
        estimates[key] = replace(estimate(number, prior), least=low, most=high)
    return estimates


def _prior_of_differences(
    selection: Selection, samples: Mapping[Key, MetricSample], gaps: Mapping[Key, Quantity]
) -> SeedPrior:
    """The prior of the seed variance of main metrics' differences.

    The seed noise of a backbone's number is divided by half of the image variance of its
    difference, that of the baseline's number by half of the mean image variance in its column.
    """
    scales = defaultdict(list)
    for (backbone, column, metric), gap in gaps.items():
        for name in (backbone, selection.baseline):
            if gap.varies:
                scales[name, column, metric].append(gap.image_variance / 2)
    numbers = [
        SeedNoise(samples[key].seeds, samples[key].values, float(np.mean(own)))
        for key, own in scales.items()
    ]
    return seed_prior(numbers, [noise for gap in gaps.values() for noise in gap.seed_noise])


def _percent_factors(
    selection: Selection,
    samples: Mapping[Key, MetricSample],
    estimates: Mapping[Key, Estimate],
    gaps: Mapping[Key, Quantity],
) -> tuple[dict[GridKey, float], dict[TaskColumn, str]]:
    """What makes differences percent of the baseline's number on the same seeds, better positive.

    Returns:
        the factors, and the columns in which that number is too near zero, with that reason.
    """
    factors, excluded = {}, {}
    for (backbone, column, metric), gap in gaps.items():
        key = selection.baseline, column, metric
        base = samples[key]
        if not has_ratio(estimates[key]):
            excluded[column] = f"{selection.baseline} is too near zero"
            continue
        seeds = samples[backbone, column, metric].seeds
        shared = [seed for seed in base.seeds if seed in seeds]
        paired = shared and len(gap.samples) == 1
        value = (base.of(shared) if paired else base).values.mean()
        declared = column.metric(metric)
        factors[backbone, column] = 100 * declared.direction / max(abs(value), declared.floor)
    return factors, excluded


def _mean_gains(
    selection: Selection,
    samples: Mapping[Key, MetricSample],
    scaled: Mapping[GridKey, Quantity],
    task_gains: Mapping[GridKey, Estimate],
) -> tuple[dict[str, Gain], list[np.ndarray | None], dict[TaskColumn, str]]:
    """Each backbone's gain, what resampling the images adds to each, and why columns are excluded.

    A task with unknown noise or too few images is excluded if the backbone has other tasks.
    """
    gains: dict[str, Gain] = {}
    resampled: list[np.ndarray | None] = []
    excluded: dict[TaskColumn, str] = {}
    base = selection.baseline
    for name in selection.backbones:
        own = {column: gap for (backbone, column), gap in scaled.items() if backbone == name}
        if not own:
            continue
        unsure = {column: reason for column, gap in own.items() if (reason := _exclude(gap))}
        complete = len(unsure) < len(own)
        if complete:
            excluded |= unsure
            own = {column: gap for column, gap in own.items() if column not in unsure}
        gaps, tasks = list(own.values()), by_task([column.base for column in own])
        iqm = lambda values, tasks=tasks: interquartile_mean(tasks @ values)
        mean = lambda values, tasks=tasks: (tasks @ values).mean(axis=0)
        values = np.array([gap.value for gap in gaps])
        noise = np.array([task_gains[name, column].variance for column in own])
        around = without_noise(values, noise)
        estimates = [combine(gaps, iqm, around), combine(gaps, mean)]
        if not complete:
            estimates = [replace(each, parts=(), images=0) for each in estimates]
        pairs = [(samples[name, c, c.main], samples[base, c, c.main], c.sign(c.main)) for c in own]
        improvement = probability_of_improvement(pairs, [column.base for column in own])
        gains[name] = Gain(estimates[0], estimates[1], improvement, list(own))
        has_images = estimates[0].images
        resampled.append(iqm(around[:, None] + deviations(gaps)) if has_images else None)
    return gains, resampled, excluded


def _exclude(gap: Quantity) -> str:
    """Why a gain must not count in a mean; '' if it counts."""
    if not gap.has_noise:
        return "its noise is unknown"
    few = 0 < gap.images < MIN_IMAGES
    return f"it has fewer than {MIN_IMAGES} images" if few else ""
