"""The suite from Python, for notebooks and scripts::

    from benchmark import compare, evaluate

    results = evaluate(my_module, ["voc/linear"], data_root="datasets", seeds=3)
    results.frame                       # one row for each number
    compare(results, "clip").report("comparison")

Everything is the command line's: the same cells, found again when they are finished, the same runs
in MLflow, the same report.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from backbones import DataConfig
    from benchmark.execution import ExecutorSpec
    from benchmark.results.outcome import RunResult
    from reports.report import Report

T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """What ``evaluate`` gives.

    Attributes:
        frame: a row for each number: backbone, task, metric, value, seed, status, reason, run (its
            MLflow id).
        tracking_uri: the MLflow store; experiment: in which experiment of it.
    """

    frame: pd.DataFrame
    tracking_uri: str
    experiment: str
    parents: tuple[str, ...]  # MLflow ids of the parent runs
    asked: Mapping[str, Any] = field(
        default_factory=dict
    )  # options of ``evaluate`` that hold for other backbones too

    def table(self) -> pd.DataFrame:
        """Means over seeds: a row for each task and metric, a column for each backbone."""
        return self.frame.pivot_table("value", ["task", "metric"], "backbone", sort=False)

    def per_image(
        self, task: str, backbone: str | None = None, seed: int | None = None
    ) -> pd.DataFrame:
        """What the task's metrics are computed from, an image a row (of the first backbone and seed
        by default); where there are several numbers an image, its cell holds an array. Raises
        ``UserError`` where nothing is kept."""
        import mlflow
        import numpy as np
        import pandas as pd

        found = self.frame[(self.frame.task == task) & (self.frame.run != "")]
        for column, wanted in (("backbone", backbone), ("seed", seed)):
            found = found if wanted is None else found[found[column] == wanted]
        if found.empty:
            raise UserError(
                f"nothing finished of {task!r} for that backbone and seed;"
                f" {nearest(task, {*self.frame.task})}"
            )
        with TemporaryDirectory() as scratch:
            place = mlflow.artifacts.download_artifacts(
                run_id=found.run.iloc[0],
                artifact_path="per_image.npz",
                dst_path=scratch,
                tracking_uri=self.tracking_uri,
            )
            with np.load(place, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        count = len(arrays["image"])
        rows = {name: each for name, each in arrays.items() if each.shape[:1] == (count,)}
        return pd.DataFrame(
            {name: each if each.ndim == 1 else list(each) for name, each in rows.items()}
        )

    def to_mlflow(self, run_id: str | None = None, step: int | None = None) -> None:
        """Log the means over seeds as metrics ``TASK/METRIC`` of another run, such as that of a
        training: of the active run, or ``run_id``. (The evaluation's own runs are in
            ``tracking_uri`` already.)

        Raises:
            UserError: there are several backbones, or no run is active.
        """
        import mlflow

        from reports.mlflow.client import metric_key

        if self.frame.backbone.nunique() != 1:
            raise UserError("to_mlflow logs one backbone's numbers; evaluate them one by one")
        if run_id is None and mlflow.active_run() is None:
            raise UserError(
                "no MLflow run is active; start one with mlflow.start_run(), or give run_id"
            )
        means = self.frame.groupby(["task", "metric"], sort=False, as_index=False).value.mean()
        names = map(metric_key, means.task + "/" + means.metric)
        metrics = dict(zip(names, means.value, strict=True))
        mlflow.log_metrics(metrics, step=step, run_id=run_id)

    def report(self, out: str | Path = "report", baseline: str | None = None) -> Path:
        """The comparison of these backbones as one page, ``out``/index.html; returns its path."""
        return Comparison(self, baseline).report(out)


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` gives: the report's numbers, before it is a page."""

    results: Results
    baseline: str | None = None

    def built(self) -> Report:
        """The report."""
        from reports.report import Request, build

        frame = self.results.frame
        return build(
            Request(
                experiments=[self.results.experiment],
                baseline=self.baseline,
                backbones=list(dict.fromkeys(frame.backbone)),
                tasks=list(dict.fromkeys(frame.task)),
                tracking_uri=self.results.tracking_uri,
                like=self.results.parents,
            )
        )

    def verdict(self) -> str:
        """The report's first sentence: which backbone is better, at how many tasks, by how much."""
        return self.built().verdict.headline

    def report(self, out: str | Path = "report") -> Path:
        """Write the page ``out``/index.html; returns its path."""
        from reports.render.export import write

        return write(self.built(), Path(out))[0]


def evaluate(
    backbone: str | nn.Module | Sequence[str],
    tasks: str | Sequence[str] = (),
    *,
    name: str | None = None,
    images: DataConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
    **options: Any,
) -> Results:
    """Probe backbones on tasks; what is finished already is found, not run again.

    Args:
        backbone: a name (``clip``, ``timm/resnet18`` …), several, or a module; see
            ``backbones.adapters.module``.
        tasks: ``dataset/probe``, one or several; by default all of the suite's.
        name, images: of a module: what it is called (its class's name by default), and how its
            images are prepared.
        settings: changes to the tasks' settings, as ``--set`` takes them.
        tracking_uri: MLflow store; by default as MLflow itself decides.
        **options: ``suite``, ``seed``, ``seeds``, ``data_root``, ``data``, ``weights``,
            ``partial``, ``limit``, ``force``, ``experiment``, ``device``, ``jobs``, ``num_workers``
            – as of ``python -m benchmark run``. A single backbone comes without baselines
            (``only=False`` brings them). A module is evaluated in this process.

    Raises:
        UserError: the request cannot be fulfilled. A task that fails is a row without a value, with
            its reason.
    """
    from benchmark import run as runner
    from reports.mlflow.client import using

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "this script is run again by each worker that evaluate starts; call it under `if"
            " __name__ == '__main__':`"
        )
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    asked = {key: value for key, value in options.items() if key not in ("weights", "force")} | {
        "settings": settings
    }
    executor = _executor(options, in_this_process=not isinstance(backbone, str | Sequence))
    known = {one.name for one in fields(runner.RunOptions)} - {
        "backbones",
        "tasks",
        "overrides",
        "executor",
        "json",
    }
    for option in options:
        if option not in known:
            raise UserError(f"evaluate has no option {option!r}; {nearest(option, known)}")
    for option in ("data_root", "weights"):
        if options.get(option) is not None:
            options[option] = Path(options[option])
    options["data"] = {key: Path(path) for key, path in options.get("data", {}).items()}
    overrides = [f"{key}={value}" for key, value in (settings or {}).items()]
    with _named(backbone, name, images) as names, using(tracking_uri):
        request = runner.RunOptions(
            names, tasks=tasks, overrides=overrides, executor=executor, **{"only": True, **options}
        )
        return replace(_results(_outside_loops(lambda: runner.run(request))), asked=asked)


def compare(
    *what: Results | str | nn.Module, baseline: str | None = None, **options: Any
) -> Comparison:
    """Compare backbones with the report's statistics (docs/statistics.md).

    Args:
        what: results of ``evaluate``; names and modules beside them are evaluated as the first
            results were: the same tasks, data and settings.
        baseline: a backbone's name; by default the suite's choice.
        **options: of ``evaluate``, for what is not evaluated yet.

    Raises:
        UserError: nothing to compare, or results of different MLflow stores or experiments.
    """
    import pandas as pd

    done = [each for each in what if isinstance(each, Results)]
    if done:
        tasks = list(dict.fromkeys(done[0].frame.task))
        place = {"tracking_uri": done[0].tracking_uri, "experiment": done[0].experiment}
        options = {**done[0].asked, "tasks": tasks, **place, **options}
    found = [each if isinstance(each, Results) else evaluate(each, **options) for each in what]
    places = {(each.tracking_uri, each.experiment) for each in found}
    if len(places) != 1:
        raise UserError(f"compare takes results of one MLflow experiment, not of {len(places)}")
    uri, experiment = places.pop()
    parents = tuple(parent for each in found for parent in each.parents)
    return Comparison(
        Results(pd.concat([each.frame for each in found]), uri, experiment, parents), baseline
    )


def _executor(options: dict[str, Any], in_this_process: bool) -> ExecutorSpec:
    from benchmark.execution import ExecutorSpec

    given = {key: options.pop(key) for key in ("jobs", "device", "num_workers") if key in options}
    if in_this_process and given.setdefault("jobs", 1) != 1:
        raise UserError(
            "a module in memory is evaluated in this process: leave jobs out, or register an entry"
            " point"
        )
    return ExecutorSpec(**given)


@contextmanager
def _named(backbone: Any, name: str | None, images: DataConfig | None) -> Iterator[list[str]]:
    """The backbones' names; a module has one in the registry until the block ends."""
    if isinstance(backbone, str | Sequence):
        if name or images:
            raise UserError("name and images are for modules; a registered backbone has its own")
        yield [backbone] if isinstance(backbone, str) else list(backbone)
        return
    from backbones.adapters.module import IMAGENET, entry_of
    from backbones.registry import BACKBONES, register

    name = name or type(backbone).__name__.lower()
    register(entry_of(backbone, name, images or IMAGENET))
    try:
        yield [name]
    finally:
        BACKBONES.unregister(name)


def _outside_loops(work: Callable[[], T]) -> T:
    """``work()``, which starts an event loop: a notebook has one already, beside which there may be
    no other in one thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _results(result: RunResult) -> Results:
    import pandas as pd

    rows = []
    for cell in result.cells:
        about = {
            "backbone": cell.backbone,
            "task": cell.task,
            "seed": cell.seed,
            "status": cell.status,
            "reason": cell.reason,
        }
        values = cell.metrics or {"": float("nan")}
        rows += [
            {**about, "metric": metric, "value": value, "run": cell.run_id}
            for metric, value in values.items()
        ]
    columns = ["backbone", "task", "metric", "value", "seed", "status", "reason", "run"]
    parents = tuple(result.run_ids.values())
    return Results(
        pd.DataFrame(rows, columns=columns), result.tracker.uri, result.tracker.experiment, parents
    )
