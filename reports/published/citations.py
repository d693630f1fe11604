"""BibTeX of what a report used: ``citations.csv`` has an entry for each source, and what it is of:
``dataset:voc``, ``protocol:dinov3``, ``backbone:*dinov3*`` …"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import chain

from reports.comparison import Analysis
from reports.published.table import read_rows


def references(analysis: Analysis) -> str:
    """Entries of the statistics, datasets, protocols and backbones of a report; those that have
    none are named in a comment."""
    selection = analysis.selection
    cells = list(chain.from_iterable(selection.cells.values()))
    subjects = {"statistics:": {"statistics:"}}
    for kind, names in (
        ("dataset", {cell.dataset for cell in cells}),
        ("protocol", {cell.preset for cell in cells} - {"", "own"}),
    ):
        subjects |= {f"{kind} {name}": {f"{kind}:{name}"} for name in sorted(names)}
    for (name, _), run in selection.parents.items():
        about = (run.backbone, run.architecture, run.weights_source)
        subjects[f"backbone {name}"] = {f"backbone:{each.lower()}" for each in about if each}
    return bibtex(subjects)


def bibtex(subjects: Mapping[str, set[str]]) -> str:
    """Entries of what is called so, or so."""
    entries, cited = [], set()
    for row in read_rows("citations"):
        patterns = row["names"].split()
        used = {
            subject
            for subject, names in subjects.items()
            if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
        }
        if used:
            where = {"article": "journal", "misc": "howpublished"}.get(row["type"], "booktitle")
            fields = {"author": row["author"], "title": row["title"], where: row["venue"]}
            fields["year"] = row["year"]
            lines = [f"  {name} = {{{text}}}," for name, text in fields.items()]
            entries.append("\n".join([f"@{row['type']}{{{row['key']},", *lines, "}\n"]))
            cited |= used
    if missing := [subject for subject in subjects if subject not in cited]:
        entries.append(f"% No entry is known of: {', '.join(missing)}.\n")
    return "\n".join(entries)
