"""Writing runs to MLflow: parents and children, batched metrics, artifacts, and honest endings.

The only module that writes to MLflow. A run that raises is FAILED with the reason as a tag, an
interrupted one KILLED; one whose process vanished (kill -9, power) is found at the next start and
closed (``reports.mlflow.heartbeat``). None stays RUNNING for ever.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from asyncio import CancelledError
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePath
from typing import Any

from common.secrets import hide_secrets, redact
from reports.errors import TrackingError
from reports.mlflow import heartbeat
from reports.mlflow.client import connect, metric_key, scratch, tag_key, tracking_uri
from reports.mlflow.environment import provenance

FLUSH_AT = 500  # metrics; MLflow takes 1,000 a call at most
FLUSH_AFTER = 5.0  # seconds, so that curves can be watched
PARENT_TAG = "mlflow.parentRunId"
FAILURE_TAG = "failure"
# MLflow's UI opens an experiment of this kind on its runs; without it, on traces of language
# models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class Tracker:
    """One experiment in one MLflow store.

    Args:
        experiment: name; made when it is not there. By convention the suite's name.
        uri: tracking URI; ``None`` = ``MLFLOW_TRACKING_URI`` or MLflow's default database in the
            working directory.

    Raises:
        TrackingError: the store cannot be reached or written.
    """

    def __init__(self, experiment: str, uri: str | None = None):
        from mlflow.exceptions import MlflowException

        self.uri = tracking_uri(uri)
        self.client = connect(self.uri)
        self.experiment = experiment
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            try:
                self.experiment_id = self.client.create_experiment(experiment, tags=EXPERIMENT_TAGS)
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(experiment)
                if found is None:
                    raise
                self.experiment_id = found.experiment_id
        elif found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {experiment!r} was deleted; restore it in the MLflow UI or run `mlflow"
                " gc`, then try again"
            )
        else:
            self.experiment_id = found.experiment_id
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    @classmethod
    def existing(cls, experiment: str, uri: str | None = None) -> Tracker | None:
        """The experiment when it is there; makes nothing."""
        where = tracking_uri(uri)
        path = where.removeprefix("sqlite:///")
        if path != where and not Path(path).exists():
            return None
        return (
            cls(experiment, where)
            if connect(where).get_experiment_by_name(experiment) is not None
            else None
        )

    def close_stale(self) -> list[str]:
        """End as KILLED the RUNNING runs whose process is gone, or has given no sign of life for
        long; returns their names."""
        closed = []
        for run in self.search("attributes.status = 'RUNNING'"):
            if heartbeat.settle(run.data.tags):
                continue
            self.close(
                run.info.run_id, "its process vanished: killed, crashed, or silent for too long"
            )
            closed.append(run.info.run_name)
        return closed

    def close(self, run_id: str, reason: str) -> None:
        """End a run as KILLED whose process cannot, or must not, end it itself."""
        self.client.set_tags(run_id, {FAILURE_TAG: reason})
        self.client.set_terminated(run_id, "KILLED")

    def search(self, filter_string: str) -> list[Any]:
        """All runs of the experiment that fit an MLflow filter, newest first."""
        runs: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                filter_string,
                max_results=1000,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def finished(self, **tags: str) -> Any | None:
        """The newest FINISHED run that carries all ``tags``, or None."""
        terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        runs = self.search(" and ".join(["attributes.status = 'FINISHED'", *terms]))
        return runs[0] if runs else None

    def known(self, run_id: str | None) -> Any | None:
        """A run by its id, if it is in this store and experiment and not deleted; else None."""
        try:
            run = self.client.get_run(run_id) if run_id else None
        except Exception:
            return None
        here = (
            run
            and run.info.lifecycle_stage == "active"
            and run.info.experiment_id == self.experiment_id
        )
        return run if here else None

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
            tags, params: written at the start; params are short typed facts, the whole config
                belongs in an artifact.
            parent: the run under which it nests.
            resume: id of an earlier run to take up again instead of starting a new one.
            monitored: keep MLflow's system metrics (CPU, memory, GPU, disk, network), a point a
                minute.
        """
        tags = {
            k: v for k, v in {**provenance(), **heartbeat.tags(), **(tags or {})}.items() if v != ""
        }
        if parent is not None:
            tags[PARENT_TAG] = parent.id
        if resume:
            run_id = resume
            self.client.update_run(run_id, status="RUNNING", name=name)
            self.client.set_tags(run_id, tags)
            with contextlib.suppress(Exception):
                self.client.delete_tag(run_id, tag_key(FAILURE_TAG))
        else:
            run_id = self.client.create_run(
                self.experiment_id, run_name=name, tags=tags
            ).info.run_id
        run = Run(self, run_id, name)
        try:
            if params and not resume:
                run.log_params(params)
            with _beating(run), _monitoring(run) if monitored else nullcontext():
                yield run
            run.flush()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | CancelledError):
                status, reason = "KILLED", "interrupted"
            else:
                status = getattr(
                    error, "run_status", "FAILED"
                )  # KILLED for what was stopped on purpose
                reason = redact(f"{type(error).__name__}: {error}".strip().splitlines()[0])[:400]
            with contextlib.suppress(Exception):  # the first error is the one to show
                run.flush()
            with contextlib.suppress(Exception):
                self.client.set_tags(run_id, {FAILURE_TAG: reason})
            with contextlib.suppress(Exception):
                self.client.set_terminated(run_id, status)
            raise
        self.client.set_terminated(run_id, run.status)


# seconds between signs of life in MLflow itself, for those who do not see this process's file
MLFLOW_BEAT = 60.0


@contextmanager
def _beating(run: Run) -> Iterator[None]:
    """The run's sign of life in MLflow, from a thread; a store that is away for a moment is tried
    again, not given up."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(MLFLOW_BEAT):
            with contextlib.suppress(Exception):
                run.set_tags({heartbeat.TIME_TAG: f"{time.time():.0f}"})

    threading.Thread(target=beat, name="mlflow-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _monitoring(run: Run) -> Iterator[None]:
    """MLflow's monitor of this machine, which stops with the run; where it cannot look or write,
    work goes on."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = None
    with contextlib.suppress(Exception):
        monitor = SystemMetricsMonitor(
            run.id, 10, 6, resume_logging=True, tracking_uri=run.tracker.uri
        )
        monitor.start()
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            if monitor is not None:
                monitor.finish()


class Run:
    """A run being written. Metrics are buffered and sent in the background, in batches, with their
    own time stamps."""

    def __init__(self, tracker: Tracker, run_id: str, name: str):
        self.tracker = tracker
        self.id = run_id
        self.name = name
        self.status = "FINISHED"  # what it will end with
        self._buffer: list[Any] = []
        self._sent = time.monotonic()
        self._pending: list[tuple[list[Any], Future]] = []

    def fail(self, reason: str) -> None:
        """The run will end FAILED though its block ends well: a part of it broke."""
        self.status = "FAILED"
        self.set_tags({FAILURE_TAG: redact(reason)})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """A few short parameters (values are cut at MLflow's 500 characters)."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)[:500]) for key, value in params.items()]
        for start in range(0, len(entities), 100):
            self.tracker.client.log_batch(self.id, params=entities[start : start + 100])

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, scored: Mapping[str, str] | None = None
    ) -> None:
        """Record finite values at ``step``; NaN is missing, not a number, and is left out.

        Args:
            scored: what was scored on what, for MLflow's Models page: ``model_id``,
                ``dataset_name``, ``dataset_digest``.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in metrics.items():
            value = float(value)
            if value == value and abs(value) != float("inf"):
                self._buffer.append(
                    Metric(metric_key(name), value, now, int(step), **(scored or {}))
                )
        if len(self._buffer) >= FLUSH_AT or time.monotonic() - self._sent > FLUSH_AFTER:
            self._send()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags (values are cut at 5,000 characters)."""
        self.tracker.client.set_tags(self.id, tags)

    def describe(self, markdown: str) -> None:
        """The run's description in the MLflow UI."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_dataset(
        self, name: str, digest: str, context: str, *, source: str = "", **profile: int
    ) -> None:
        """Record that a dataset was used, from where (shown in the UI's Datasets column). MLflow
        keeps what was said of a digest first.

        Args:
            name: a short one: of a path, its last part counts. profile: sizes, of splits say; their
                sum is ``num_rows``.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=PurePath(name).name,
            digest=digest[:36],
            source_type="local",
            source=hide_secrets(json.dumps({"uri": source})),
            profile=json.dumps({"num_rows": sum(profile.values()), **profile}),
        )
        self.tracker.client.log_inputs(
            self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        )

    def log_models(self, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
        """Link LoggedModels, by id, that the run works with or has made."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        if inputs:
            self.tracker.client.log_inputs(
                self.id, models=[LoggedModelInput(one) for one in inputs]
            )
        if outputs:
            self.tracker.client.log_outputs(
                self.id, [LoggedModelOutput(one, step=0) for one in outputs]
            )

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file as an artifact, whole or not at all."""
        try:
            self.tracker.client.log_artifact(self.id, str(path), folder)
        except OSError as error:
            raise TrackingError(
                f"cannot store {Path(path).name} in MLflow's artifacts: {error.strerror or error};"
                " free some space"
            ) from error

    def log_text(self, text: str, name: str) -> None:
        """Store ``text`` as the artifact ``name`` (may contain slashes)."""
        folder, _, file = name.rpartition("/")
        with scratch() as place:
            path = Path(place, file)
            path.write_text(hide_secrets(text), encoding="utf-8", errors="backslashreplace")
            self.log_file(path, folder or None)

    def log_json(self, value: Any, name: str) -> None:
        """Store ``value`` as indented JSON."""
        self.log_text(json.dumps(value, indent=2, ensure_ascii=False, default=str), name)

    def _send(self) -> None:
        metrics, self._buffer = self._buffer, []
        self._sent = time.monotonic()
        for start in range(0, len(metrics), 1000):
            chunk = metrics[start : start + 1000]
            self._pending.append((chunk, self.tracker._pool.submit(self._log, chunk)))
        self._pending = [
            (c, future) for c, future in self._pending if not future.done() or future.exception()
        ]

    def _log(self, metrics: list[Any]) -> None:
        self.tracker.client.log_batch(self.id, metrics=metrics, synchronous=True)

    def flush(self) -> None:
        """Wait until everything logged so far is in the store; what it refused before (it was away)
        is sent once more.

        Raises:
            TrackingError: some of it could not be written.
        """
        self._send()
        pending, self._pending = self._pending, []
        for chunk, future in pending:
            try:
                if future.exception():
                    self._log(chunk)
            except TrackingError:
                raise
            except Exception as error:
                raise TrackingError(
                    f"MLflow did not take the metrics of {self.name!r}:"
                    f" {str(error).splitlines()[0][:200]}; check the store and run the command"
                    " again (finished tasks are kept)"
                ) from error
