"""Tables of a report: what stands in which cell, before it becomes HTML, Markdown, CSV or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reports.analysis import Analysis, shown_metrics
from reports.selection import TaskProtocol
from reports.stats.intervals import Estimate

SECTIONS = (
    ("segmentation", "Semantic segmentation", lambda c: c.kind == "segmentation"),
    ("detection", "Detection and instance segmentation", lambda c: c.kind == "detection"),
    ("geometry", "Depth and surface normals", lambda c: c.kind in ("depth", "normals")),
    (
        "classification",
        "Classification",
        lambda c: c.kind == "classification" and not c.task.endswith("/zero-shot"),
    ),
    (
        "zero-shot",
        "Zero-shot and retrieval",
        lambda c: c.kind == "image-text" or c.task.endswith("/zero-shot"),
    ),
    ("other", "Other tasks", lambda c: True),
)
MARKS = {"win": "▲", "loss": "▼", "tie": "=", "unknown": "?", "": ""}
ACROSS = 6  # backbones: more than these stand as rows, with what is known of them
EXPERTS = ("seg", "depth", "normal")
NAN = float("nan")


@dataclass(frozen=True)
class MetricColumn:
    """One column of a table: a metric of a task under one protocol, computed from so many images
    (0: not known)."""

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
    def words(self) -> str:
        return self.column.metric(self.metric).label or self.metric

    @property
    def arrow(self) -> str:
        return "↑" if self.sign > 0 else "↓"


@dataclass(frozen=True)
class Number:
    """What stands where a backbone meets a column, and a row of ``results.csv``; NaN where there is
    none.

    Attributes:
        low, high: of the 95 % interval.
        seeds, images: how many it is computed from; no ``images`` where their noise is not known.
        difference: to the baseline, with the interval that holds together with all others.
        detectable: the smallest difference that would be told apart in 80 % of such comparisons.
        verdict: ``win``, ``loss``, ``tie``, ``unknown``, or '' for the baseline and missing
            numbers.
        best: better than every other backbone by its interval.
        missing: why there is no number.
        runs: ids of the MLflow runs behind it.
        absent: seeds that the backbone has elsewhere but not here.
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
        return (
            number(self.standard_error, self.digits) if math.isfinite(self.standard_error) else ""
        )

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
    """Backbones down, metrics across."""

    id: str
    title: str
    heads: list[MetricColumn]
    rows: list[tuple[str, list[Number]]]
    marks: dict[str, str] = field(default_factory=dict)  # backbone → what is added to its name


def overview(analysis: Analysis) -> Table:
    """Every task's main metric."""
    heads = [
        _head(analysis, column, column.main) for column in analysis.selection.columns if column.main
    ]
    return _table(analysis, "overview", "At a glance", heads, analysis.selection.backbones)


def sections(analysis: Analysis) -> list[Table]:
    """The detailed tables in the paper's order; kinds that are none of its own come last."""
    tables, left = [], list(analysis.selection.columns)
    names = analysis.selection.backbones
    for name, title, fits in SECTIONS:
        mine = [column for column in left if fits(column)]
        left = [column for column in left if column not in mine]
        # without metrics that no backbone has (mask mAP of a box detector), unless it is the main
        # one
        heads = [
            _head(analysis, column, metric)
            for column in mine
            for metric in shown_metrics(column)
            if metric == column.main
            or any((b, column, metric) in analysis.estimates for b in names)
        ]
        if heads:
            tables.append(_table(analysis, name, title, heads, names))
    return tables


def experts_table(analysis: Analysis) -> Table | None:
    """The role of experts: the baseline and every ``cliptex…`` variant with the experts it was
    trained with; None when there are not two variants."""
    selection = analysis.selection
    variants = [
        name for name in selection.backbones if name.split("@")[0].split("-")[0] == "cliptex"
    ]
    if len(variants) < 2:
        return None
    experts = {name: _experts(analysis, name) for name in variants}
    variants.sort(key=lambda name: (len(experts[name]), experts[name]))
    names = ([selection.baseline] if selection.baseline not in variants else []) + variants
    heads = [_head(analysis, column, column.main) for column in selection.columns if column.main]
    table = _table(analysis, "experts", "Role of experts", heads, names)
    table.marks = {
        name: "experts: " + (" + ".join(experts.get(name, ())) or "none") for name in names
    }
    return table


def _experts(analysis: Analysis, name: str) -> tuple[str, ...]:
    for (backbone, _), run in analysis.selection.parents.items():
        if backbone == name and run.tags.get("experts"):
            return tuple(e.strip() for e in run.tags["experts"].split(",") if e.strip())
    suffix = name.split("@")[0].removeprefix("cliptex").strip("-")
    return tuple(part for part in suffix.split("-") if part in EXPERTS) or EXPERTS


def _table(
    analysis: Analysis, name: str, title: str, heads: list[MetricColumn], backbones: Sequence[str]
) -> Table:
    return Table(
        name, title, heads, [(b, [_number(analysis, b, head) for head in heads]) for b in backbones]
    )


def _number(analysis: Analysis, backbone: str, head: MetricColumn) -> Number:
    selection, key = analysis.selection, (backbone, head.column, head.metric)
    what: dict[str, Any] = {
        "backbone": backbone,
        "task": head.column.title,
        "protocol": head.column.protocol,
        "metric": head.metric,
    }
    runs = tuple(cell.run.id for cell in selection.cells.get((backbone, head.column), []))
    if (found := analysis.estimates.get(key)) is None:
        why = selection.missing.get((backbone, head.column)) or "no value on this data"
        return Number(**what, direction=head.sign, missing=why, runs=runs)
    told: dict[str, Any] = {}
    if (gap := analysis.differences.get(key)) is not None:
        told = {
            "difference": gap.value,
            "difference_low": gap.low,
            "difference_high": gap.high,
            "detectable": gap.detectable(),
            "verdict": gap.verdict(head.sign),
        }
    return Number(
        **what,
        direction=head.sign,
        value=found.value,
        low=found.low,
        high=found.high,
        standard_error=found.error,
        seeds=found.seeds,
        images=found.images,
        best=analysis.best(head.column, head.metric) == backbone,
        runs=runs,
        absent=tuple(s for s in selection.seeds[backbone] if s not in analysis.samples[key].seeds),
        digits=head.digits,
        **told,
    )


def _head(analysis: Analysis, column: TaskProtocol, metric: str) -> MetricColumn:
    found = [e for (_, c, m), e in analysis.estimates.items() if c == column and m == metric]
    return MetricColumn(column, metric, digits(found), analysis.images.get(column, 0))


def digits(estimates: Sequence[Estimate]) -> int:
    """Decimals of a column: two figures of its typical uncertainty, between one and three; without
    one, of its size."""
    widths = [(e.high - e.low) / 2 for e in estimates if e.known and e.high > e.low]
    if widths:
        return int(np.clip(1 - math.floor(math.log10(float(np.median(widths)))), 1, 3))
    sizes = [abs(e.value) for e in estimates if e.value]
    return 3 if sizes and float(np.median(sizes)) < 1 else 1


def number(value: float, places: int, signed: bool = False) -> str:
    """A number as people read it, with a true minus sign; ``–`` where there is none."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(low: float, high: float, places: int, signed: bool = False) -> str:
    """``[low, high]``, or '' where it is not known."""
    known = np.isfinite(low) and np.isfinite(high)
    return f"[{number(low, places, signed)}, {number(high, places, signed)}]" if known else ""


def count(amount: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"
