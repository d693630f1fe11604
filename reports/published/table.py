"""Published numbers beside those of the report.

``numbers.csv`` has a row for each number that was read in its source; ``sources.csv`` says where
that is, under which licence and protocol, and what was left out; ``models.csv`` has the names of
this suite that load a source's weights, where the source has other names, and none where it cannot
load them; ``costs.csv`` has what architectures cost. ``read`` makes the rows of some sources again
from a checkout.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reports.comparison import Analysis
from reports.records import Cell
from reports.tables import decimal, with_interval

FOLDER = Path(__file__).parent
# of the sources' own classifiers, which this suite does not train
OWN_HEAD = "own-head"
COST = "cost"  # in place of a task, of the rows of ``costs.csv``
LOWER_IS_BETTER = ("rmse",)  # of the metrics in the table


@dataclass(frozen=True)
class PublishedNumber:
    """A number as its source has it.

    Attributes:
        model: the source's name of the weights.
        backbones: names in this suite that load them; none if it cannot.
        architecture: that a backbone of this name must have, since a name may stand for a file of
            other weights; empty if any.
        task: of this suite; empty for a statement about the backbone as such.
        metric: its name here, or the statement.
        value: in the metric's unit.
        digits: as the source writes it, after the point.
        source: key in ``sources.csv``; title, url: of the file at its commit.
        licence: of the source; empty where none is stated.
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
    digits: int
    source: str
    title: str
    url: str
    licence: str
    protocol: str
    preset: str
    differs: str
    loader: str = ""

    @property
    def direction(self) -> int:
        """1 where higher is better, else -1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


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


@cache
def published_numbers() -> tuple[PublishedNumber, ...]:
    """Every number of the table."""
    sources = {row["source"]: row for row in read_rows("sources")}
    models = {row["model"]: row for row in read_rows("models")}
    about = ("source", "title", "url", "licence", "protocol", "preset", "differs", "loader")
    numbers = []
    for row in read_rows("numbers"):
        source, model = sources[row["source"]], row["model"]
        # timm's have the size of the images behind their name
        names = models.get(model, {"names": model.partition("@")[0], "architecture": ""})
        numbers.append(
            PublishedNumber(
                model=model,
                backbones=tuple(names["names"].split()),
                architecture=names["architecture"],
                task=row["task"],
                metric=row["metric"],
                value=float(row["value"]),
                digits=len(row["value"].partition(".")[2]),
                **{name: source[name] for name in about},
            )
        )
    return tuple(numbers)


@cache
def published_costs() -> dict[str, dict[str, dict[str, float]]]:
    """Architecture (``timm/resnet50``, ``open_clip/ViT-B-16``) → size of the images in pixels →
    ``parameters`` (in millions), ``gflops`` an image, ``images_per_second`` of timm's; of open_clip
    of the image tower alone."""
    costs: dict[str, dict[str, dict[str, float]]] = {}
    for row in read_rows("costs"):
        architecture, _, size = row["model"].partition("@")
        of_size = costs.setdefault(architecture, {}).setdefault(size, {})
        of_size[row["metric"]] = float(row["value"])
    return costs


def costs_of(number: PublishedNumber) -> tuple[str, dict[str, float]]:
    """The size of the images and the costs of a number's model: at the size that its name has, else
    at the first that its source measured; empty where none did."""
    for name in (number.model, *number.backbones):
        weights, _, size = name.partition("@")
        architecture = "/".join(weights.split("/")[:2]).partition(".")[0]
        if sizes := published_costs().get(architecture):
            size = size or next(iter(sizes))
            return size, sizes.get(size, {})
    return "", {}


def read_rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of ``NAME.csv``."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def compare_published(analysis: Analysis) -> list[PublishedRow]:
    """Published numbers of the same weights on the same task, and ours beside them."""
    return [
        row
        for name in analysis.selection.backbones
        for entry in published_numbers()
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
    if entry.task.endswith(OWN_HEAD):
        yield PublishedRow(name, entry.task, "", "its own classifier, not a probe", entry)
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
