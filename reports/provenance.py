"""Who ran which code on which machine, on what weights and data: collected where a run starts, and
shown in the last section of a report.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from cliptex_common.process import toolkit_versions
from reports.records import PARENT, PROTOCOL, ParentRun, Record
from reports.selection import Selection, TaskColumn
from reports.store import Artifacts

HEADINGS = ("Architecture", "Parameters", "Resolution", "FLOPs an image", "Pretraining")


@dataclass
class Provenance:
    """The last section of the page.

    Attributes:
        backbones: backbone → heading → text, '' if unknown.
        weights: backbone, seed, their run, and the run that trained them.
        data: (dataset, fingerprint) → whether it is partial.
        protocols: each column with its settings.
        differences: task with several protocols → setting → {letter: value}, where values differ.
        environment: of the newest run: package → version, python, platform; and the devices of all
            runs.
    """

    backbones: dict[str, dict[str, str]]
    weights: list[tuple[str, int, ParentRun, Record | None]]
    data: dict[tuple[str, str], bool]
    protocols: list[tuple[TaskColumn, dict[str, Any]]]
    differences: dict[str, dict[str, dict[str, Any]]]
    environment: dict[str, Any]

    @property
    def libraries(self) -> dict[str, str]:
        """Library → the versions that numbers of the protocols were computed with."""
        found: dict[str, set[str]] = defaultdict(set)
        for _, conditions in self.protocols:
            for name, number in conditions.get("libraries", {}).items():
                found[name] |= {number} - {"absent"}
        return {name: " and ".join(sorted(each)) for name, each in found.items() if each}


def collect_provenance(store: Artifacts, selection: Selection) -> Provenance:
    """Collect the provenance; reads one small file for each protocol and backbone."""
    runs = selection.parents
    weights = [
        (name, seed, runs[name, seed], selection.runs.get(runs[name, seed].train_run))
        for name in selection.backbones
        for seed in selection.seeds[name]
        if (name, seed) in runs
    ]
    data: dict[tuple[str, str], bool] = {}
    protocols: list[tuple[TaskColumn, dict[str, Any]]] = []
    devices: set[str] = set()
    for column in selection.columns:
        cells = selection.column_cells(column)
        devices |= {cell.device for cell in cells}
        for cell in cells[:1]:
            data.setdefault((cell.dataset, cell.fingerprint), cell.partial)
            protocols.append((column, store.json(cell, PROTOCOL)))
    newest = max(runs.values(), key=lambda run: run.started, default=None)
    environment = store.json(newest, PARENT).get("environment", {}) if newest else {}
    if named := sorted(devices - {""}):
        environment = {"devices": named, **environment}
    backbones = {name: _backbone(store, selection, name) for name in selection.backbones}
    return Provenance(backbones, weights, data, protocols, _differences(protocols), environment)


def _backbone(store: Artifacts, selection: Selection, name: str) -> dict[str, str]:
    """Size and origin of a backbone."""
    run = selection.parent(name)
    if run is None:
        return dict.fromkeys(HEADINGS, "")
    stored = store.json(run, PARENT).get("backbone", {})
    source = run.weights_source
    pretraining = PurePath(source).name if source.startswith("/") else source
    if train := selection.runs.get(run.train_run):
        pairs = PurePath(train.params.get("pairs", "")).name or "its pairs"
        pretraining = f"{train.tags.get('recipe', 'trained')} on {pairs}"
    parameters, flops = run.costs.get("parameters"), run.costs.get("flops_per_image")
    texts = (
        run.architecture,
        f"{parameters / 1e6:.1f} M" if parameters else "",
        " × ".join(map(str, stored.get("data", {}).get("size", []))),
        f"{flops / 1e9:.3g} G" if flops else "",
        pretraining,
    )
    return dict(zip(HEADINGS, texts, strict=True))


def _differences(
    protocols: list[tuple[TaskColumn, dict[str, Any]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    import pandas as pd

    by_task: dict[str, dict[str, dict[Any, Any]]] = defaultdict(dict)
    for column, settings in protocols:
        if column.letter:
            flat = pd.json_normalize(settings).to_dict("records")[0]
            by_task[column.task][column.letter] = flat
    differences: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for task, letters in by_task.items():
        for name in dict.fromkeys(name for settings in letters.values() for name in settings):
            values = {letter: settings.get(name, "–") for letter, settings in letters.items()}
            if len(set(map(repr, values.values()))) > 1:
                differences[task][name] = values
    return differences


PACKAGES = (
    "cliptex-benchmark",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmsegmentation",
    "onedl-mmdetection",
    "mlflow",
    "numpy",
    "pandas",
    "transformers",
)


def origin_tags() -> dict[str, str]:
    """User, command and commit: tags of every run."""
    program, *arguments = sys.argv or [""]
    command = f" {arguments[0]}" if arguments and Path(program).parent.name == "benchmark" else ""
    user = ""
    with contextlib.suppress(Exception):  # a container may have a user without a name
        user = getpass.getuser()
    commit = git_commit()
    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"python -m benchmark{command}",
        "mlflow.source.git.commit": commit.partition("+")[0],
        "git.commit": commit,
    }


@functools.cache
def git_commit(folder: Path | None = None) -> str:
    """The commit of the checkout around ``folder`` (default: this package's), or ''.

    It ends in ``+dirty`` when tracked files have changes.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder or Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        dirty = "+dirty" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return ""


def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        **toolkit_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
        "git.commit": git_commit(),
    }
