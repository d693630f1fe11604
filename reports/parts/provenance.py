"""Where the numbers of a report come from: code, weights, data, protocols, environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from reports.errors import damaged
from reports.mlflow.query import Store, StoredRun
from reports.selection import Column, Selection


@dataclass
class Provenance:
    """Facts for the end of the page.

    Attributes:
        weights: one row for each backbone and seed: name, seed, architecture, source, sha256, licence, commit, run.
        data: one row for each dataset: name, fingerprint, partial, split sizes.
        protocols: (column, settings as a dict) for each column.
        differences: task with several protocols → setting → {letter: value}, only what differs.
        environment: package → version, python, platform; of the newest run.
    """

    weights: list[dict[str, Any]]
    data: list[dict[str, Any]]
    protocols: list[tuple[Column, dict[str, Any]]]
    differences: dict[str, dict[str, dict[str, Any]]]
    environment: dict[str, Any]


def provenance(store: Store, selection: Selection) -> Provenance:
    """Collect what is known; of each protocol one small file is read, of runs only what search gave already."""
    weights = []
    for (name, seed), run in sorted(
        selection.parents.items(), key=lambda item: (selection.backbones.index(item[0][0]), item[0][1])
    ):
        tags = run.tags
        weights.append(
            {
                "backbone": name, "seed": seed, "architecture": tags.get("architecture", ""),
                "source": tags.get("weights.source", ""), "sha256": tags.get("weights.sha256", ""),
                "licence": tags.get("weights.licence", ""), "commit": tags.get("git.commit", ""), "run": run,
                "train": selection.runs.get(tags.get("train.run", "")),
            }
        )  # fmt: skip
    data: dict[tuple[str, str], dict[str, Any]] = {}
    protocols: list[tuple[Column, dict[str, Any]]] = []
    for column in selection.columns:
        cells = [cell for name in selection.backbones for cell in selection.cells.get((name, column), [])]
        if not cells:
            continue
        cell = cells[0]
        tags = cell.run.tags
        data.setdefault(
            (tags.get("dataset", ""), tags.get("data.fingerprint", "")),
            {"name": tags.get("dataset", ""), "fingerprint": tags.get("data.fingerprint", ""),
             "partial": tags.get("data.partial") == "true"},
        )  # fmt: skip
        protocols.append((column, read_json(store, cell.run, "protocol.json")))
    newest = max(selection.parents.values(), key=lambda run: run.started, default=None)
    facts = read_json(store, newest, "run.json") if newest is not None else {}
    return Provenance(weights, list(data.values()), protocols, _differences(protocols), facts.get("environment", {}))


def read_json(store: Store, run: StoredRun, name: str) -> Any:
    """A JSON artifact; {} where the run has none.

    Raises:
        TrackingError: it is there but cannot be read.
    """
    path = store.artifact(run, name)
    if path is None:
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(name, run.id, run.name, error) from error


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b`` → value."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _differences(protocols: list[tuple[Column, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in dict.fromkeys(column.task for column, _ in protocols if column.letter):
        mine = {column.letter: flat(facts) for column, facts in protocols if column.task == task}
        names = dict.fromkeys(name for facts in mine.values() for name in facts)
        found[task] = {
            name: {letter: facts.get(name, "–") for letter, facts in mine.items()}
            for name in names
            if len({json.dumps(facts.get(name, "–"), sort_keys=True) for facts in mine.values()}) > 1
        }
    return found
