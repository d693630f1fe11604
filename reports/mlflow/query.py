"""Reading an MLflow store: plain runs and one tidy table.

Runs come in bulk requests; artifacts are fetched one by one when they are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd

from cliptex_common.errors import suggest
from cliptex_common.files import home
from reports.errors import TrackingError
from reports.metrics import Metric, declared
from reports.mlflow.client import (
    FAILURE_TAG,
    PARENT_TAG,
    all_pages,
    connect,
    metric_key,
    metric_name,
    tracking_uri,
)

STUDY_TAG = "study"  # of every run of a sweep; trials also have ``trial``
STATUS_WORDS = {
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "still running",
    "SCHEDULED": "not started",
}


@dataclass(frozen=True)
class StoredRun:
    """A run as it is in MLflow, with metric names as the field writes them (``i2t_R@1``).

    Attributes:
        source: where it was shared, if it is not in the store (see ``reports.shared``).
    """

    id: str
    name: str
    experiment: str
    experiment_id: str
    status: str
    started: int
    artifacts: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    source: str = ""

    @property
    def parent(self) -> str:
        return self.tags.get(PARENT_TAG, "")

    @property
    def is_task(self) -> bool:
        """Whether it is a child run with one task's numbers."""
        return bool(self.parent and self.tags.get("task") and self.tags.get("protocol"))

    @property
    def is_parent(self) -> bool:
        """Whether it is the run of one backbone, suite and seed."""
        return "run.key" in self.tags


@dataclass(frozen=True)
class Scored:
    """A child run as reports see it: one task's numbers of one backbone and one seed.

    Attributes:
        metrics, declared: name → value, and the metric's declaration; the main one first.
        reason: why it has no numbers; only finished runs have.
    """

    run: StoredRun
    backbone: str
    parent: str
    weights: str
    task: str
    kind: str
    protocol: str
    seed: int
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    declared: Mapping[str, Metric] = field(default_factory=dict)


class Store:
    """An MLflow store to read from.

    Args:
        uri: tracking URI; ``None`` as for writing.

    Raises:
        TrackingError: it cannot be reached, or a newer MLflow wrote it.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)
        database = urlparse(self.uri).path if self.uri.startswith("sqlite:") else ""
        if database and database != "/:memory:" and not Path(database.removeprefix("/")).exists():
            raise TrackingError(
                f"there is no MLflow store at {self.uri}; run something first, or give"
                " --tracking-uri"
            )
        self.client = connect(self.uri)
        self._scratch = tempfile.TemporaryDirectory()
        self._listed: dict[tuple[str, str], set[str]] = {}

    def experiments(self) -> dict[str, str]:
        """Name → id of all active experiments."""
        experiments = all_pages(self.client.search_experiments)
        return {experiment.name: experiment.experiment_id for experiment in experiments}

    def experiment_ids(self, names: Sequence[str]) -> dict[str, str]:
        """Name → id of the named experiments.

        Raises:
            TrackingError: one does not exist; the message has the nearest name.
        """
        ids = self.experiments()
        for name in names:
            if name not in ids:
                raise TrackingError(
                    f"no experiment {name!r} in the MLflow store; {suggest(name, ids)}"
                )
        return {name: ids[name] for name in names}

    def runs(self, experiments: Sequence[str], filter_string: str = "") -> list[StoredRun]:
        """Runs of the named experiments that match an MLflow filter, oldest first.

        Raises:
            TrackingError: an experiment does not exist.
        """
        names = {identity: name for name, identity in self.experiment_ids(experiments).items()}
        search = all_pages(self.client.search_runs, list(names), filter_string)
        runs = [_stored_run(run, names) for run in search]
        return sorted(runs, key=lambda run: (run.started, run.id))

    def history(self, run_id: str, metric: str, most: int = 160) -> tuple[list[int], list[float]]:
        """Steps and values of a training curve, thinned to about ``most`` points.

        The first and the last point are retained.
        """
        points = self.client.get_metric_history(run_id, metric_key(metric))
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        # a resumed training repeats some steps
        curve = list({point.step: point.value for point in points}.items())
        stride = max(1, -(-len(curve) // most))
        thinned = curve[::stride]
        if thinned and thinned[-1] != curve[-1]:
            thinned.append(curve[-1])
        return [step for step, _ in thinned], [value for _, value in thinned]

    def artifact(self, run: StoredRun, name: str) -> Path | None:
        """A file of a run on this disk, or None where the run has none.

        Files fetched from elsewhere are cached for later reports if the run is finished.
        """
        local = local_folder(run.artifacts)
        if local is not None:
            return local / name if (local / name).is_file() else None
        cache = home() / "artifacts" if run.status == "FINISHED" else Path(self._scratch.name)
        path = cache / run.id / name
        if path.is_file():
            return path
        # artifact stores report a missing file in many ways: list before fetching
        folder = name.rpartition("/")[0]
        if (run.id, folder) not in self._listed:
            listed = self.client.list_artifacts(run.id, folder or None)
            self._listed[run.id, folder] = {file.path for file in listed}
        if name not in self._listed[run.id, folder]:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / run.id) as scratch:
            Path(self.client.download_artifacts(run.id, name, scratch)).replace(path)
        return path


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI on this disk, else None."""
    parts = urlparse(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _stored_run(run: Any, experiments: Mapping[str, str]) -> StoredRun:
    info, data = run.info, run.data
    names = declared(data.tags)
    metrics = {
        metric_name(key, names): value
        for key, value in data.metrics.items()
        if not key.startswith("system/")
    }
    return StoredRun(
        info.run_id,
        info.run_name or "",
        experiments[info.experiment_id],
        info.experiment_id,
        info.status,
        info.start_time or 0,
        info.artifact_uri or "",
        data.tags,
        data.params,
        metrics,
    )


def scored(runs: Sequence[StoredRun]) -> list[Scored]:
    """The task runs among ``runs``, oldest first, and those that parents reused.

    A parent may reuse a task run under another backbone's name.
    """
    by_id = {run.id: run for run in runs if run.is_task}
    cells = {(run.id, run.tags.get("backbone", "")): _scored(run) for run in by_id.values()}
    for parent in runs:
        backbone = parent.tags.get("backbone", "")
        for tag, child in parent.tags.items():
            reused = tag.startswith("cached.") and child in by_id
            if reused and (child, backbone) not in cells:
                cells[child, backbone] = _scored(by_id[child], backbone, parent.id)
    return list(cells.values())


def _scored(run: StoredRun, backbone: str = "", parent: str = "") -> Scored:
    tags = run.tags
    metrics = declared(tags)
    finished = run.status == "FINISHED"
    return Scored(
        run,
        backbone or tags.get("backbone", "?"),
        parent or run.parent,
        tags.get("weights.sha256", ""),
        tags["task"],
        tags.get("kind", ""),
        tags["protocol"],
        int(tags.get("seed", 0)),
        "" if finished else failure_reason(run),
        {name: run.metrics[name] for name in metrics if name in run.metrics} if finished else {},
        metrics,
    )


def failure_reason(run: StoredRun) -> str:
    """Why a run that is not finished has no number."""
    status = STATUS_WORDS.get(run.status, run.status.lower())
    reason = run.tags.get(FAILURE_TAG, "")
    return f"{status}: {reason}" if reason and reason != status else status


def tidy(cells: Sequence[Scored]) -> pd.DataFrame:
    """One row for each metric of each finished cell.

    Columns: backbone, weights (sha256), task, kind, protocol, seed (int), metric, value (float;
    percentages 0–100), direction (+1 or -1), cost_seconds (of the cell), run_id, parent_id,
    experiment.
    """
    return pd.DataFrame(
        {
            "backbone": cell.backbone,
            "weights": cell.weights,
            "task": cell.task,
            "kind": cell.kind,
            "protocol": cell.protocol,
            "seed": cell.seed,
            "metric": name,
            "value": value,
            "direction": cell.declared[name].direction,
            "cost_seconds": cell.run.metrics.get("cost/seconds", float("nan")),
            "run_id": cell.run.id,
            "parent_id": cell.parent,
            "experiment": cell.run.experiment,
        }
        for cell in cells
        for name, value in cell.metrics.items()
    )
