"""Published numbers beside those of the report.

``published.json`` holds only numbers that were read in the source it cites, each with the known
differences in protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from reports.analysis import Analysis
from reports.parts.figures import describe
from reports.parts.tables import number
from reports.selection import TaskProtocol


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        published, ours: as text; ``ours`` includes the interval, '' where the report has no number.
        protocol: of the source.
        differs: known differences between the source's protocol and ours.
    """

    backbone: str
    task: str
    published: str
    ours: str
    protocol: str
    differs: str
    source: str
    url: str


def published(analysis: Analysis) -> list[Published]:
    """Published numbers of the same weights on the same task.

    A backbone counts by its name, and by its architecture where the source gives one: a name may
    stand for a file of other weights. An entry without a task is about the backbone as such, and
    our mean gain is shown beside it.
    """
    text = (files("reports.parts") / "published.json").read_text(encoding="utf-8")
    rows = []
    for entry in json.loads(text):
        for value in entry["numbers"]:
            for name in analysis.selection.backbones:
                if name.partition("@")[0] in value["backbones"]:
                    rows += _rows(analysis, entry, value, name)
    return rows


def _rows(
    analysis: Analysis, entry: dict[str, Any], value: dict[str, Any], name: str
) -> list[Published]:
    selection = analysis.selection
    source = entry["source"], entry["url"]
    if not entry["task"]:
        gain = analysis.gains.get(name)
        percent = f"{number(gain.typical.value, 1, True)} %" if gain else ""
        ours = f"{percent} over {selection.baseline} on average" if gain else ""
        settings = entry["protocol"], entry["differs"]
        return [Published(name, "all", value["text"], ours, *settings, *source)]
    architectures = {
        run.tags.get("architecture")
        for (backbone, _), run in selection.parents.items()
        if backbone == name
    }
    if "architecture" in value and architectures - {value["architecture"], None}:
        return []
    rows = []
    for column in selection.columns:
        own = analysis.estimates.get((name, column, entry["metric"]))
        if column.task == entry["task"] and own is not None:
            differs = "; ".join(filter(None, (entry["differs"], _differs(analysis, name, column))))
            shown = str(value["value"]), describe(own, 2), entry["protocol"]
            rows.append(Published(name, column.title, *shown, differs, *source))
    return rows


def _differs(analysis: Analysis, name: str, column: TaskProtocol) -> str:
    """What our own runs record about their protocol."""
    runs = [cell.run for cell in analysis.selection.cells[name, column]]
    partial = any(run.tags.get("data.partial") == "true" for run in runs)
    presets = {
        run.tags.get("differs") or f"settings of {run.tags.get('preset', 'own')}" for run in runs
    }
    return ", ".join([*["on a part of the data"] * partial, *sorted(presets)])
