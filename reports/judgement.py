"""Backbones against a baseline: intervals, differences, gains, and verdicts that hold together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from reports.measurements import GridKey, Key
from reports.selection import Selection, TaskColumn
from reports.stats.gains import task_weights
from reports.stats.intervals import (
    LEVEL,
    MIN_IMAGES,
    Estimate,
    SeedPrior,
    estimate,
    judge_jointly,
    seed_prior,
)
from reports.stats.resampling import MetricSample, pair_samples, weighted_sum

GAIN_SHARE = 0.25
MOST_NOISE = 1 / 3  # half width of a baseline's interval, relative to the mean of both numbers


@dataclass(frozen=True)
class Gain:
    """A backbone's mean gain over the baseline in percent.

    Attributes:
        mean: over tasks; several columns of a task are averaged first.
        columns: the columns that count.
    """

    mean: Estimate
    columns: list[TaskColumn]


@dataclass(frozen=True)
class Judgement:
    """All backbones against one baseline.

    Attributes:
        estimates: the numbers.
        differences: number - the baseline's; the verdicts of main metrics hold together with those
            of the mean gains.
        task_gains: differences of main metrics in percent of the baseline's number, positive where
            the backbone is better.
        excluded: column → why it is in no mean gain.
        statements: how many verdicts hold together.
        level: the least of those of the differences.
        seed_prior: what is known of the seed variance of a difference from all of them.
    """

    selection: Selection
    estimates: dict[Key, Estimate]
    differences: dict[Key, Estimate]
    task_gains: dict[GridKey, Estimate]
    gains: dict[str, Gain]
    excluded: dict[TaskColumn, str]
    statements: int
    level: float
    seed_prior: SeedPrior

    def outcome(self, backbone: str, column: TaskColumn) -> str:
        """``Estimate.verdict`` on a column's main metric; '' without a difference."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.sign(column.main))

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

    def of_these_weights(self, backbone: str) -> bool:
        """Whether a comparison has one seed, and says nothing of other trainings."""
        seeds = self.selection.seeds
        return min(len(seeds[backbone]), len(seeds[self.selection.baseline])) == 1


def judge_differences(
    selection: Selection, samples: Mapping[Key, MetricSample], error_rate: float = LEVEL
) -> Judgement:
    """Intervals, differences, gains, and joint verdicts.

    The mean gains, which are few, have ``GAIN_SHARE`` of the error rate. Of the rest each task has
    an equal part, which its columns and backbones share.

    Args:
        error_rate: probability of any false verdict among them.
    """
    base = selection.baseline
    estimates = _estimate_numbers(samples)
    pairs = {
        key: pair_samples(sample, samples[base, *key[1:]])
        for key, sample in samples.items()
        if key[0] != base and (base, *key[1:]) in samples
    }
    gaps = {key: weighted_sum(pair, (1, -1)) for key, pair in pairs.items()}
    main = [key for key in gaps if key[2] == key[1].main]
    prior = seed_prior([gaps[key] for key in main])
    differences = {
        key: estimate(gap, prior, key[1].metric(key[2]).width) for key, gap in gaps.items()
    }
    errors, task_gains, excluded = {}, {}, {}
    for key in main:
        backbone, column, metric = key
        if not _has_percent(estimates[base, column, metric], estimates[key]):
            excluded[column] = f"{base} is too near zero for percentages"
            continue
        mine, reference = (float(side.values.mean()) for side in pairs[key])
        unit = 100 * column.sign(metric) / abs(reference)
        # the error of a ratio, to first order: its gain is that of this sum, and not its zero mean
        error = weighted_sum(pairs[key], (unit, -unit * mine / reference))
        gain = estimate(error, prior, abs(unit) * column.metric(metric).width)
        errors[backbone, column] = error
        task_gains[backbone, column] = replace(gain, value=unit * (mine - reference))
    gains, unsure = _mean_gains(selection, errors, task_gains)
    means = [gain.mean for gain in gains.values()]
    of_tasks = (1 - GAIN_SHARE) * task_weights([column.base for _, column, _ in main])
    shares = [*of_tasks, *[GAIN_SHARE / max(len(means), 1)] * len(means)]
    judged = judge_jointly([*(differences[key] for key in main), *means], shares, error_rate)
    levels = {key[:2]: each.level for key, each in zip(main, judged, strict=False)}
    return Judgement(
        selection,
        estimates,
        {key: replace(gap, level=levels.get(key[:2], LEVEL)) for key, gap in differences.items()},
        task_gains,
        {
            name: replace(gain, mean=mean)
            for (name, gain), mean in zip(gains.items(), judged[len(main) :], strict=True)
        },
        excluded | unsure,
        statements=sum(each.is_judged for each in judged),
        level=min(levels.values(), default=error_rate),
        seed_prior=prior,
    )


def _estimate_numbers(samples: Mapping[Key, MetricSample]) -> dict[Key, Estimate]:
    prior = seed_prior([sample for key, sample in samples.items() if key[2] == key[1].main])
    estimates = {}
    for key, sample in samples.items():
        metric = key[1].metric(key[2])
        number = estimate(sample, prior, metric.width)
        estimates[key] = replace(number, least=metric.low or 0.0, width=metric.width)
    return estimates


def _has_percent(base: Estimate, mine: Estimate) -> bool:
    """Whether a change in percent of ``base`` is meaningful: its own noise is small beside it.

    Beside the mean of both numbers, too, which hardly depends on their ratio: where the baseline
    alone decides, it is shown where chance has raised it.
    """
    size, both = abs(base.value), (abs(base.value) + abs(mine.value)) / 2
    if not np.isfinite(size) or size == 0:
        return False
    return not base.has_interval or base.reach() < MOST_NOISE * min(both, 2 * size)


def _mean_gains(
    selection: Selection,
    errors: Mapping[GridKey, MetricSample],
    task_gains: Mapping[GridKey, Estimate],
) -> tuple[dict[str, Gain], dict[TaskColumn, str]]:
    """Each backbone's mean gain, and why columns are excluded.

    Columns with fewer seeds than others, or with too few images, are excluded: the mean is over
    seeds that all its tasks have. With one seed it has no verdict.
    """
    gains: dict[str, Gain] = {}
    excluded: dict[TaskColumn, str] = {}
    for name in selection.backbones:
        own = {column: error for (backbone, column), error in errors.items() if backbone == name}
        if not own:
            continue
        evidence = {c: (error.images >= MIN_IMAGES, len(error.seeds)) for c, error in own.items()}
        best = max(evidence.values())
        excluded |= {
            column: "it has fewer seeds than others"
            if each[0] == best[0]
            else f"it has fewer than {MIN_IMAGES} images with scores"
            for column, each in evidence.items()
            if each != best
        }
        columns = [column for column in own if evidence[column] == best]
        weights = task_weights([column.base for column in columns])
        values = np.array([task_gains[name, column].value for column in columns])
        mean = estimate(weighted_sum([own[column] for column in columns], weights))
        mean = replace(mean, value=float(weights @ values), has_verdict=mean.seeds > 1)
        gains[name] = Gain(mean, columns)
    return gains, excluded
