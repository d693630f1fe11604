"""Reading back: an MLflow store → plain runs → one tidy table. Bulk requests only; artifacts are
fetched when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlparse

import pandas as pd

from common.errors import nearest
from common.files import home
from reports.errors import TrackingError
from reports.metrics import Metric, declared
from reports.mlflow.client import (
    PREFIX,
    connect,
    metric_key,
    metric_name,
    scratch,
    tag_key,
    tracking_uri,
)

PAGE = 1000  # runs a request
THREADS = 8  # requests at the same time
ANY = "*"  # of a filter: whatever the tag's value
MOST_FILTERS = 64  # requests that a filtered reading may take
REFERS = ("cached.", "reused.", "train.run")  # tags whose values are ids of other runs
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
        return {
            k.removeprefix("cost/"): v for k, v in self.run.metrics.items() if k.startswith("cost/")
        }


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
            raise TrackingError(
                f"there is no MLflow store at {self.uri}; run something first, or give"
                " --tracking-uri"
            )
        self.client = connect(self.uri)
        self._scratch = scratch()
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

    def experiment_ids(self, names: Sequence[str]) -> dict[str, str]:
        """Name → id of the named experiments. Raises ``TrackingError`` for one that does not exist;
        names the nearest."""
        known = self.experiments()
        for name in names:
            if name not in known:
                raise TrackingError(
                    f"no experiment {name!r} in the MLflow store; {nearest(name, known)}"
                )
        return {name: known[name] for name in names}

    def runs(self, experiments: Sequence[str], *filters: Mapping[str, str]) -> list[StoredRun]:
        """Runs of the named experiments, oldest first: all of them, or those that have all the tags
        of one of ``filters``, and what these refer to (cells that were finished before, the
        training of their weights). The store filters; pages are read at the same time.

        Args:
            filters: tag → value, ``ANY`` for whatever it is
                (``{"backbone": "clip", "task": "voc/linear"}``).

        Raises:
            TrackingError: an experiment does not exist; names the nearest.
        """
        names = {identity: name for name, identity in self.experiment_ids(experiments).items()}
        if not names:
            return []
        found = self._search(names, [_terms(one) for one in filters] or [""])
        # MLflow knows no "or": what an older version wrote, without our prefix, is asked for where
        # there is any
        if filters and len(
            self.client.search_runs(
                list(names), "tags.`weights.sha256` != ''", older=True, max_results=1
            )
        ):
            older = [_terms(one).replace(f"tags.`{PREFIX}", "tags.`") for one in filters]
            found |= self._search(names, older, older=True)
        referred = {
            value
            for run in found.values()
            for tag, value in run.tags.items()
            if tag.startswith(REFERS)
        }
        missing = sorted(referred - found.keys()) if filters else []
        chunks = [
            ", ".join(f"'{one}'" for one in missing[start : start + 100])
            for start in range(0, len(missing), 100)
        ]
        found |= self._search(names, [f"attributes.run_id IN ({chunk})" for chunk in chunks])
        return sorted(found.values(), key=lambda run: (run.started, run.id))

    def runs_about(
        self, experiments: Sequence[str], backbones: Sequence[str] = (), tasks: Sequence[str] = ()
    ) -> list[StoredRun]:
        """``runs`` that say something of these backbones (``NAME`` or ``NAME@SHA``) and tasks, or
        that belong to a study; all
        where nothing is named, or where something that is named is not there: whoever reports that
        says what is."""
        named = list(dict.fromkeys(name.partition("@")[0] for name in backbones))
        who = [{"backbone": name} for name in named] or [{}]
        what = [{"task": name} for name in tasks] or [{}]
        if len(who) * len(what) > MOST_FILTERS:  # of the two the one that is fewer requests
            who, what = (who, [{}]) if len(named or [*who, *what]) <= len(what) else ([{}], what)
        filters = [{**one, **other} for one in who for other in what]
        if not all(filters):
            return self.runs(experiments)
        if what != [{}]:  # the runs of a backbone that have no task
            filters += [{**one, "run.key": ANY} for one in who]
        runs = self.runs(experiments, *filters, {"study": ANY})
        there = {run.tags.get("backbone") for run in runs} | {run.tags.get("task") for run in runs}
        return runs if there.issuperset([*named, *tasks]) else self.runs(experiments)

    def _search(
        self, names: Mapping[str, str], filters: Sequence[str], **how: bool
    ) -> dict[str, StoredRun]:
        """Id → run; of what does not fit a page, sixteen parts are read at the same time, by the
        first digit of their ids."""
        found: dict[str, StoredRun] = {}

        def pages(filter_string: str, first_only: bool = False) -> str | None:
            token = None
            while True:
                page = self.client.search_runs(
                    list(names), filter_string, max_results=PAGE, page_token=token, **how
                )
                found.update({run.info.run_id: _plain(run, names) for run in page})
                token = page.token
                if first_only or not token:
                    return token

        with ThreadPoolExecutor(THREADS) as pool:
            more = list(pool.map(lambda one: pages(one, first_only=True), filters))
            parts = [
                " and ".join(filter(None, [one, f"attributes.run_id LIKE '{digit}%'"]))
                for one, token in zip(filters, more, strict=True)
                if token
                for digit in "0123456789abcdef"
            ]
            list(pool.map(pages, parts))
        return found

    def history(self, run_id: str, metric: str, most: int = 160) -> tuple[list[int], list[float]]:
        """Steps and values of a training curve, thinned to about ``most`` points (first and last
        are kept)."""
        points = sorted(
            self.client.get_metric_history(run_id, metric_key(metric)),
            key=lambda m: (m.step, m.timestamp),
        )
        curve = list(
            {point.step: point.value for point in points}.items()
        )  # a training that went on repeats some steps
        stride = max(1, -(-len(curve) // most))
        kept = curve[::stride] + ([curve[-1]] if curve and (len(curve) - 1) % stride else [])
        return [step for step, _ in kept], [value for _, value in kept]

    def artifact(self, run: StoredRun, name: str) -> Path | None:
        """A file of a run on this disk, or None where the run has none. What is fetched of a
        finished run, which does not change any more, is kept for later reports, by the run's id."""
        local = local_folder(run.artifacts)
        if local is not None:
            return local / name if (local / name).is_file() else None
        place = (_kept() if run.status == "FINISHED" else Path(self._scratch.name)) / run.id
        if (place / name).is_file():
            return place / name
        folder = name.rpartition("/")[0]
        # artifact stores say "not there" in many ways: ask before fetching
        if (run.id, folder) not in self._listed:
            found = self.client.list_artifacts(run.id, folder or None)
            self._listed[run.id, folder] = {one.path for one in found}
        if name not in self._listed[run.id, folder]:
            return None
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place) as scratch:
            Path(self.client.download_artifacts(run.id, name, scratch)).replace(place / name)
        return place / name

    def fetch(self, runs: Iterable[StoredRun], *names: str) -> None:
        """``artifact`` of many at the same time, where the store's are elsewhere."""
        away = [
            (run, name) for run in runs for name in names if local_folder(run.artifacts) is None
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda one: self.artifact(*one), away))


def _kept() -> Path:
    """Where artifacts of other machines are kept: as for all of the suite's caches,
    ``$CLIPTEX_HOME``."""
    return home() / "artifacts"


def _terms(tags: Mapping[str, str]) -> str:
    """A filter as MLflow writes it."""
    wanted = {tag_key(name): value.replace("'", "") for name, value in tags.items()}
    return " and ".join(
        f"tags.`{name}` " + ("!= ''" if v == ANY else f"= '{v}'") for name, v in wanted.items()
    )


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact URI that lies on this disk, else None."""
    parts = urlparse(uri)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path))
    return None


def _plain(run: Any, experiments: Mapping[str, str]) -> StoredRun:
    info, data = run.info, run.data
    names = declared(data.tags)
    return StoredRun(
        info.run_id,
        info.run_name or "",
        experiments[info.experiment_id],
        info.experiment_id,
        info.status,
        info.start_time or 0,
        info.end_time or 0,
        info.artifact_uri or "",
        data.tags,
        data.params,
        {
            metric_name(key, names): v
            for key, v in data.metrics.items()
            if not key.startswith("system/")
        },
    )


def scored(runs: Sequence[StoredRun]) -> list[Scored]:
    """The task runs among ``runs``, oldest first; also what a parent reused from an earlier run
    under another backbone's name."""
    by_id = {run.id: run for run in runs}
    found = {(run.id, run.tags.get("backbone", "")): _scored(run) for run in runs if run.is_task}
    for parent in runs:
        for tag, child in parent.tags.items():
            if (
                not tag.startswith(("cached.", "reused."))
                or child not in by_id
                or not by_id[child].is_task
            ):
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
        run,
        backbone or tags.get("backbone", "?"),
        parent or run.parent,
        tags.get("weights.sha256", ""),
        tags["task"],
        tags.get("kind", ""),
        tags["protocol"],
        int(seed) if seed.lstrip("-").isdigit() else 0,
        run.status,
        "" if finished else why(run),
        {name: run.metrics[name] for name in names},
        known,
    )


def why(run: StoredRun) -> str:
    """Why a run that is not finished has no number."""
    words = {
        "FAILED": "failed",
        "KILLED": "interrupted",
        "RUNNING": "still running",
        "SCHEDULED": "not started",
    }
    told = run.tags.get(FAILURE_TAG, "")
    status = words.get(run.status, run.status.lower())
    return f"{status}: {told}" if told and told != status else status


def tidy(cells: Sequence[Scored]) -> pd.DataFrame:
    """One row for each metric of each finished cell.

    Columns: backbone, weights (sha256), task, kind, protocol, seed (int), metric, value (float;
    percentages 0–100), direction (+1 or -1), cost_seconds (of the whole cell), run_id, parent_id,
    experiment.
    """
    rows = [
        (
            *(
                cell.backbone,
                cell.weights,
                cell.task,
                cell.kind,
                cell.protocol,
                cell.seed,
                name,
                value,
            ),
            *(cell.declared[name].direction, cell.run.metrics.get("cost/seconds", float("nan"))),
            *(cell.run.id, cell.parent, cell.run.experiment),
        )
        for cell in cells
        for name, value in cell.metrics.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
