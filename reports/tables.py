"""Tables of a report as frames, and what their cells say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.comparison import Analysis, Judgement, judge_differences, shown_metrics
from reports.records import CEILING, FLOOR
from reports.selection import Selection, TaskColumn
from reports.statistics import LEVEL, Estimate

if TYPE_CHECKING:
    import pandas as pd

MARKS = {"win": "▲", "loss": "▼", "tie": "=", "unknown": "?", "": ""}
HOLLOW = {**MARKS, "win": "△", "loss": "▽"}  # of one seed: of these weights
MARGINS = {"equivalent": "≈", "no worse": "≳"}  # of what is undecided
ACROSS = 6  # with more backbones, the overview has them as rows
MOST_PAIRED = 12  # backbones: with more, hardly any comparison is decided
NAN = float("nan")


@dataclass(frozen=True)
class MetricColumn:
    """A column of a table: a metric of a task under one protocol.

    Attributes:
        label, unit: of the metric; direction: +1 where higher is better, else -1.
        images: number of images that it is computed from; 0 if unknown.
        bounds: of a main metric in words: ``floor 12.3, ceiling 78.0 to 81.5``, see ``FLOOR``.
    """

    column: TaskColumn
    metric: str
    label: str
    unit: str
    direction: int
    digits: int
    images: int
    bounds: str = ""

    @property
    def arrow(self) -> str:
        return "↑" if self.direction > 0 else "↓"


@dataclass(frozen=True)
class Number:
    """A cell of a table and a row of ``results.csv``; missing values are NaN.

    Attributes:
        low, high: of the 95 % interval.
        seeds, images: how many it is computed from; 0 images where their noise is unknown.
        difference: to the baseline.
        detectable: the smallest difference that is decided in 80 % of such comparisons; NaN where
            none is.
        verdict: ``win``, ``loss``, ``tie``, ``unknown``, or '' for the baseline and missing
            numbers; all hold together.
        of_these_weights: whether the verdict is one of a single seed.
        within: ``equivalent`` or ``no worse`` by the report's margin, of what is undecided.
        best: better than every other backbone, at the strictest level of the report's verdicts.
        missing: why there is no number.
        runs: ids of its MLflow runs; shared results have none.
        absent: seeds that the backbone has in other columns but not here.
        shortened: see ``Cell``.
    """

    backbone: str
    task: str
    protocol: str
    metric: str
    direction: int
    value: float = NAN
    low: float = NAN
    high: float = NAN
    standard_error: float = NAN
    seeds: int = 0
    images: int = 0
    difference: float = NAN
    difference_low: float = NAN
    difference_high: float = NAN
    detectable: float = NAN
    verdict: str = ""
    of_these_weights: bool = False
    within: str = ""
    best: bool = False
    missing: str = ""
    runs: tuple[str, ...] = ()
    absent: tuple[int, ...] = ()
    shortened: str = ""
    digits: int = 1

    @property
    def text(self) -> str:
        return decimal(self.value, self.digits)

    @property
    def error(self) -> str:
        """The standard error over seeds, '' for one seed."""
        finite = np.isfinite(self.standard_error)
        return decimal(self.standard_error, self.digits) if finite else ""

    @property
    def interval(self) -> str:
        return bracketed(self.low, self.high, self.digits)

    @property
    def mark(self) -> str:
        """Of the verdict."""
        marks = HOLLOW if self.of_these_weights else MARKS
        return MARGINS.get(self.within) or marks[self.verdict]

    @property
    def change(self) -> str:
        """``▲ +1.2 [+0.3, +2.1]``, or ''."""
        if not self.verdict:
            return ""
        ends = bracketed(self.difference_low, self.difference_high, self.digits, True)
        gap = decimal(self.difference, self.digits, True)
        return f"{self.mark} {gap} {ends}".rstrip()


@dataclass
class ResultTable:
    """Backbones as rows, metrics as columns.

    Attributes:
        frame: of ``Number``; its columns are ``MetricColumn``.
        marks: backbone → text added to its name.
    """

    id: str
    title: str
    frame: pd.DataFrame
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[MetricColumn]:
        columns: Any = self.frame.columns
        return list(columns)

    @property
    def numbers(self) -> list[Number]:
        """All cells, row by row."""
        return list(self.frame.to_numpy().ravel())


def overview(analysis: Analysis) -> ResultTable:
    """Every task's main metric."""
    return _table(analysis, "overview", "At a glance", main_columns(analysis))


def sections(analysis: Analysis) -> list[ResultTable]:
    """A detailed table for each kind of task, in the order of the columns."""
    tables = []
    for kind in dict.fromkeys(column.kind for column in analysis.selection.columns):
        # without metrics that no backbone has (mask mAP of a box detector) but the main one
        columns = [
            _column(analysis, column, metric)
            for column in analysis.selection.columns
            if column.kind == kind
            for metric in shown_metrics(column)
            if metric == column.main or analysis.numbers(column, metric)
        ]
        if columns:
            tables.append(_table(analysis, f"kind-{kind}", kind.capitalize(), columns))
    return tables


def experts_table(analysis: Analysis) -> ResultTable | None:
    """The baseline and each ``cliptex…`` variant with its experts; None without two variants."""
    selection = analysis.selection
    experts = {}
    for name in selection.backbones:
        run = selection.parent(name)
        if run is not None and run.experts:
            experts[name] = list(run.experts)
    if len(experts) < 2:
        return None
    names = sorted(experts, key=lambda name: (len(experts[name]), experts[name]))
    if selection.baseline not in names:
        names.insert(0, selection.baseline)
    table = _table(analysis, "experts", "Role of experts", main_columns(analysis), names)
    table.marks |= {name: f"experts: {' + '.join(experts.get(name, ['none']))}" for name in names}
    return table


def main_columns(analysis: Analysis) -> list[MetricColumn]:
    """The main metric of every task."""
    columns = analysis.selection.columns
    return [_column(analysis, column, column.main) for column in columns if column.main]


def _table(
    analysis: Analysis,
    name: str,
    title: str,
    columns: list[MetricColumn],
    backbones: Sequence[str] = (),
) -> ResultTable:
    import pandas as pd

    names = list(backbones or analysis.selection.backbones)
    cells = [[_number(analysis, backbone, column) for column in columns] for backbone in names]
    shared = analysis.selection.shared
    marks = {backbone: f"shared: {shared[backbone]}" for backbone in names if backbone in shared}
    return ResultTable(name, title, pd.DataFrame(cells, names, pd.Index(columns)), marks)


def _number(analysis: Analysis, backbone: str, of: MetricColumn) -> Number:
    selection, column = analysis.selection, of.column
    key = (backbone, column, of.metric)
    cells = selection.cells.get((backbone, column), [])
    runs = tuple(cell.run_id for cell in cells if not cell.source)
    number = Number(backbone, column.title, column.protocol, of.metric, of.direction, runs=runs)
    estimate = analysis.estimates.get(key)
    if estimate is None:
        reasons = selection.missing | analysis.refused
        reason = reasons.get((backbone, column)) or "no value on this data"
        return replace(number, missing=reason)
    if gap := analysis.differences.get(key):
        number = replace(
            number,
            difference=gap.value,
            difference_low=gap.low,
            difference_high=gap.high,
            detectable=gap.detectable() if gap.is_judged else NAN,
            verdict=gap.verdict(of.direction),
            of_these_weights=gap.seeds == 1,
            within=analysis.within_margin(backbone, column) if of.metric == column.main else "",
        )
    seeds = analysis.samples[key].seeds
    return replace(
        number,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        standard_error=estimate.error,
        seeds=estimate.seeds,
        images=estimate.images,
        best=analysis.best.get((column, of.metric)) == backbone,
        shortened=cells[0].shortened,
        absent=tuple(seed for seed in selection.seeds[backbone] if seed not in seeds),
        digits=of.digits,
    )


def _column(analysis: Analysis, column: TaskColumn, metric: str) -> MetricColumn:
    declared, images = column.metric(metric), analysis.images.get(column, 0)
    label, decimals = declared.label or metric, digits([*analysis.numbers(column, metric).values()])
    bounds = ""
    if metric == column.main:
        ends = bounds_of(analysis.selection, column)
        words = (f"{name} {_range(values, decimals)}" for name, values in ends.items())
        bounds = ", ".join(words)
    unit, direction = declared.unit, declared.direction
    return MetricColumn(column, metric, label, unit, direction, decimals, images, bounds)


def bounds_of(selection: Selection, column: TaskColumn) -> dict[str, dict[str, float]]:
    """``floor`` and ``ceiling`` → backbone → that of its main metric, the mean over its seeds; only
    what some have. A ceiling may depend on a backbone's grid of patches."""
    bounds: dict[str, dict[str, float]] = {}
    for name, key in (("floor", FLOOR), ("ceiling", CEILING)):
        for backbone in selection.backbones:
            cells = selection.cells.get((backbone, column), [])
            if values := [cell.bounds[key] for cell in cells if key in cell.bounds]:
                bounds.setdefault(name, {})[backbone] = float(np.mean(values))
    return bounds


def _range(values: Mapping[str, float], decimals: int) -> str:
    ends = [decimal(end, decimals) for end in (min(values.values()), max(values.values()))]
    return " to ".join(dict.fromkeys(ends))


# --- classes and pairs


@dataclass(frozen=True)
class ClassTable:
    """IoU or AP of the classes of one task.

    Attributes:
        title: of the task.
        metric: ``IoU`` or ``box AP``.
        frame: columns ``class``, ``images`` (that contain it), then each backbone (percent, mean
            over its seeds).
    """

    title: str
    metric: str
    frame: pd.DataFrame


def class_tables(analysis: Analysis) -> list[ClassTable]:
    """One for each task whose probe stores the scores of each class."""
    import pandas as pd

    tables = []
    for column in analysis.selection.columns:
        scores = {
            name: seeds
            for name in analysis.selection.backbones
            if (seeds := analysis.classes.get((name, column)))
        }
        if not scores:
            continue
        first = next(iter(scores.values()))[0]
        values = {
            name: np.mean([seed.values for seed in seeds], axis=0)
            for name, seeds in scores.items()
            if seeds[0].names == first.names
        }
        frame = pd.DataFrame({"class": first.names, "images": first.images, **values})
        tables.append(ClassTable(column.title, first.metric, frame[frame["images"] > 0]))
    return tables


@dataclass(frozen=True)
class PairGain:
    """The gain of a backbone over another one.

    Attributes:
        gain, low, high: mean over tasks in percent of the baseline; NaN if unknown.
        verdict: of the gain: ``win``, ``loss``, ``tie`` or ``unknown``; '' without one.
        wins, losses, undecided: number of tasks.
    """

    backbone: str
    baseline: str
    gain: float
    low: float
    high: float
    verdict: str
    wins: int
    losses: int
    undecided: int


def judge_pairs(analysis: Analysis) -> dict[str, Judgement]:
    """Baseline → the main metrics and mean gains of all others against it; empty for over
    ``MOST_PAIRED`` backbones.

    All pairs hold jointly: each of B baselines has its own family of comparisons, judged at 5 % / B
    (Bonferroni). Of two backbones it is the comparison of the report.
    """
    names, baseline = analysis.selection.backbones, analysis.selection.baseline
    if len(names) <= 2:
        return {baseline: analysis}
    if len(names) > MOST_PAIRED:
        return {}
    main = {key: sample for key, sample in analysis.samples.items() if key[2] == key[1].main}
    numbers = {key: analysis.estimates[key] for key in main}
    return {
        base: judge_differences(
            replace(analysis.selection, baseline=base), main, LEVEL / len(names), numbers
        )
        for base in names
    }


def all_pairs(judgements: Mapping[str, Judgement]) -> dict[tuple[str, str], PairGain]:
    """(backbone, baseline) → their comparison; empty for fewer than three backbones."""
    pairs = {}
    for base, judged in judgements.items() if len(judgements) > 1 else ():
        for name in judged.selection.backbones:
            outcomes = Counter(judged.tasks(name).values())
            if name == base or not outcomes:
                continue
            gain = judged.gains[name].mean if name in judged.gains else Estimate(NAN)
            wins, losses = outcomes["win"], outcomes["loss"]
            pairs[name, base] = PairGain(
                name,
                base,
                gain.value,
                gain.low,
                gain.high,
                gain.verdict() if name in judged.gains else "",
                wins,
                losses,
                outcomes.total() - wins - losses,
            )
    return pairs


# --- text


def digits(estimates: Sequence[Estimate]) -> int:
    """Decimals of a column: two figures of its median uncertainty, between one and three.

    Without any uncertainty, three where values are below 1.
    """
    widths = [(e.high - e.low) / 2 for e in estimates if e.has_interval and e.high > e.low]
    if widths:
        return int(np.clip(1 - math.floor(math.log10(float(np.median(widths)))), 1, 3))
    sizes = [abs(e.value) for e in estimates if e.value]
    return 3 if sizes and float(np.median(sizes)) < 1 else 1


def decimal(value: float, decimals: int, signed: bool = False) -> str:
    """A number for people, with a true minus sign; ``–`` for NaN."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def plain_cell(value: object) -> str:
    """A value that is no ``Number``."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def bracketed(low: float, high: float, decimals: int, signed: bool = False) -> str:
    """``[low, high]``, or '' where an end is unknown."""
    finite = np.isfinite(low) and np.isfinite(high)
    return (
        f"[{decimal(low, decimals, signed)}, {decimal(high, decimals, signed)}]" if finite else ""
    )


def with_interval(estimate: Estimate, decimals: int, signed: bool = False) -> str:
    """``71.2 [70.1, 72.3]``, or ``71.2 (no interval)``."""
    ends = bracketed(estimate.low, estimate.high, decimals, signed) or "(no interval)"
    return f"{decimal(estimate.value, decimals, signed)} {ends}"


def count(amount: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"
