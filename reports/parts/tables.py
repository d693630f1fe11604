"""Tables of a report: the content of each cell, before it becomes HTML, Markdown, CSV or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reports.analysis import Analysis, shown_metrics
from reports.selection import TaskProtocol
from reports.stats.intervals import Estimate

MARKS = {"win": "▲", "loss": "▼", "tie": "=", "unknown": "?", "": ""}
ACROSS = 6  # with more backbones, the overview has them as rows
NAN = float("nan")


@dataclass(frozen=True)
class MetricColumn:
    """A column of a table: a metric of a task under one protocol.

    Attributes:
        images: number of images that it is computed from; 0 if unknown.
    """

    column: TaskProtocol
    metric: str
    digits: int
    images: int

    @property
    def sign(self) -> int:
        return self.column.sign(self.metric)

    @property
    def unit(self) -> str:
        return self.column.metric(self.metric).unit

    @property
    def label(self) -> str:
        return self.column.metric(self.metric).label or self.metric

    @property
    def arrow(self) -> str:
        return "↑" if self.sign > 0 else "↓"


@dataclass(frozen=True)
class Number:
    """A cell of a table and a row of ``results.csv``; missing values are NaN.

    Attributes:
        low, high: of the 95 % interval.
        seeds, images: how many it is computed from; 0 images where their noise is unknown.
        difference: to the baseline; its interval holds jointly with all others.
        detectable: the smallest difference that is detected in 80 % of such comparisons.
        verdict: ``win``, ``loss``, ``tie``, ``unknown``, or '' for the baseline and missing
            numbers.
        best: better than every other backbone by its interval.
        missing: why there is no number.
        runs: ids of its MLflow runs; shared results have none.
        absent: seeds that the backbone has in other columns but not here.
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
    best: bool = False
    missing: str = ""
    runs: tuple[str, ...] = ()
    absent: tuple[int, ...] = ()
    digits: int = 1

    @property
    def text(self) -> str:
        return number(self.value, self.digits)

    @property
    def error(self) -> str:
        """The standard error over seeds, '' for one seed."""
        finite = np.isfinite(self.standard_error)
        return number(self.standard_error, self.digits) if finite else ""

    @property
    def interval(self) -> str:
        return interval(self.low, self.high, self.digits)

    @property
    def change(self) -> str:
        """``▲ +1.2 [+0.3, +2.1]``, or ''."""
        if not self.verdict:
            return ""
        ends = interval(self.difference_low, self.difference_high, self.digits, True)
        return f"{MARKS[self.verdict]} {number(self.difference, self.digits, True)} {ends}".rstrip()


@dataclass
class Table:
    """Backbones as rows, metrics as columns.

    Attributes:
        marks: backbone → text added to its name.
    """

    id: str
    title: str
    heads: list[MetricColumn]
    rows: list[tuple[str, list[Number]]]
    marks: dict[str, str] = field(default_factory=dict)


def overview(analysis: Analysis) -> Table:
    """Every task's main metric."""
    return _table(analysis, "overview", "At a glance", _main_heads(analysis))


def sections(analysis: Analysis) -> list[Table]:
    """A detailed table for each kind of task, in the order of the columns."""
    tables = []
    for kind in dict.fromkeys(column.kind for column in analysis.selection.columns):
        # without metrics that no backbone has (mask mAP of a box detector) but the main one
        heads = [
            _head(analysis, column, metric)
            for column in analysis.selection.columns
            if column.kind == kind
            for metric in shown_metrics(column)
            if metric == column.main or _estimates(analysis, column, metric)
        ]
        if heads:
            tables.append(_table(analysis, f"kind-{kind}", kind.capitalize(), heads))
    return tables


def experts_table(analysis: Analysis) -> Table | None:
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
    table = _table(analysis, "experts", "Role of experts", _main_heads(analysis), names)
    table.marks |= {name: f"experts: {' + '.join(experts.get(name, ['none']))}" for name in names}
    return table


def _main_heads(analysis: Analysis) -> list[MetricColumn]:
    columns = analysis.selection.columns
    return [_head(analysis, column, column.main) for column in columns if column.main]


def _table(
    analysis: Analysis,
    name: str,
    title: str,
    heads: list[MetricColumn],
    backbones: Sequence[str] = (),
) -> Table:
    rows = [
        (backbone, [_number(analysis, backbone, head) for head in heads])
        for backbone in backbones or analysis.selection.backbones
    ]
    shared = analysis.selection.shared
    marks = {backbone: f"shared: {shared[backbone]}" for backbone, _ in rows if backbone in shared}
    return Table(name, title, heads, rows, marks)


def _number(analysis: Analysis, backbone: str, head: MetricColumn) -> Number:
    selection, column = analysis.selection, head.column
    key = (backbone, column, head.metric)
    cells = selection.cells.get((backbone, column), [])
    runs = tuple(cell.run_id for cell in cells if not cell.source)
    cell = Number(backbone, column.title, column.protocol, head.metric, head.sign, runs=runs)
    estimate = analysis.estimates.get(key)
    if estimate is None:
        reason = selection.missing.get((backbone, column)) or "no value on this data"
        return replace(cell, missing=reason)
    if gap := analysis.differences.get(key):
        cell = replace(
            cell,
            difference=gap.value,
            difference_low=gap.low,
            difference_high=gap.high,
            detectable=gap.detectable(),
            verdict=gap.verdict(head.sign),
        )
    seeds = analysis.samples[key].seeds
    return replace(
        cell,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        standard_error=estimate.error,
        seeds=estimate.seeds,
        images=estimate.images,
        best=analysis.best.get((column, head.metric)) == backbone,
        absent=tuple(seed for seed in selection.seeds[backbone] if seed not in seeds),
        digits=head.digits,
    )


def _head(analysis: Analysis, column: TaskProtocol, metric: str) -> MetricColumn:
    decimals = digits(_estimates(analysis, column, metric))
    return MetricColumn(column, metric, decimals, analysis.images.get(column, 0))


def _estimates(analysis: Analysis, column: TaskProtocol, metric: str) -> list[Estimate]:
    keys = [(backbone, column, metric) for backbone in analysis.selection.backbones]
    return [analysis.estimates[key] for key in keys if key in analysis.estimates]


def digits(estimates: Sequence[Estimate]) -> int:
    """Decimals of a column: two figures of its median uncertainty, between one and three.

    Without any uncertainty, three where values are below 1.
    """
    widths = [(e.high - e.low) / 2 for e in estimates if e.has_interval and e.high > e.low]
    if widths:
        return int(np.clip(1 - math.floor(math.log10(float(np.median(widths)))), 1, 3))
    sizes = [abs(e.value) for e in estimates if e.value]
    return 3 if sizes and float(np.median(sizes)) < 1 else 1


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number for people, with a true minus sign; ``–`` for NaN."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(low: float, high: float, decimals: int, signed: bool = False) -> str:
    """``[low, high]``, or '' where an end is unknown."""
    finite = np.isfinite(low) and np.isfinite(high)
    return f"[{number(low, decimals, signed)}, {number(high, decimals, signed)}]" if finite else ""


def count(amount: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"
