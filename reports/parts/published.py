"""Published numbers beside ours: only those read in the source that is named with them, and with
what differs in protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from reports.analysis import Analysis
from reports.parts.tables import interval, number


@dataclass(frozen=True)
class Published:
    """A published number beside ours.

    Attributes:
        published, ours: as text; ``ours`` has the interval, '' where there is no such number here.
        protocol, differs: what the source did, and what is known to differ from it here.
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
    """What ``published.json`` knows of the backbones and tasks of a report: the same weights on the
    same task.

    A backbone counts by its name, ``NAME@SHA`` too; where a file was given for a name that stands
    for published weights it does not. An entry without a task is a statement about the backbone,
    beside which our mean gain stands.
    """
    selection, found = analysis.selection, []
    for entry in json.loads(
        (files("reports.parts") / "published.json").read_text(encoding="utf-8")
    ):
        for one in entry["numbers"]:
            for name in selection.backbones:
                if name.partition("@")[0] not in one["backbones"]:
                    continue
                told = entry["protocol"], entry["differs"], entry["source"], entry["url"]
                if not entry["task"]:
                    gain = analysis.gains.get(name)
                    ours = (
                        f"{number(gain.typical.value, 1, True)} % over {selection.baseline} on"
                        " average"
                        if gain
                        else ""
                    )
                    found.append(Published(name, "all", one["text"], ours, *told))
                    continue
                tags = [
                    run.tags for (backbone, _), run in selection.parents.items() if backbone == name
                ]
                architecture = one.get("architecture")
                if architecture and any(
                    t.get("architecture", architecture) != architecture for t in tags
                ):
                    continue
                for column in (c for c in selection.columns if c.task == entry["task"]):
                    if (own := analysis.estimates.get((name, column, entry["metric"]))) is not None:
                        text = f"{number(own.value, 2)} {interval(own.low, own.high, 2)}".rstrip()
                        differs = _differs(analysis, name, column.task)
                        more = "; ".join(filter(None, (told[1], differs)))
                        found.append(
                            Published(
                                name,
                                column.title,
                                str(one["value"]),
                                text,
                                told[0],
                                more,
                                *told[2:],
                            )
                        )
    return found


def _differs(analysis: Analysis, name: str, task: str) -> str:
    """What our own runs say of their protocol."""
    runs = [
        c.run
        for (b, column), cells in analysis.selection.cells.items()
        if b == name and column.task == task
        for c in cells
    ]
    partial = (
        "on a part of the data"
        if any(run.tags.get("data.partial") == "true" for run in runs)
        else ""
    )
    preset = {
        run.tags.get("differs") or f"settings of {run.tags.get('preset', 'own')}" for run in runs
    }
    return ", ".join(filter(None, [partial, *sorted(preset)]))
