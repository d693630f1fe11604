"""Where the numbers of a report come from: code, weights, data, protocols, environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from reports.errors import damaged
from reports.mlflow.query import Store, StoredRun
from reports.selection import Selection, TaskProtocol


@dataclass
class Provenance:
    """Facts for the end of the page.

    Attributes:
        backbones: backbone → architecture, parameters, resolution, FLOPs, pretraining (words →
            text, '' where not known).
        weights: one row for each backbone and seed: name, seed, source, sha256, licence, commit,
            run.
        data: one row for each dataset: name, fingerprint, partial.
        protocols: (column, settings as a dict) for each column.
        differences: task with several protocols → setting → {letter: value}, only what differs.
        environment: package → version, python, platform; of the newest run; and all devices that
            the runs used.
    """

    backbones: dict[str, dict[str, str]]
    weights: list[dict[str, Any]]
    data: list[dict[str, Any]]
    protocols: list[tuple[TaskProtocol, dict[str, Any]]]
    differences: dict[str, dict[str, dict[str, Any]]]
    environment: dict[str, Any]


def provenance(store: Store, selection: Selection) -> Provenance:
    """Collect what is known; small files are read of each protocol and each backbone, of runs only
    what search gave already."""
    place = {name: number for number, name in enumerate(selection.backbones)}
    parents = sorted(selection.parents.items(), key=lambda item: (place[item[0][0]], item[0][1]))
    weights = [
        {
            "backbone": name,
            "seed": seed,
            "source": run.tags.get("weights.source", ""),
            "sha256": run.tags.get("weights.sha256", ""),
            "licence": run.tags.get("weights.licence", ""),
            "commit": run.tags.get("git.commit", ""),
            "run": run,
            "train": selection.runs.get(run.tags.get("train.run", "")),
        }
        for (name, seed), run in parents
    ]
    data: dict[tuple[str, str], dict[str, Any]] = {}
    protocols: list[tuple[TaskProtocol, dict[str, Any]]] = []
    devices: set[str] = set()
    for column in selection.columns:
        cells = [
            cell for name in selection.backbones for cell in selection.cells.get((name, column), [])
        ]
        devices |= {cell.run.tags.get("device.kind", "") for cell in cells}
        if not cells:
            continue
        tags = cells[0].run.tags
        name, fingerprint = tags.get("dataset", ""), tags.get("data.fingerprint", "")
        partial = tags.get("data.partial") == "true"
        data.setdefault(
            (name, fingerprint), {"name": name, "fingerprint": fingerprint, "partial": partial}
        )
        protocols.append((column, read_json(store, cells[0].run, "protocol.json")))
    newest = max(selection.parents.values(), key=lambda run: run.started, default=None)
    environment = (
        read_json(store, newest, "run.json").get("environment", {}) if newest is not None else {}
    )
    if named := sorted(devices - {""}):
        environment = {"devices": named, **environment}
    facts = {name: _facts(store, selection, name) for name in selection.backbones}
    return Provenance(
        facts, weights, list(data.values()), protocols, _differences(protocols), environment
    )


def _facts(store: Store, selection: Selection, name: str) -> dict[str, str]:
    """What is known of a backbone's size and origin."""
    run = next((run for (backbone, _), run in selection.parents.items() if backbone == name), None)
    tags = run.tags if run else {}
    stored = read_json(store, run, "run.json").get("backbone", {}) if run else {}
    size, metrics = stored.get("data", {}).get("size", []), run.metrics if run else {}
    parameters, flops = metrics.get("cost/parameters"), metrics.get("cost/flops_per_image")
    train = selection.runs.get(tags.get("train.run", ""))
    pairs = train.params.get("pairs", "") if train else ""
    trained = (
        f"{train.tags.get('recipe', 'trained')} on {PurePath(pairs).name or 'its pairs'}"
        if train
        else ""
    )
    source = tags.get("weights.source", "")
    return {
        "Architecture": tags.get("architecture", ""),
        "Parameters": f"{parameters / 1e6:.1f} M" if parameters else "",
        "Resolution": " × ".join(map(str, size)),
        "FLOPs an image": f"{flops / 1e9:.3g} G" if flops else "",
        "Pretraining": trained or (PurePath(source).name if source[:1] == "/" else source),
    }


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
        return {
            k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()
        }
    return {prefix.rstrip("."): value}


def _differences(
    protocols: list[tuple[TaskProtocol, dict[str, Any]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in dict.fromkeys(column.task for column, _ in protocols if column.letter):
        mine = {column.letter: flat(facts) for column, facts in protocols if column.task == task}
        names = dict.fromkeys(name for facts in mine.values() for name in facts)
        found[task] = {
            name: {letter: facts.get(name, "–") for letter, facts in mine.items()}
            for name in names
            if len({json.dumps(facts.get(name, "–"), sort_keys=True) for facts in mine.values()})
            > 1
        }
    return found
