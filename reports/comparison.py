"""From selected runs to judged numbers: ``measure`` reads and resamples scores,
``judge_differences`` gives intervals and joint verdicts, ``analyse`` is both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reports.per_image import ClassScores, ImageScores, agrees, image_scores
from reports.records import DETECTIONS, LEVELS, PER_IMAGE, TYPES, Cell, damaged
from reports.selection import Selection, TaskColumn
from reports.statistics import (
    LEVEL,
    MIN_IMAGES,
    Estimate,
    MetricSample,
    SeedPrior,
    difference,
    estimate,
    estimate_mean,
    image_weights,
    judge_jointly,
    pair_samples,
    seed_prior,
    task_weights,
)
from reports.store import Artifacts

ColumnKey = tuple[str, TaskColumn]  # backbone, column
NumberKey = tuple[str, TaskColumn, str]  # backbone, column, metric


@dataclass(frozen=True)
class Measurements:
    """What the selected runs hold.

    Attributes:
        scores: per-image scores of each backbone's first seed, to choose pictures by.
        images: column → number of images that its numbers are computed from.
        classes: the metric of each class, one for each seed.
        refused: (backbone, column) → why its scores are not used.
        inconsistent: numbers that differ from those of their per-image scores.
        unscored: numbers with resamples that have nothing to score, and how many.
    """

    samples: dict[NumberKey, MetricSample]
    scores: dict[ColumnKey, ImageScores]
    images: dict[TaskColumn, int]
    classes: dict[ColumnKey, list[ClassScores]]
    refused: dict[ColumnKey, str]
    inconsistent: list[str]
    unscored: list[str]


def shown_metrics(column: TaskColumn) -> list[str]:
    """Metrics of a column that the detailed tables show, the main one first."""
    return [name for name, metric in column.metrics if metric.shown or name == column.main]


def measure(store: Artifacts, selection: Selection, advance: Callable[[], None]) -> Measurements:
    """Read and resample the per-image scores of all columns."""
    measured = Measurements({}, {}, {}, {}, {}, [], [])  # filled column by column
    # zlib and sorting release the interpreter's lock; the steps of resampling are too short for it
    with ThreadPoolExecutor() as pool:
        for column in selection.columns:
            in_column = selection.column_cells(column)
            loaded = list(pool.map(partial(load_scores, store), in_column))
            by_cell = zip(in_column, loaded, find_problems(loaded), strict=True)
            by_run = {cell.run_id: (scores, problem) for cell, scores, problem in by_cell}
            image_set = next(filter(None, (cell.image_set for cell in in_column)), "")
            for backbone in selection.backbones:
                advance()
                if not (cells := selection.cells.get((backbone, column), [])):
                    continue
                scores, problems = zip(*(by_run[cell.run_id] for cell in cells), strict=True)
                if problem := next(filter(None, problems), ""):
                    measured.refused[backbone, column] = problem
                    continue
                if scores[0]:
                    measured.scores[backbone, column] = scores[0]
                classes = [each.classes for each in scores if each and each.classes]
                measured.classes[backbone, column] = classes
                usable = [] if None in scores else scores
                _add_samples(measured, (backbone, column), cells, usable, image_set)
    image_weights.cache_clear()
    return measured


def find_problems(loaded: Sequence[ImageScores | None]) -> list[str]:
    """Why each of the per-image scores of a column must not be used: it is of other images than
    most, or not finite where others are; '' if it may be, or there are none.
    """
    units = Counter(scores.units for scores in loaded if scores)
    if not units:
        return [""] * len(loaded)
    usual = units.most_common(1)[0][0]
    finite = np.stack([scores.finite for scores in loaded if scores and scores.units == usual])
    is_scored = finite.any(axis=0)
    problems = []
    for scores in loaded:
        problem = ""
        if scores and scores.units != usual:
            problem = "its scores are of other images"
        elif scores and (count := (is_scored & ~scores.finite).sum()):
            problem = f"{count} of {finite.shape[1]} images have no finite score"
        problems.append(problem)
    return problems


def load_scores(store: Artifacts, cell: Cell) -> ImageScores | None:
    """The per-image scores of a cell; None if it stored none.

    Raises:
        TrackingError: the artifact exists but cannot be read.
    """
    arrays = store.arrays(cell, PER_IMAGE)
    detections = store.arrays(cell, DETECTIONS, TYPES) if cell.kind == "detection" else None
    try:
        return image_scores(cell.kind, arrays, detections) if arrays else None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise damaged(PER_IMAGE, cell.run_id, cell.name, error) from error


def _add_samples(
    measured: Measurements,
    key: ColumnKey,
    cells: Sequence[Cell],
    scores: Sequence[ImageScores],
    image_set: str,
) -> None:
    """Add the samples of a backbone's column.

    Args:
        scores: of each cell, over the same units; empty where a cell has none.
        image_set: that the units are of, see ``Cell``.
    """
    backbone, column = key
    images = scores[0].units if scores else ()
    # one array for all metrics: scores cache what follows from the last one
    weights = image_weights(images, image_set)
    weights = weights[: min((score.most_resamples for score in scores), default=0)]
    measured.images.setdefault(column, 0)
    for metric in shown_metrics(column):
        stored = np.array([cell.metrics.get(metric, np.nan) for cell in cells])
        usable = np.flatnonzero(np.isfinite(stored))
        if not len(usable):
            continue
        values, seeds = stored[usable], tuple(cells[number].seed for number in usable)
        sample = MetricSample(seeds, values)
        if scores and all(metric in score.metrics for score in scores):
            used = [scores[number] for number in usable]
            again = np.array([score.value(metric) for score in used])
            consistent = agrees(again, values)
            label = f"{backbone} · {column.title} · {metric}"
            if consistent.all():
                sampled = np.stack([score.metrics[metric](weights) for score in used])
                valid = np.isfinite(sampled).all(axis=0)
                if valid.sum() >= MIN_IMAGES:
                    sampled = np.where(valid, sampled, np.nan)
                    sample = MetricSample(seeds, values, sampled, len(images))
                if not valid.all():
                    share = f"{valid.size - valid.sum()} of {valid.size}"
                    measured.unscored.append(f"{label} ({share})")
            else:
                wrong = np.flatnonzero(~consistent)[0]
                measured.inconsistent.append(
                    f"{label} (stored {values[wrong]:.4g}, from images {again[wrong]:.4g})"
                )
        measured.images[column] = max(sample.images, measured.images[column])
        measured.samples[backbone, column, metric] = sample


GAIN_SHARE = 0.25
FURTHER_SHARE = 0.1  # of a decided mark's part, for the task's further metrics and for bold


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
class Lead:
    """That a backbone is better than every other one; of the baseline its mark says so. It is
    decided where all of these differences are (an intersection-union test).

    Attributes:
        gaps: to each other one, positive where it is better.
    """

    gaps: tuple[Estimate, ...]
    level: float = 0.0
    has_verdict: bool = True

    @property
    def is_judged(self) -> bool:
        return self.has_verdict and all(gap.is_judged for gap in self.gaps)

    def is_decided(self, level: float) -> bool:
        return all(gap.value > 0 and gap.is_decided(level) for gap in self.gaps)


@dataclass(frozen=True)
class Judgement:
    """All backbones against one baseline.

    Attributes:
        estimates: the numbers.
        differences: number - the baseline's; all verdicts hold together with those of the mean
            gains. A further metric has one only where the main one is decided.
        task_gains: differences of main metrics in percent of the baseline's number, positive where
            the backbone is better.
        level_gains: (backbone, level) → its mean gain over the tasks of a level, where there are
            tasks of all ``LEVELS``.
        excluded: (backbone, column) → why it is not in the mean gain.
        best: (column, metric) → the backbone that is better than each other one, or ''.
        statements: how many verdicts hold together.
        level: the least of those of main metrics.
        seed_prior: what is known of the seed variance of a difference from all of them.
    """

    selection: Selection
    estimates: dict[NumberKey, Estimate]
    differences: dict[NumberKey, Estimate]
    task_gains: dict[ColumnKey, Estimate]
    gains: dict[str, Gain]
    level_gains: dict[tuple[str, str], Gain]
    excluded: dict[ColumnKey, str]
    best: dict[tuple[TaskColumn, str], str]
    statements: int
    level: float
    seed_prior: SeedPrior

    def outcome(self, backbone: str, column: TaskColumn) -> str:
        """``Estimate.verdict`` on a column's main metric; '' without a difference."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.metric(column.main).direction)

    def numbers(self, column: TaskColumn, metric: str) -> dict[str, Estimate]:
        """Backbone → its number in a column, of those that have one."""
        return {
            name: self.estimates[name, column, metric]
            for name in self.selection.backbones
            if (name, column, metric) in self.estimates
        }

    def tasks(self, backbone: str, tuned: bool = False) -> dict[str, str]:
        """Task → outcome against the baseline: of frozen tasks or, where there are none, of
        tuned ones.

        Of several protocols or variants the decided outcome, ``tie`` where they contradict.

        Args:
            tuned: the tuned tasks beside frozen ones instead.
        """
        outcomes: dict[tuple[bool, str], set[str]] = defaultdict(set)
        for column in self.selection.columns:
            if outcome := self.outcome(backbone, column):
                outcomes[bool(column.tier), column.base].add(outcome)
        frozen, of_tiers = dict[str, str](), dict[str, str]()
        for (is_tuned, task), of_columns in outcomes.items():
            agreed = of_columns & {"win", "loss"} or of_columns & {"tie"} or of_columns
            result = of_tiers if is_tuned else frozen
            result[task] = agreed.pop() if len(agreed) == 1 else "tie"
        if not frozen:
            frozen, of_tiers = of_tiers, {}
        return of_tiers if tuned else frozen

    def of_these_weights(self, backbone: str) -> bool:
        """Whether a comparison has one seed, or its mean gain or what is decided of it has: then it
        says nothing of other trainings."""
        seeds = self.selection.seeds
        decided = [
            gap
            for (name, column, metric), gap in self.differences.items()
            if name == backbone and metric == column.main and gap.verdict() in ("win", "loss")
        ]
        if backbone in self.gains:
            decided.append(self.gains[backbone].mean)
        fewest = min(len(seeds[backbone]), len(seeds[self.selection.baseline]))
        return fewest == 1 or any(gap.seeds == 1 for gap in decided)


def first_level(tasks: int, backbones: int = 2) -> float:
    """The level of a main metric before anything is decided, of so many tasks and backbones."""
    return LEVEL * (1 - GAIN_SHARE) / (tasks * (backbones - 1))


def judge_differences(
    selection: Selection,
    samples: Mapping[NumberKey, MetricSample],
    error_rate: float = LEVEL,
    estimates: Mapping[NumberKey, Estimate] | None = None,
) -> Judgement:
    """Intervals, differences, gains, and joint verdicts.

    The mean gains, which are few, have ``GAIN_SHARE`` of the error rate, half of it those of levels
    where there are any. Of the rest each task has
    an equal part, which its columns and backbones share. Where a main metric is decided, the
    further ones, and with three backbones whether this one is the best, share ``FURTHER_SHARE`` of
    its part; so does that of a further metric.

    Args:
        error_rate: probability of any false verdict among them.
        estimates: of the samples, where they are known.
    """
    base = selection.baseline
    estimates = dict(estimates or _estimate_numbers(selection, samples))
    pairs = {
        key: pair_samples(sample, samples[base, *key[1:]])
        for key, sample in samples.items()
        if key[0] != base and (base, *key[1:]) in samples
    }
    gaps = {key: difference(*pair) for key, pair in pairs.items()}
    main = [key for key in gaps if key[2] == key[1].main]
    prior = seed_prior([gaps[key] for key in main])
    differences = {
        key: estimate(gap, prior, key[1].metric(key[2]).width) for key, gap in gaps.items()
    }
    task_gains, excluded = {}, {}
    for key in main:
        backbone, column, metric = key
        if not _has_percent(estimates[base, column, metric]):
            excluded[backbone, column] = f"the interval of {base} includes half of its number"
            continue
        mine, reference = pairs[key]
        gain, error, unit = _percent(mine, reference, column.metric(metric).direction)
        noise = estimate(error, prior, abs(unit) * column.metric(metric).width)
        task_gains[backbone, column] = replace(noise, value=gain)
    columns_of_means, tuned = _columns_of_means(main, task_gains)
    gains, unsure = _mean_gains(selection, samples, task_gains, columns_of_means)
    level_gains = _level_gains(selection, samples, task_gains, columns_of_means)
    leads = _leads(selection, samples, estimates, differences, prior)
    differences, gains, level_gains, leads = _judge(
        differences, gains, level_gains, leads, error_rate
    )
    means = [gain.mean for gain in (*gains.values(), *level_gains.values())]
    statements = [*differences.values(), *means]
    columns = {key[1:]: None for key in samples}
    return Judgement(
        selection,
        estimates,
        differences,
        task_gains,
        gains,
        level_gains,
        excluded | tuned | unsure,
        best={key: _best(selection, estimates, differences, leads, *key) for key in columns},
        statements=sum(each.is_judged for each in statements),
        level=min((differences[key].level for key in main), default=error_rate),
        seed_prior=prior,
    )


def _first(
    selection: Selection, estimates: Mapping[NumberKey, Estimate], column: TaskColumn, metric: str
) -> str:
    """The backbone with the best number."""
    sign = column.metric(metric).direction
    names = [name for name in selection.backbones if (name, column, metric) in estimates]
    return max(names, key=lambda name: sign * estimates[name, column, metric].value)


def _leads(
    selection: Selection,
    samples: Mapping[NumberKey, MetricSample],
    estimates: Mapping[NumberKey, Estimate],
    differences: Mapping[NumberKey, Estimate],
    prior: SeedPrior,
) -> dict[NumberKey, Lead]:
    """Of each column's first backbone, if it is not the baseline and there is a third one.

    One for each column and metric is enough: if several are equally good, the first one leads the
    second by no more, whatever their number, than one of two leads the other.
    """
    names: dict[tuple[TaskColumn, str], list[str]] = {}
    for name, column, metric in differences:
        names.setdefault((column, metric), []).append(name)
    leads = {}
    for (column, metric), compared in names.items():
        declared, first = column.metric(metric), _first(selection, estimates, column, metric)
        if len(compared) == 1 or first == selection.baseline:
            continue
        gaps = []
        for other in compared:
            if other != first:
                gap = difference(samples[first, column, metric], samples[other, column, metric])
                found = estimate(gap, prior, declared.width)
                gaps.append(replace(found, value=found.value * declared.direction))
        leads[first, column, metric] = Lead(tuple(gaps))
    return leads


def _judge(
    differences: Mapping[NumberKey, Estimate],
    gains: Mapping[str, Gain],
    level_gains: Mapping[tuple[str, str], Gain],
    leads: Mapping[NumberKey, Lead],
    error_rate: float,
) -> tuple[
    dict[NumberKey, Estimate],
    dict[str, Gain],
    dict[tuple[str, str], Gain],
    dict[NumberKey, Lead],
]:
    """Differences, mean gains and leads with joint verdicts."""
    main = [key for key in differences if key[2] == key[1].main]
    columns = {key[:2]: row for row, key in enumerate(main)}
    further = [key for key in differences if key[2] != key[1].main and key[:2] in columns]
    keys = [*main, *further]
    rows = {key: row for row, key in enumerate(keys)}
    led = [key for key in leads if key in rows]
    parents = [columns[key[:2]] for key in further] + [rows[key] for key in led]
    weights = list((1 - GAIN_SHARE) * task_weights([column.base for _, column, _ in main]))
    for parent in parents:
        weights.append(FURTHER_SHARE * weights[parent] / parents.count(parent))
    means = [*gains.values(), *level_gains.values()]
    kinds = [each for each in (gains, level_gains) if each]
    of_means = [GAIN_SHARE / len(kinds) / len(each) for each in kinds for _ in each]
    judged = judge_jointly(
        [
            *(differences[key] for key in keys),
            *(leads[key] for key in led),
            *(gain.mean for gain in means),
        ],
        [*weights, *of_means],
        error_rate,
        [*[-1] * len(main), *parents, *[-1] * len(means)],
    )
    without_main = {
        key: replace(gap, level=0.0, has_verdict=False) for key, gap in differences.items()
    }
    of_all = iter(judged[len(judged) - len(means) :])
    return (
        without_main | dict(zip(keys, judged, strict=False)),
        {name: replace(gain, mean=next(of_all)) for name, gain in gains.items()},
        {key: replace(gain, mean=next(of_all)) for key, gain in level_gains.items()},
        dict(zip(led, judged[len(keys) :], strict=False)),
    )


def _best(
    selection: Selection,
    estimates: Mapping[NumberKey, Estimate],
    differences: Mapping[NumberKey, Estimate],
    leads: Mapping[NumberKey, Lead],
    column: TaskColumn,
    metric: str,
) -> str:
    """The backbone that is better than each other one: than the baseline by its mark (the baseline
    itself by the marks of all), than others by its ``Lead``; '' for none."""
    first = _first(selection, estimates, column, metric)
    sign = column.metric(metric).direction
    verdicts = {
        name: differences[name, column, metric].verdict(sign)
        for name in selection.backbones
        if (name, column, metric) in differences
    }
    if first == selection.baseline:
        return first if verdicts and {*verdicts.values()} == {"loss"} else ""
    lead = leads.get((first, column, metric))
    is_best = lead is None or (lead.is_judged and lead.is_decided(lead.level))
    return first if verdicts.get(first) == "win" and is_best else ""


def _estimate_numbers(
    selection: Selection, samples: Mapping[NumberKey, MetricSample]
) -> dict[NumberKey, Estimate]:
    """The numbers, each with what its backbone's other tasks tell of the noise of seeds."""
    priors = {
        name: seed_prior([s for k, s in samples.items() if (k[0], k[2]) == (name, k[1].main)])
        for name in selection.backbones
    }
    estimates = {}
    for key, sample in samples.items():
        metric = key[1].metric(key[2])
        number = estimate(sample, priors[key[0]], metric.width)
        least = -np.inf if metric.low is None else metric.low
        estimates[key] = replace(number, least=least, width=metric.width)
    return estimates


def _has_percent(base: Estimate) -> bool:
    """Whether a change in percent of ``base`` is meaningful: its interval excludes half of it, and
    with that zero."""
    if not np.isfinite(base.value) or base.value == 0:
        return False
    return not base.has_interval or min(base.low / base.value, base.high / base.value) > 0.5


def _percent(
    mine: MetricSample, base: MetricSample, direction: int
) -> tuple[float, MetricSample, float]:
    """The difference in percent of the baseline's number, positive where ``mine`` is better; a
    sample of its error; and how many percent a unit of the metric is, negative where lower is
    better."""
    value, reference = (side.value for side in pair_samples(mine, base))
    unit = 100 * direction / abs(reference)
    # the error of a ratio, to first order: that of this sum, whose own mean is zero
    error = difference(mine, base, weights=(unit, -unit * value / reference))
    return unit * (value - reference), error, unit


def _columns_of_means(
    main: Iterable[NumberKey], task_gains: Mapping[ColumnKey, Estimate]
) -> tuple[dict[str, list[TaskColumn]], dict[ColumnKey, str]]:
    """Backbone → the columns that its mean gains may be over, and why others that have a gain are
    excluded: tiers share no mean, so a backbone with frozen tasks, whether these have a gain or
    not, has no mean of tuned ones."""
    has_frozen = {backbone for backbone, column, _ in main if not column.tier}
    columns: dict[str, list[TaskColumn]] = defaultdict(list)
    excluded = {}
    for backbone, column in task_gains:
        if column.tier and backbone in has_frozen:
            excluded[backbone, column] = "its backbone is tuned"
        else:
            columns[backbone].append(column)
    return columns, excluded


def _mean_gains(
    selection: Selection,
    samples: Mapping[NumberKey, MetricSample],
    task_gains: Mapping[ColumnKey, Estimate],
    columns: Mapping[str, Sequence[TaskColumn]],
) -> tuple[dict[str, Gain], dict[ColumnKey, str]]:
    """Each backbone's mean gain over its ``columns``, and why some of these are excluded: they have
    too few images, and others enough.

    Seeds exclude no column. The mean is over the seeds that all columns have, of the backbone and
    of the baseline each; if there are none, over all. With one seed it has no verdict.
    """
    gains: dict[str, Gain] = {}
    excluded: dict[ColumnKey, str] = {}
    for name in filter(columns.get, selection.backbones):
        pairs = {
            column: [samples[side, column, column.main] for side in (name, selection.baseline)]
            for column in columns[name]
        }
        images = {column: task_gains[name, column].images for column in pairs}
        few = [column for column, count in images.items() if count < MIN_IMAGES]
        for column in few if len(few) < len(images) else ():
            of_few = f"it has fewer than {MIN_IMAGES} images with scores"
            unknown = "the noise of its images is unknown"
            excluded[name, column] = of_few if images[column] else unknown
            del pairs[column]
        own = [*pairs]
        mine, base = map(_with_shared_seeds, zip(*pairs.values(), strict=True))
        directions = [column.metric(column.main).direction for column in own]
        percents = [*map(_percent, mine, base, directions)]
        weights = task_weights([column.base for column in own])
        mean = estimate_mean([error for _, error, _ in percents], weights)
        value = float(weights @ [gain for gain, _, _ in percents])
        gains[name] = Gain(replace(mean, value=value, has_verdict=mean.seeds > 1), own)
    return gains, excluded


def _with_shared_seeds(samples: Sequence[MetricSample]) -> list[MetricSample]:
    """The samples with the seeds that all have, or as they are if there are none."""
    shared = sorted(set.intersection(*(set(sample.seeds) for sample in samples)))
    return [sample.with_seeds(shared or sample.seeds) for sample in samples]


def _level_gains(
    selection: Selection,
    samples: Mapping[NumberKey, MetricSample],
    task_gains: Mapping[ColumnKey, Estimate],
    columns: Mapping[str, Sequence[TaskColumn]],
) -> dict[tuple[str, str], Gain]:
    """Each backbone's mean gain over those of its ``columns`` that are of each level; none where a
    level has no task."""
    if len({column.level for own in columns.values() for column in own}) < len(LEVELS):
        return {}
    by_level = {}
    for level in LEVELS:
        own = {name: [c for c in each if c.level == level] for name, each in columns.items()}
        by_level[level], _ = _mean_gains(selection, samples, task_gains, own)
    return {
        (name, level): gains[name]
        for name in selection.backbones
        for level, gains in by_level.items()
        if name in gains
    }


@dataclass(frozen=True)
class Analysis(Judgement, Measurements):
    """All numbers of a report: what was measured, and the judgement on it.

    Attributes:
        margin: by which a backbone may be worse: of the main metric's own unit, or with ``%`` of
            the baseline's number; '' for none.
    """

    margin: str = ""

    def within_margin(self, backbone: str, column: TaskColumn) -> str:
        """``Estimate.within`` of an undecided main metric, at the strictest level of the report."""
        key = (backbone, column, column.main)
        if not self.margin or self.outcome(backbone, column) != "tie":
            return ""
        size = float(self.margin.rstrip("%"))
        if self.margin.endswith("%"):
            size *= abs(self.estimates[self.selection.baseline, *key[1:]].value) / 100
        sign = column.metric(column.main).direction
        return self.differences[key].within(size, self.level, sign)

    def lead(self, name: str, base: str, column: TaskColumn, metric: str) -> Estimate:
        """How much better ``name`` is than ``base``, any two backbones; positive is better. Its
        verdict is at the level at which the report judges its pairs."""
        own, other = (self.samples[each, column, metric] for each in (name, base))
        declared = column.metric(metric)
        gap = difference(own, other) if declared.direction > 0 else difference(other, own)
        return replace(estimate(gap, self.seed_prior, declared.width), level=self.level)


def analyse(
    store: Artifacts,
    selection: Selection,
    advance: Callable[[], None] = lambda: None,
    margin: str = "",
) -> Analysis:
    """Read per-image scores, resample them, and compute all numbers of a report.

    Args:
        advance: called once for each backbone of each column.
        margin: see ``Analysis``.

    Raises:
        TrackingError: an artifact is damaged.
    """
    measured = measure(store, selection, advance)
    judged = judge_differences(selection, measured.samples)
    return Analysis(**vars(measured), **vars(judged), margin=margin)
