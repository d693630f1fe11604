"""Reading an MLflow store: plain runs and one tidy table.

Runs come in bulk requests; artifacts are fetched one by one when they are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd

from common.errors import nearest
from common.files import home
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

THREADS = 8  # requests at the same time
REFERENCES = ("cached.", "reused.", "train.run")  # tags whose values are ids of other runs
STUDY_TAG = "study"  # of every run of a sweep; trials also have ``trial``
STATUS_WORDS = {
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "still running",
    "SCHEDULED": "not started",
}


@dataclass(frozen=True)
class StoredRun:
    """A run as it is in MLflow, with metric names as the field writes them (``i2t_R@1``)."""

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
        status: MLflow's; only ``FINISHED`` has numbers.
        reason: why it has no numbers.
    """

    run: StoredRun
    backbone: str
    parent: str
    weights: str
    task: str
    kind: str
    protocol: str
    seed: int
    status: str
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
                    f"no experiment {name!r} in the MLflow store; {nearest(name, ids)}"
                )
        return {name: ids[name] for name in names}

    def runs(self, experiments: Sequence[str], *filters: str) -> list[StoredRun]:
        """Runs of the named experiments, oldest first.

        Args:
            filters: MLflow filters; default: all runs. Runs that match one of them are read, and
                the runs that those refer to (reused cells, the training of their weights).

        Raises:
            TrackingError: an experiment does not exist.
        """
        names = {identity: name for name, identity in self.experiment_ids(experiments).items()}
        runs: dict[str, StoredRun] = {}

        def read(filter_string: str) -> None:
            for run in all_pages(self.client.search_runs, list(names), filter_string):
                runs[run.info.run_id] = _stored_run(run, names)

        for filter_string in filters or ("",):
            read(filter_string)
        references = {
            value
            for run in runs.values()
            for tag, value in run.tags.items()
            if tag.startswith(REFERENCES)
        }
        missing = sorted(references - runs.keys()) if filters else []
        for start in range(0, len(missing), 100):
            ids = ", ".join(f"'{run_id}'" for run_id in missing[start : start + 100])
            read(f"attributes.run_id IN ({ids})")
        return sorted(runs.values(), key=lambda run: (run.started, run.id))

    def runs_of(self, experiments: Sequence[str], backbones: Sequence[str]) -> list[StoredRun]:
        """Runs of these backbones (``NAME`` or ``NAME@SHA``) and of all studies.

        All runs where no backbone is named or one of them has no run.
        """
        names = list(dict.fromkeys(name.partition("@")[0] for name in backbones))
        if names:
            filters = [f"tags.backbone = '{name}'" for name in names]
            runs = self.runs(experiments, *filters, f"tags.{STUDY_TAG} != ''")
            if {run.tags.get("backbone") for run in runs}.issuperset(names):
                return runs
        return self.runs(experiments)

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

    def fetch(self, runs: Iterable[StoredRun], name: str) -> None:
        """Fetch an artifact of many runs at the same time, if the artifacts are elsewhere."""
        remote = [run for run in runs if local_folder(run.artifacts) is None]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda run: self.artifact(run, name), remote))


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
            reused = tag.startswith(("cached.", "reused.")) and child in by_id
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
        run.status,
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
