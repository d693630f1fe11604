"""Tables of a report: what stands in which cell, before it becomes HTML, Markdown, CSV or LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reports.analysis import Analysis, shown_metrics
from reports.selection import Column
from reports.stats.intervals import Estimate

SECTIONS = (
    ("segmentation", "Semantic segmentation", lambda c: c.kind == "segmentation"),
    ("detection", "Detection and instance segmentation", lambda c: c.kind == "detection"),
    ("geometry", "Depth and surface normals", lambda c: c.kind in ("depth", "normals")),
    ("classification", "Classification", lambda c: c.kind == "classification" and not c.task.endswith("/zero-shot")),
    ("zero-shot", "Zero-shot and retrieval", lambda c: c.kind == "image-text" or c.task.endswith("/zero-shot")),
)

MARKS = {"win": "▲", "loss": "▼", "tie": "=", "unknown": "?"}


@dataclass(frozen=True)
class Head:
    """One column of a table: a metric of a task under one protocol."""

    column: Column
    metric: str
    digits: int

    @property
    def sign(self) -> int:
        return self.column.sign(self.metric)

    @property
    def unit(self) -> str:
        return self.column.metric(self.metric).unit

    @property
    def words(self) -> str:
        return self.column.metric(self.metric).label or self.metric


@dataclass(frozen=True)
class TableCell:
    """What stands where a backbone meets a column.

    Attributes:
        estimate: the number, None for a hole.
        difference: to the baseline, None where there is none.
        verdict: ``win``, ``loss``, ``tie``, ``unknown``, or '' for the baseline and holes.
        best: better than every other backbone by its interval.
        hole: why there is no number.
        runs: ids of the MLflow runs behind the number.
        missing: seeds that the backbone has elsewhere but not here.
    """

    estimate: Estimate | None = None
    difference: Estimate | None = None
    verdict: str = ""
    best: bool = False
    hole: str = ""
    runs: tuple[tuple[str, str], ...] = ()
    missing: tuple[int, ...] = ()


@dataclass
class Table:
    """Backbones down, metrics across."""

    id: str
    title: str
    heads: list[Head]
    rows: list[tuple[str, list[TableCell]]]
    notes: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)  # backbone → what is added to its name


def overview(analysis: Analysis) -> Table:
    """Every task's main metric."""
    heads = [_head(analysis, column, column.main) for column in analysis.selection.columns if column.main]
    return _table(analysis, "overview", "At a glance", heads, analysis.selection.backbones)


def sections(analysis: Analysis) -> list[Table]:
    """The detailed tables in the paper's order; kinds that are none of its own come last."""
    tables, left = [], list(analysis.selection.columns)
    for name, title, fits in SECTIONS:
        mine = [column for column in left if fits(column)]
        left = [column for column in left if column not in mine]
        if mine:
            heads = [_head(analysis, column, metric) for column in mine for metric in shown_metrics(column)]
            tables.append(_table(analysis, name, title, _with_values(analysis, heads), analysis.selection.backbones))
    if left:
        heads = [_head(analysis, column, metric) for column in left for metric in shown_metrics(column)]
        tables.append(_table(analysis, "other", "Other tasks", heads, analysis.selection.backbones))
    return tables


def experts_table(analysis: Analysis) -> Table | None:
    """The role of experts: the baseline and every ``cliptex…`` variant with the experts it was trained with; None when there are
    not two variants."""
    selection = analysis.selection
    variants = [name for name in selection.backbones if name.split("@")[0].split("-")[0] == "cliptex"]
    if len(variants) < 2:
        return None
    experts = {name: _experts(analysis, name) for name in variants}
    variants.sort(key=lambda name: (len(experts[name]), experts[name]))
    names = ([selection.baseline] if selection.baseline not in variants else []) + variants
    heads = [_head(analysis, column, column.main) for column in selection.columns if column.main]
    table = _table(analysis, "experts", "Role of experts", heads, names)
    table.marks = {name: "experts: " + (" + ".join(experts.get(name, ())) or "none") for name in names}
    return table


def _experts(analysis: Analysis, name: str) -> tuple[str, ...]:
    order = ("seg", "depth", "normal")
    for (backbone, _), run in analysis.selection.parents.items():
        if backbone == name and run.tags.get("experts"):
            return tuple(e.strip() for e in run.tags["experts"].split(",") if e.strip())
    suffix = name.split("@")[0].removeprefix("cliptex").strip("-")
    return tuple(part for part in suffix.split("-") if part in order) or order


def _table(analysis: Analysis, name: str, title: str, heads: list[Head], backbones: Sequence[str]) -> Table:
    rows = [(backbone, [_cell(analysis, backbone, head) for head in heads]) for backbone in backbones]
    return Table(name, title, heads, rows)


def _cell(analysis: Analysis, backbone: str, head: Head) -> TableCell:
    selection, key = analysis.selection, (backbone, head.column, head.metric)
    cells = selection.cells.get((backbone, head.column), [])
    runs = tuple((cell.run.experiment_id, cell.run.id) for cell in cells)
    if key not in analysis.estimates:
        hole = selection.holes.get((backbone, head.column)) or "no value on this data"
        return TableCell(hole=hole, runs=runs)
    gap = analysis.differences.get(key)
    missing = tuple(s for s in selection.seeds[backbone] if s not in analysis.samples[key].seeds)
    return TableCell(
        analysis.estimates[key],
        gap,
        gap.verdict(head.sign) if gap is not None else "",
        analysis.best(head.column, head.metric) == backbone,
        "",
        runs,
        missing,
    )


def _with_values(analysis: Analysis, heads: list[Head]) -> list[Head]:
    """Without metrics that no backbone has (mask mAP of a box detector), unless it is the main one."""
    names = analysis.selection.backbones
    return [
        head
        for head in heads
        if head.metric == head.column.main or any((b, head.column, head.metric) in analysis.estimates for b in names)
    ]


def _head(analysis: Analysis, column: Column, metric: str) -> Head:
    found = [e for (_, c, m), e in analysis.estimates.items() if c == column and m == metric]
    return Head(column, metric, digits(found))


def digits(estimates: Sequence[Estimate]) -> int:
    """Decimals of a column: two figures of its typical uncertainty, between one and three; without one, of its size."""
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


def interval(estimate: Estimate, places: int, signed: bool = False) -> str:
    """``[low, high]``, or '' where it is not known."""
    if not estimate.known:
        return ""
    return f"[{number(estimate.low, places, signed)}, {number(estimate.high, places, signed)}]"
