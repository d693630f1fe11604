"""Writing to an MLflow store: runs with their metrics and files, signs of life of their process,
and LoggedModels of weights.

A run that raises ends FAILED with the reason as a tag, an interrupted one KILLED. A run whose
process vanished (kill -9, power) is found at the next start (``Tracker.close_stale``) and closed,
so none stays RUNNING.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import socket
import tempfile
import threading
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock

from cliptex_common.errors import first_line, hide_secrets, redact
from cliptex_common.files import acquire_liveness_lock, home, is_locked, lock_path, locked
from cliptex_common.progress import repeating
from reports.database import Point
from reports.provenance import origin_tags
from reports.records import COST, NOTE_TAG, TAGS, Record, TrackingError, metric_key
from reports.store import (
    FAILURE_TAG,
    PARENT_TAG,
    PREFIX,
    all_pages,
    artifact_folder,
    connect,
    importing,
    mlflow_error,
    open_mlflow,
    read_run,
    sqlite_file,
    tag_key,
    tracking_uri,
)

SILENT_SECONDS = 600.0  # age at which a time stamp no longer counts
MACHINE_TAG = f"{PREFIX}process.machine"
LOCK_TAG = f"{PREFIX}process.lock"
FOLDER_TAG = f"{PREFIX}process.folder"
TIME_TAG = f"{PREFIX}heartbeat.time"
PROCESS_TAGS = {MACHINE_TAG, LOCK_TAG, FOLDER_TAG, TIME_TAG}


def process_tags() -> dict[str, str]:
    """The tags by which others see that this process is alive.

    Each process locks a file of its own until it ends, however it ends, and its runs name that
    file. Where others see the file, the lock decides. Other machines, containers and users rely on
    a time stamp that each open run repeats in MLflow once a minute: it counts as alive until that
    is ``SILENT_SECONDS`` old.
    """
    _, identity = _process_lock(os.getpid())
    return {**identity, TIME_TAG: f"{time.time():.0f}"}


@functools.cache
def _process_lock(pid: int) -> tuple[FileLock, dict[str, str]]:
    """The lock of the process ``pid``, this one, and the tags that name it; the cache keeps both
    until the process ends."""
    folder = home().absolute() / "processes"
    with locked(lock_path("processes", "")):
        lock = acquire_liveness_lock(folder)
    identity = _folder_identity(folder)
    return lock, {MACHINE_TAG: machine(), LOCK_TAG: str(lock.lock_file), FOLDER_TAG: identity}


def _folder_identity(folder: Path) -> str:
    """What tells a folder from another at the same path, in another container of the machine."""
    status = folder.stat()
    return f"{status.st_dev}:{status.st_ino}"


def has_ended(run_tags: Mapping[str, str]) -> bool:
    """Whether the process that wrote a run's tags has ended. A run without ``PROCESS_TAGS`` is not
    of this package, and nothing is known of its process."""
    if not run_tags.keys() >= PROCESS_TAGS:
        return False
    if run_tags[MACHINE_TAG] == machine():
        path = Path(run_tags[LOCK_TAG])
        with suppress(OSError):  # the folder is of another user, or in another container
            if path.exists():
                return not is_locked(path)
            if _folder_identity(path.parent) == run_tags[FOLDER_TAG]:
                return True  # later processes remove the file
    return time.time() - float(run_tags[TIME_TAG]) > SILENT_SECONDS


@functools.cache
def machine() -> str:
    """This machine until its next boot: host names alone repeat."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"


FLUSH_AT = 500  # metrics; MLflow accepts at most 1,000 a call
FLUSH_AFTER = 5.0  # seconds, so that curves can be watched
# MLflow's UI opens an experiment of this kind on its runs, any other on traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# seconds after which MLflow's monitor is imported, which takes two; its first point comes after 60
MONITORED_AFTER = 10.0
MLFLOW_BEAT = 60.0  # seconds between two time stamps of an open run


class Tracker:
    """One experiment in one MLflow store.

    Args:
        experiment: its name; created when missing. By convention the suite's name.
        uri: tracking URI; ``None`` = ``MLFLOW_TRACKING_URI`` or MLflow's default database in the
            working directory.

    Raises:
        TrackingError: the store cannot be reached or written.
    """

    def __init__(self, experiment: str, uri: str | None = None):
        self.uri = tracking_uri(uri)
        self.client = connect(self.uri)
        self.experiment = experiment
        stored = self.client.get_experiment_by_name(experiment)
        if stored is None:
            try:
                folder = artifact_folder(self.uri, experiment)
                self.client.create_experiment(experiment, folder, tags=EXPERIMENT_TAGS)
            except TrackingError:
                raise
            except mlflow_error() as error:  # perhaps another process has just created it
                stored = self.client.get_experiment_by_name(experiment)
                if stored is None:
                    raise TrackingError(
                        f"MLflow refused the experiment {experiment[:80]!r}:"
                        f" {redact(first_line(error))}; choose another name"
                    ) from error
            else:
                stored = self.client.get_experiment_by_name(experiment)
        if stored.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {experiment!r} was deleted; restore it in the MLflow UI or run `mlflow"
                " gc`, then try again"
            )
        self.experiment_id = stored.experiment_id
        # A process's first temporary file takes a lock. A loading process that is forked while the
        # thread below holds it would wait for ever; after this line nothing takes it.
        tempfile.TemporaryDirectory().cleanup()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    @classmethod
    def existing(cls, experiment: str, uri: str | None = None) -> Tracker | None:
        """The experiment if it exists; creates nothing."""
        address = tracking_uri(uri)
        path = sqlite_file(address)
        if path is not None and not path.exists():
            return None
        if connect(address).get_experiment_by_name(experiment) is None:
            return None
        return cls(experiment, address)

    def close_stale(self) -> list[str]:
        """End as KILLED the RUNNING runs of this package whose process is dead or silent; returns
        their names."""
        closed = []
        for run in self._pages(f"attributes.status = 'RUNNING' and tags.`{LOCK_TAG}` != ''"):
            if has_ended(run.data.tags):
                self.close(run.info.run_id, "its process was killed, crashed, or is out of reach")
                closed.append(run.info.run_name)
        return closed

    def close(self, run_id: str, reason: str) -> None:
        """End as KILLED a run that its process cannot end."""
        self.client.set_tags(run_id, {FAILURE_TAG: reason})
        self.client.set_terminated(run_id, "KILLED")

    def _pages(self, filter_string: str) -> Iterator[Any]:
        newest_first = ["attributes.start_time DESC"]
        search = self.client.search_runs
        return all_pages(search, [self.experiment_id], filter_string, order_by=newest_first)

    def search(self, filter_string: str = "", **tags: str) -> Iterator[Record]:
        """The runs of the experiment that match an MLflow filter and carry all ``tags``, newest
        first."""
        terms = [f"tags.`{tag_key(name)}` = '{value}'" for name, value in tags.items()]
        return map(read_run, self._pages(" and ".join(filter(None, [filter_string, *terms]))))

    def finished(self, **tags: str) -> Record | None:
        """The newest FINISHED run that carries all ``tags``, or None."""
        return next(self.search("attributes.status = 'FINISHED'", **tags), None)

    def find_run(self, run_id: str) -> Record | None:
        """A run by its id if this experiment has it, not deleted; else None."""
        return next(self.search(f"attributes.run_id = '{run_id}'"), None)

    @contextmanager
    def run(
        self,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        parent: Run | None = None,
        resume: str | None = None,
        monitored: bool = False,
    ) -> Iterator[Run]:
        """A run for the length of a ``with`` block.

        Args:
            name: run name in the UI.
            tags, params: written at the start; params are short typed values, the complete config
                belongs in an artifact.
            parent: the run under which it nests.
            resume: id of an earlier run to continue instead of starting a new one.
            monitored: log MLflow's system metrics (CPU, memory, GPU, disk, network), a point a
                minute.
        """
        everything = {**origin_tags(), **process_tags(), **(tags or {})}
        run_tags = {tag_key(key): value for key, value in everything.items() if value != ""}
        if parent is not None:
            run_tags[PARENT_TAG] = parent.id
        if resume:
            run_id = resume
            # before it is RUNNING: with the tags of the process that died it could be closed
            self.client.set_tags(run_id, run_tags)
            self.client.update_run(run_id, status="RUNNING", name=name)
            with contextlib.suppress(Exception):
                self.client.delete_tag(run_id, FAILURE_TAG)
        else:
            created = self.client.create_run(self.experiment_id, run_name=name, tags=run_tags)
            run_id = created.info.run_id
        run = Run(self, run_id, name, is_resumed=bool(resume))
        try:
            # a process that was killed may have written none; what is written does not change
            stored = self.client.get_run(run_id).data.params if params and resume else {}
            if missing := {key: v for key, v in (params or {}).items() if key not in stored}:
                run.log_params(missing)
            beats = repeating(lambda: self.client.set_tags(run_id, process_tags()), MLFLOW_BEAT)
            with beats, _monitoring(run) if monitored else nullcontext():
                yield run
            run.flush()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | CancelledError):
                status, reason = "KILLED", "interrupted"
            else:
                status = "FAILED"
                message = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                reason = redact(message)[:400]
            # the first error is the one to show
            with contextlib.suppress(Exception):
                run.flush()
            with contextlib.suppress(Exception):
                self.client.set_tags(run_id, {FAILURE_TAG: reason})
            with contextlib.suppress(Exception):
                self.client.set_terminated(run_id, status)
            raise
        self.client.set_terminated(run_id, run.status)


@contextmanager
def _monitoring(run: Run) -> Iterator[None]:
    """MLflow's monitor of this machine, once the run has lasted for a while; a monitor that breaks
    does not stop the work, and the end of the run does not wait for its import."""
    over, deciding = threading.Event(), threading.Lock()
    stack = contextlib.ExitStack()

    def start() -> None:
        with contextlib.suppress(Exception):
            with importing:
                open_mlflow(run.tracker.uri)
                from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

                monitor = SystemMetricsMonitor(
                    run.id, 10, 6, resume_logging=True, tracking_uri=run.tracker.uri
                )
            with deciding:
                if not over.is_set():
                    monitor.start()
                    stack.callback(monitor.finish)

    timer = threading.Timer(MONITORED_AFTER, start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with deciding:
            over.set()
        stack.close()


class Run:
    """A run being written. All but files is sent in the background, in the order of the calls,
    metrics in batches with time stamps; ``flush`` waits for it."""

    def __init__(self, tracker: Tracker, run_id: str, name: str, is_resumed: bool = False):
        self.tracker = tracker
        self.id = run_id
        self.name = name
        self.is_resumed = is_resumed
        self.status = "FINISHED"  # the status that the run will end with
        self._buffer: list[Point] = []
        self._logged: dict[str, dict[int, float]] = {}
        self._sent = time.monotonic()
        # what is to be sent, in the order of the calls, and whether the pool will begin with it
        self._queue: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def fail(self, reason: str) -> None:
        """Let the run end FAILED though its block ends normally: a part of it broke."""
        self.status = "FAILED"
        self.set_tags({FAILURE_TAG: redact(reason)})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; MLflow cuts long values."""
        texts = {key: str(value) for key, value in params.items()}
        self._submit(self.tracker.client.log_params, texts)

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, about: Mapping[str, str] | None = None
    ) -> None:
        """Record finite values at ``step``; NaN means missing and is left out.

        Args:
            about: the model and data that they are of, for MLflow's Models page: ``model_id``,
                ``dataset_name``, ``dataset_digest``.
        """
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key, value = metric_key(name), float(value)
            logged = self._logged_points(key)
            # a number that was computed again may be another one; what a run took stands once
            is_new = step not in logged or not (step or name.startswith(COST) or logged[0] == value)
            if math.isfinite(value) and is_new:
                self._buffer.append(Point(key, value, now, int(step), **(about or {})))
        if len(self._buffer) >= FLUSH_AT or time.monotonic() - self._sent > FLUSH_AFTER:
            self._send()

    def _logged_points(self, key: str) -> dict[int, float]:
        """Step → value of what a killed process logged after the state that is resumed."""
        if self.is_resumed and key not in self._logged:
            history = self.tracker.client.get_metric_history(self.id, key)
            self._logged[key] = {each.step: each.value for each in history}
        return self._logged.get(key, {})

    def log_new_metrics(self, metrics: Mapping[str, float]) -> None:
        """``log_metrics`` without the values that the run has already."""
        stored = self.tracker.client.get_run(self.id).data.metrics
        self.log_metrics({k: v for k, v in metrics.items() if stored.get(metric_key(k)) != v})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; MLflow cuts long values."""
        self._submit(self.tracker.client.set_tags, tags)

    def describe(self, markdown: str) -> None:
        """Set the run's description in the MLflow UI."""
        self.set_tags({NOTE_TAG: markdown})

    def log_dataset(
        self, name: str, digest: str, context: str, *, source: str = "", **profile: int
    ) -> None:
        """Record a dataset and its source for the UI's Datasets column.

        MLflow keeps the first record of a digest.

        Args:
            name: of a path its last part is used. profile: sizes, such as those of splits; their
                sum is ``num_rows``.
        """
        dataset = {
            "name": PurePath(name).name,
            "digest": digest[:36],
            "source": json.dumps({"uri": source}),
            "profile": json.dumps({"num_rows": sum(profile.values()), **profile}),
        }
        self._submit(self.tracker.client.log_dataset, dataset, context)

    def log_models(self, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
        """Link the LoggedModels, by id, that the run uses or has created."""
        self._submit(self.tracker.client.link_models, inputs, outputs)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file as an artifact."""
        self.tracker.client.log_files(self.id, {str(PurePath(folder, path.name)): path})

    def log_text(self, text: str, name: str) -> None:
        """Store ``text`` as the artifact ``name`` (may contain slashes)."""
        content = hide_secrets(text).encode(errors="backslashreplace")
        self._submit(self.tracker.client.log_files, {name: content})

    def log_json(self, value: Any, name: str) -> None:
        """Store ``value`` as indented JSON."""
        self.log_text(json.dumps(value, indent=2, ensure_ascii=False, default=str), name)

    def _send(self) -> None:
        metrics, self._buffer = self._buffer, []
        self._sent = time.monotonic()
        for start in range(0, len(metrics), 1000):
            self._submit(self.tracker.client.log_points, metrics[start : start + 1000])

    def _submit(self, function: Callable[..., None], *args: Any, **options: Any) -> None:
        """Call ``function(self.id, *args, **options)`` in the background."""
        self._queue.append(functools.partial(function, self.id, *args, **options))
        if not self._is_scheduled:
            self._is_scheduled = True
            self.tracker._pool.submit(self._send_queue)

    def _send_queue(self) -> None:
        """Send what waits, in its order. What the store refuses is sent once more; what it refuses
        twice stays the first, and is raised."""
        self._is_scheduled = False  # what comes from now on may come too late for this call
        while self._queue:
            write = self._queue[0]
            try:
                write()
            except Exception:
                write()
            self._queue.popleft()

    def flush(self) -> None:
        """Wait until all is in the store.

        Raises:
            TrackingError: it refused a part, after which nothing was sent.
        """
        self._send()
        try:
            self.tracker._pool.submit(self._send_queue).result()
        except TrackingError:
            self._queue.clear()
            raise
        except Exception as error:
            self._queue.clear()
            raise TrackingError(
                f"MLflow refused a part of {self.name!r}:"
                f" {redact(first_line(error))}; check the store and run the command again"
                " (finished tasks are kept)"
            ) from error


def model_name(name: str) -> str:
    """A backbone's name as MLflow accepts it for models.

    ``timm/resnet18.a1`` → ``timm-resnet18_a1``.
    """
    return re.sub(r"[/:%'\"]+", "-", name).replace(".", "_")


def logged_model(
    tracker: Tracker,
    name: str,
    sha256: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    run_id: str = "",
) -> str:
    """The id of the LoggedModel of these weights in the tracker's experiment; created if missing.

    Each backbone that was trained or measured has one, so that MLflow's Models page compares
    backbones by task. Of weights stored elsewhere (on a hub, in a file) it is a reference: their
    source, path and sha256 are tags.

    Args:
        params, tags: set at its creation; empty values are left out.
        run_id: the run that trained them.
    """
    query = f"name = '{model_name(name)}' and tags.`{tag_key(TAGS['weights'])}` = '{sha256}'"
    models = tracker.client.search_logged_models([tracker.experiment_id], query, max_results=1)
    if models:
        return models[0].model_id
    model_tags = {
        tag_key(key): str(value)[:5000]
        for key, value in {**tags, TAGS["weights"]: sha256}.items()
        if value != ""
    }
    if not run_id:
        model_tags["mlflow.model.isExternal"] = "true"
    model_params = {key: str(value)[:500] for key, value in params.items() if value != ""}
    model = tracker.client.create_model(
        tracker.experiment_id, model_name(name), run_id or None, model_tags, model_params
    )
    return model.model_id
