"""Published numbers beside those of the report.

``published.json`` holds only numbers that were read in the source it cites: ``models`` with the
names that load their weights here, ``sources`` with the numbers of each task and metric, the
preset that follows the source's code, and what else differs, and ``left_out``, what a source has
and looks miscopied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from reports.analysis import Analysis
from reports.cell import Cell
from reports.parts.tables import decimal, with_interval


@dataclass(frozen=True)
class PublishedNumber:
    """A number as its source has it.

    Attributes:
        model: the source's name of the weights.
        backbones: names in this suite that load them.
        architecture: that a backbone of this name must have, since a name may stand for a file of
            other weights; empty if any.
        task: of this suite; empty for a statement about the backbone as such.
        metric: its name here, or the statement.
        value: in the metric's unit.
        source, url: the file at its commit.
        protocol: a phrase.
        preset: that follows the source's code; empty where there is none.
        differs: known differences that the preset cannot remove.
        loader: beginning of the name in this suite that loads the weights as the source does.
    """

    model: str
    backbones: tuple[str, ...]
    architecture: str
    task: str
    metric: str
    value: float
    source: str
    url: str
    protocol: str
    preset: str
    differs: str
    loader: str = ""


@dataclass(frozen=True)
class PublishedRow:
    """A published number beside ours.

    Attributes:
        ours: as text with its interval; empty where the report has no number.
        differs: "same protocol", or the known differences.
    """

    backbone: str
    task: str
    ours: str
    differs: str
    number: PublishedNumber


def published_numbers() -> Iterator[PublishedNumber]:
    """Every number of ``published.json``."""
    table = json.loads((files("reports.parts") / "published.json").read_text(encoding="utf-8"))
    for source in table["sources"]:
        about = {key: value for key, value in source.items() if key != "numbers"}
        for task, metrics in source["numbers"].items():
            for metric, values in metrics.items():
                for model, value in values.items():
                    names = table["models"][model]
                    yield PublishedNumber(
                        model=model,
                        backbones=tuple(names["names"]),
                        architecture=names.get("architecture", ""),
                        task=task,
                        metric=metric,
                        value=value,
                        **about,
                    )


def compare_published(analysis: Analysis) -> list[PublishedRow]:
    """Published numbers of the same weights on the same task, and ours beside them."""
    numbers = list(published_numbers())
    return [
        row
        for name in analysis.selection.backbones
        for entry in numbers
        if name.partition("@")[0] in entry.backbones
        for row in _rows(analysis, entry, name)
    ]


def _rows(analysis: Analysis, entry: PublishedNumber, name: str) -> Iterator[PublishedRow]:
    selection = analysis.selection
    if not entry.task:
        gain = analysis.gains.get(name)
        percent = f"{decimal(gain.mean.value, 1, True)} %" if gain else ""
        ours = f"{percent} over {selection.baseline} on average" if gain else ""
        yield PublishedRow(name, "all", ours, entry.differs, entry)
        return
    architectures = {
        run.architecture for (backbone, _), run in selection.parents.items() if backbone == name
    }
    if entry.architecture and architectures - {entry.architecture, ""}:
        return
    for column in selection.columns:
        estimate = analysis.estimates.get((name, column, entry.metric))
        if column.task == entry.task and estimate is not None:
            cells = selection.cells[name, column]
            partial = ["on a part of the data"] * any(cell.partial for cell in cells)
            own = [protocol_difference(cell, entry.preset) for cell in cells]
            differences = dict.fromkeys(filter(None, (*partial, *own, entry.differs)))
            same = "same settings; `list protocols` has what its source does otherwise"
            differs = "; ".join(differences) or (
                "same protocol" if entry.preset in ("", "own") else same
            )
            yield PublishedRow(name, column.title, with_interval(estimate, 2), differs, entry)


def protocol_difference(cell: Cell, preset: str) -> str:
    """How a cell's settings differ from the source that a preset follows, by what the cell records;
    '' where nothing is known to differ."""
    own = cell.preset or "own"
    return cell.differs or (f"settings of {own}" if own != preset else "")
