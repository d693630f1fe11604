"""Reading an MLflow store: records of runs, and one tidy table.

Runs come in bulk requests; artifacts are fetched one by one when they are needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd

from cliptex_common.errors import suggest
from cliptex_common.files import home
from reports.artifacts import DAMAGED, read_arrays
from reports.cell import TAGS, Cell, Record, read_record
from reports.errors import TrackingError, damaged
from reports.mlflow.client import (
    FAILURE_TAG,
    PARENT_TAG,
    all_pages,
    connect,
    metric_key,
    metric_name,
    sqlite_file,
    tracking_uri,
)

# of runs in MLflow → of records
STATUSES = {
    "FINISHED": "done",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "still running",
    "SCHEDULED": "not started",
}
UNREADABLE = "unreadable"


class Store:
    """An MLflow store to read from.

    Args:
        uri: tracking URI; ``None`` as for writing.

    Raises:
        TrackingError: it cannot be reached, or a newer MLflow wrote it.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)
        database = sqlite_file(self.uri)
        if database is not None and not database.exists():
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

    def runs(self, experiments: Sequence[str], filter_string: str = "") -> list[Record]:
        """Records of the runs of the named experiments that match an MLflow filter, oldest first.

        Raises:
            TrackingError: an experiment does not exist.
        """
        names = {identity: name for name, identity in self.experiment_ids(experiments).items()}
        search = all_pages(self.client.search_runs, list(names), filter_string)
        runs = [read_run(run, names[run.info.experiment_id]) for run in search]
        return sorted(runs, key=lambda run: (run.started, run.run_id))

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

    def artifact(self, run: Record, name: str) -> Path | None:
        """A file of a run on this disk, or None where the run has none.

        Files fetched from elsewhere are cached for later reports if the run is finished.
        """
        local = local_folder(run.artifacts)
        if local is not None:
            return local / name if (local / name).is_file() else None
        cache = home() / "artifacts" if run.is_finished else Path(self._scratch.name)
        path = cache / run.run_id / name
        if path.is_file():
            return path
        # artifact stores report a missing file in many ways: list before fetching
        folder = name.rpartition("/")[0]
        if (run.run_id, folder) not in self._listed:
            listed = self.client.list_artifacts(run.run_id, folder or None)
            self._listed[run.run_id, folder] = {file.path for file in listed}
        if name not in self._listed[run.run_id, folder]:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / run.run_id) as scratch:
            Path(self.client.download_artifacts(run.run_id, name, scratch)).replace(path)
        return path

    def json(self, run: Record, name: str) -> Any:
        """A JSON artifact; {} where the run has none. Raises ``TrackingError`` if it exists but
        cannot be read."""
        return self._parsed(run, name, json.loads)

    def arrays(
        self, run: Record, name: str, fields: Container[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of an npz artifact, of them those in ``fields``; {} where the run has none.
        Raises ``TrackingError`` if it exists but cannot be read."""
        return self._parsed(run, name, lambda content: read_arrays(content, fields))

    def _parsed(self, run: Record, name: str, parse: Callable[[bytes], Any]) -> Any:
        path = self.artifact(run, name)
        if path is None:
            return {}
        try:
            return parse(path.read_bytes())
        except DAMAGED as error:
            raise damaged(name, run.run_id, run.name, error) from error


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI on this disk, else None."""
    parts = urlparse(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def read_run(run: Any, experiment: str = "") -> Record:
    """The record of an MLflow run; ``experiment`` is the name of its experiment.

    One with a tag that cannot be read is a plain ``Record``, whose status is ``UNREADABLE``.
    """
    info, data = run.info, run.data
    fields: dict[str, Any] = {
        "run_id": info.run_id,
        "name": info.run_name or "",
        "parent": data.tags.get(PARENT_TAG, ""),
        "status": STATUSES.get(info.status, info.status.lower()),
        "reason": data.tags.get(FAILURE_TAG, ""),
        "experiment": experiment,
        "experiment_id": info.experiment_id,
        "artifacts": info.artifact_uri or "",
        "started": info.start_time or 0,
    }
    try:
        declared = json.loads(data.tags.get(TAGS["declared"], "{}"))
        metrics = {
            metric_name(key, declared): value
            for key, value in data.metrics.items()
            if not key.startswith("system/")
        }
        return read_record(data.tags, data.params, metrics, **fields)
    except (ValueError, TypeError, AttributeError) as error:
        reason = f"a tag cannot be read: {' '.join(str(error).split())[:150]}"
        return Record(**fields | {"status": UNREADABLE, "reason": reason})


def tidy(cells: Sequence[Cell]) -> pd.DataFrame:
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
            "cost_seconds": cell.costs.get("seconds", float("nan")),
            "run_id": cell.run_id,
            "parent_id": cell.parent,
            "experiment": cell.experiment,
        }
        for cell in cells
        for name, value in cell.metrics.items()
    )
