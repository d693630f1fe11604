"""Reading back: an MLflow store → plain runs → one tidy table. Bulk requests only; artifacts are fetched when asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd

from reports.errors import TrackingError, instead
from reports.metrics import Metric, declared
from reports.mlflow.client import connect, metric_key, metric_name, tracking_uri

PAGE = 1000  # runs a request
PARENT_TAG = "mlflow.parentRunId"
FAILURE_TAG = "failure"
COLUMNS = (
    *("backbone", "weights", "task", "kind", "protocol", "seed", "metric", "value", "direction"),
    *("cost_seconds", "run_id", "parent_id", "experiment"),
)


@dataclass(frozen=True)
class StoredRun:
    """A run as it is in MLflow, with metric names as the field writes them (``i2t_R@1``)."""

    id: str
    name: str
    experiment: str
    experiment_id: str
    status: str
    started: int
    ended: int
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
    """One task's numbers of one backbone and one seed: a child run, as the report sees it.

    Attributes:
        metrics, declared: name → value, and what the metric is; the main one first.
        cost: name → value of what was measured (``seconds``, ``train_seconds`` …).
        status: MLflow's; only ``FINISHED`` has numbers.
        reason: why it has none.
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

    @property
    def cost(self) -> dict[str, float]:
        return {k.removeprefix("cost/"): v for k, v in self.run.metrics.items() if k.startswith("cost/")}


class Store:
    """An MLflow store to read from.

    Args:
        uri: tracking URI; ``None`` as for writing.

    Raises:
        TrackingError: it cannot be reached, or a newer MLflow wrote it.
    """

    def __init__(self, uri: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar a file
        self.uri = tracking_uri(uri)
        database = urlparse(self.uri).path if self.uri.startswith("sqlite:") else ""
        if database and database != "/:memory:" and not Path(database.removeprefix("/")).exists():
            raise TrackingError(f"there is no MLflow store at {self.uri}; run something first, or give --tracking-uri")
        self.client = connect(self.uri)
        self._scratch = TemporaryDirectory(prefix="cliptex-report-")
        self._fetched: dict[tuple[str, str], Path] = {}
        self._listed: dict[tuple[str, str], set[str]] = {}

    def experiments(self) -> dict[str, str]:
        """Name → id of all active experiments."""
        found, token = {}, None
        while True:
            page = self.client.search_experiments(max_results=PAGE, page_token=token)
            found.update({one.name: one.experiment_id for one in page})
            token = page.token
            if not token:
                return found

    def runs(self, experiments: Sequence[str], filter_string: str = "") -> list[StoredRun]:
        """All runs of the named experiments, oldest first.

        Raises:
            TrackingError: an experiment does not exist; names the nearest.
        """
        known = self.experiments()
        for name in experiments:
            if name not in known:
                raise TrackingError(f"no experiment {name!r} in the MLflow store; {instead(name, known)}")
        names = {known[name]: name for name in experiments}
        runs: list[StoredRun] = []
        token = None
        while names:
            page = self.client.search_runs(
                list(names), filter_string, max_results=PAGE, page_token=token, order_by=["attributes.start_time ASC"]
            )
            runs.extend(_plain(run, names) for run in page)
            token = page.token
            if not token:
                break
        return runs

    def history(self, run_id: str, metric: str, most: int = 160) -> tuple[list[int], list[float]]:
        """Steps and values of a training curve, thinned to about ``most`` points (first and last are kept)."""
        points = sorted(self.client.get_metric_history(run_id, metric_key(metric)), key=lambda m: (m.step, m.timestamp))
        stride = max(1, -(-len(points) // most))
        kept = points[::stride] + ([points[-1]] if points and (len(points) - 1) % stride else [])
        return [m.step for m in kept], [m.value for m in kept]

    def artifact(self, run: StoredRun, name: str) -> Path | None:
        """A file of a run on this disk (fetched when the store is elsewhere), or None where the run has none."""
        local = local_folder(run.artifacts)
        if local is not None:
            return local / name if (local / name).is_file() else None
        key = (run.id, name)
        if key not in self._fetched:
            folder = name.rpartition("/")[0]
            # artifact stores say "not there" in many ways: ask before fetching
            if (run.id, folder) not in self._listed:
                found = self.client.list_artifacts(run.id, folder or None)
                self._listed[run.id, folder] = {one.path for one in found}
            if name not in self._listed[run.id, folder]:
                return None
            place = Path(self._scratch.name) / run.id
            place.mkdir(exist_ok=True)
            self._fetched[key] = Path(self.client.download_artifacts(run.id, name, str(place)))
        return self._fetched[key]


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI that lies on this disk, else None."""
    parts = urlparse(uri)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path))
    return None


def _plain(run: Any, experiments: Mapping[str, str]) -> StoredRun:
    info, data = run.info, run.data
    return StoredRun(
        info.run_id, info.run_name or "", experiments[info.experiment_id], info.experiment_id, info.status,
        info.start_time or 0, info.end_time or 0, info.artifact_uri or "", data.tags, data.params,
        {metric_name(key): value for key, value in data.metrics.items()},
    )  # fmt: skip


def scored(runs: Sequence[StoredRun]) -> list[Scored]:
    """The task runs among ``runs``, oldest first; also what a parent reused from an earlier run under another backbone's name."""
    by_id = {run.id: run for run in runs}
    found = {(run.id, run.tags.get("backbone", "")): _scored(run) for run in runs if run.is_task}
    for parent in runs:
        for tag, child in parent.tags.items():
            if not tag.startswith(("cached.", "reused.")) or child not in by_id or not by_id[child].is_task:
                continue
            backbone = parent.tags.get("backbone", "")
            if (child, backbone) not in found:
                found[child, backbone] = _scored(by_id[child], backbone, parent.id)
    return list(found.values())


def _scored(run: StoredRun, backbone: str = "", parent: str = "") -> Scored:
    tags = run.tags
    known = declared(tags)
    finished = run.status == "FINISHED"
    names = [name for name in known if name in run.metrics] if finished else []
    seed = tags.get("seed", "")
    return Scored(
        run, backbone or tags.get("backbone", "?"), parent or run.parent, tags.get("weights.sha256", ""), tags["task"],
        tags.get("kind", ""), tags["protocol"], int(seed) if seed.lstrip("-").isdigit() else 0, run.status,
        "" if finished else why(run), {name: run.metrics[name] for name in names}, known,
    )  # fmt: skip


def why(run: StoredRun) -> str:
    """Why a run that is not finished has no number."""
    words = {"FAILED": "failed", "KILLED": "interrupted", "RUNNING": "still running", "SCHEDULED": "not started"}
    told = run.tags.get(FAILURE_TAG, "")
    status = words.get(run.status, run.status.lower())
    return f"{status}: {told}" if told and told != status else status


def tidy(cells: Sequence[Scored]) -> pd.DataFrame:
    """One row for each metric of each finished cell.

    Columns: backbone, weights (sha256), task, kind, protocol, seed (int), metric, value (float; percentages 0–100), direction (+1
    or -1), cost_seconds (of the whole cell), run_id, parent_id, experiment.
    """
    rows = [
        (
            *(cell.backbone, cell.weights, cell.task, cell.kind, cell.protocol, cell.seed, name, value),
            *(cell.declared[name].direction, cell.run.metrics.get("cost/seconds", float("nan"))),
            *(cell.run.id, cell.parent, cell.run.experiment),
        )
        for cell in cells
        for name, value in cell.metrics.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
