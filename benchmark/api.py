"""The suite from Python, for notebooks and scripts::

    from benchmark import compare, evaluate

    results = evaluate(my_module, ["voc/linear"], data_root="datasets", seeds=3)
    results.frame                       # one row for each number
    compare(results, "clip").report("comparison")

Cells, runs in MLflow and report are those of the command line, and each finds what the other has
finished.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cliptex_common.errors import UserError, suggest
from cliptex_common.registry import load_plugins
from cliptex_common.settings import (
    Label,
    as_list,
    as_pairs,
    check_arguments,
    field_names,
    one_line_errors,
    read_value,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from backbones.backbone import DataConfig
    from benchmark.options import RunOptions
    from reports.records import Cell
    from reports.report import Report
    from reports.store import Store

T = TypeVar("T")
COLUMNS = ["backbone", "task", "metric", "value", "seed", "status", "reason", "run"]
COLUMNS += ["weights", "network", "protocol"]


@dataclass(frozen=True)
class Results:
    """What ``evaluate`` and ``compare`` return.

    Attributes:
        frame: a row for each number: backbone (its label, or its name with what tells it from
            others of this name), task, metric, value, seed, status, reason, run (its MLflow id),
            weights (sha256), network (hash of weights and configuration), protocol (hash of its
            conditions). ``details`` has more columns.
        tracking_uri: the MLflow store; experiment: in that store.
        parents: MLflow ids of the parent runs.
        options: of ``evaluate``, as far as they apply to other backbones too.
        baseline: what the report compares the others with; None for the suite's choice.
    """

    frame: pd.DataFrame
    tracking_uri: str
    experiment: str
    parents: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None

    def table(self) -> pd.DataFrame:
        """Means over seeds: a row for each task and metric, a column for each backbone. Where a
        task has several protocols, a row for each."""
        protocols = self.frame[self.frame.value.notna()].groupby("task").protocol.nunique()
        index = ["task", "metric"] + ["protocol"] * bool(protocols.gt(1).any())
        return self.frame.pivot_table("value", index, "backbone", sort=False)

    @check_arguments
    def per_image(
        self,
        task: str,
        backbone: str | Sequence[str] | None = None,
        seed: int | None = None,
        by_class: bool = False,
    ) -> pd.DataFrame:
        """The images of a task, one a row.

        Of two backbones a ``reports.by_image.ImageDifferences``: both scores, their difference and
        its rank, 1 where the first is furthest behind the second, which is the baseline if there is
        one. It has ``worst(20)``, ``pictures()`` with both predictions, and ``traits()`` that go
        with the difference. Of one backbone what the task's metrics are computed from; where an
        image has several numbers, its entry is an array.

        Args:
            backbone: a name, or two; by default all, which must not be more than two.
            seed: by default the first.
            by_class: of two backbones, a row for each class of an image of segmentation.

        Raises:
            UserError: there is nothing of that kind.
        """
        import pandas as pd

        from reports.by_image import compare_images
        from reports.records import PER_IMAGE

        names = as_list(backbone or list(dict.fromkeys(self.frame.backbone)))
        if self.baseline in names and not backbone:
            names = [*(name for name in names if name != self.baseline), self.baseline]
        if len(names) > 2:
            raise UserError(
                f"per_image compares two backbones, not {len(names)}; name one or two of"
                f" {', '.join(names)}, as backbone=[{names[0]!r}, {names[1]!r}]"
            )
        store, cells = self._cells(task, names, seed)
        if len(names) == 2:
            return compare_images(store, cells, by_class)
        if not (arrays := store.arrays(cells[names[0]], PER_IMAGE)):
            raise UserError(f"{task} stores no per-image scores; those of other tasks exist")
        arrays.pop("classes", None)
        return pd.DataFrame({name: list(values) for name, values in arrays.items()})

    @check_arguments
    def per_class(
        self, task: str, backbone: str | None = None, seed: int | None = None
    ) -> pd.DataFrame:
        """IoU in percent of each class of segmentation, and the number of images that have the
        class, by name (by default of the first backbone and seed). Raises ``UserError`` if there is
        nothing."""
        import pandas as pd

        from reports.comparison import load_scores

        name = backbone or self.frame.backbone.iloc[0]
        store, cells = self._cells(task, [name], seed)
        scores = load_scores(store, cells[name])
        if scores is None or (classes := scores.classes) is None:
            raise UserError(f"{task} has no scores of classes; those of segmentation have")
        columns = {classes.metric: classes.values, "images": classes.images}
        index = pd.Index(classes.names, name="class")
        return pd.DataFrame(columns, index).rename_axis(columns=name)

    def _cells(
        self, task: str, backbones: Sequence[str], seed: int | None
    ) -> tuple[Store, dict[str, Cell]]:
        """The store, and a finished cell of each backbone: of the first seed and conditions that
        all of them have."""
        from reports.store import Store, missing_artifacts, read_run

        rows = self.frame.query("run != ''")
        asked: dict[str, Any] = {"task": [task], "backbone": backbones}
        for column, values in (asked | {"seed": [seed]} if seed is not None else asked).items():
            for value in values:
                if value not in {*rows[column]}:
                    hint = suggest(str(value), {*map(str, rows[column])})
                    raise UserError(f"no finished cell of {column} {value!r}; {hint}")
            rows = rows[rows[column].isin(values)]
        for _, group in rows.groupby(["seed", "protocol"], sort=False):
            runs = dict(zip(group.backbone, group.run, strict=True))
            if len(runs) == len(backbones):
                store = Store(self.tracking_uri)
                cells = {name: read_run(store.client.get_run(runs[name])) for name in backbones}
                if missing := missing_artifacts([cell.artifacts for cell in cells.values()]):
                    raise UserError(missing)
                return store, cells  # type: ignore[return-value]
        raise UserError(
            f"{' and '.join(backbones)} have no cell of {task} with one seed under the same"
            " conditions; evaluate both with the same settings and data"
        )

    def details(self) -> pd.DataFrame:
        """``frame``, and of each cell its costs (``cost/seconds`` …) and all of its settings."""
        import pandas as pd

        from reports.records import COST
        from reports.store import Store

        client = Store(self.tracking_uri).client
        rows = {}
        for run in set(self.frame.run) - {""}:
            data = client.get_run(run).data
            costs = {name: value for name, value in data.metrics.items() if name.startswith(COST)}
            rows[run] = costs | data.params
        details = pd.DataFrame.from_dict(rows, orient="index")
        return self.frame.join(details.drop(columns=self.frame.columns, errors="ignore"), on="run")

    def to_mlflow(self, run_id: str | None = None, step: int | None = None) -> None:
        """Log the means over seeds as metrics ``TASK/METRIC`` of another run, such as that of a
        training: ``run_id``, or the active run.

        Raises:
            UserError: there are several backbones, or no run is active.
        """
        import mlflow

        from reports.records import metric_key

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

    def build_report(self) -> Report:
        """The comparison of these backbones, before it is a page."""
        from reports.report import ReportRequest, build_report

        return build_report(
            ReportRequest(
                experiments=[self.experiment],
                baseline=self.baseline,
                backbones=list(dict.fromkeys(self.frame.backbone)),
                tasks=list(dict.fromkeys(self.frame.task)),
                tracking_uri=self.tracking_uri,
                like_runs=[*self.parents, *self.frame.run],
            )
        )

    @check_arguments
    def power(
        self, seeds: Sequence[int] = (1, 3, 5), images: int = 0, difference: float = 0.0
    ) -> pd.DataFrame:
        """The differences that a next comparison decides with 80 %: a row for each task, a column
        for each number of seeds (``reports.power.power_frame``)."""
        from reports.power import power_frame

        analysis = self.build_report().analysis
        assert analysis, "only that of a study has none"
        return power_frame(analysis, seeds, images, difference)

    def verdict(self) -> str:
        """The report's first sentence: which backbone is better, at how many tasks, by how much."""
        return self.build_report().summary.headline

    def report(self, out: str | Path = "report") -> Path:
        """Write the page ``out``/index.html; returns its path."""
        from reports.pages import write

        return write(self.build_report(), Path(out))[0]


@check_arguments
def evaluate(
    backbone: str | nn.Module | Sequence[str] | Mapping[str, Any],
    tasks: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    images: DataConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
    **options: Any,
) -> Results:
    """Probe backbones on tasks; finished cells are reused.

    Args:
        backbone: a name (``clip``, ``timm/resnet18`` …), several, or a module (see
            ``backbones.adapters.module``); or label → a name, a module, or whatever
            ``--backbone LABEL=SOURCE`` takes: ``{"a": module, "b": "b.pt", "clip": "clip"}``.
        tasks: ``dataset/probe``, one or several; by default all of the suite.
        name: of a module; by default that of its class, after ``my-`` where a backbone has that.
        images: how the images of modules are prepared.
        settings: changes to the tasks' settings, as with ``--set``, or to those of one task, as
            ``{"voc/linear": {"lr": 0.1}}``; several values of an axis, such as ``{"layers": [3,
            6]}``, make variants.
        tracking_uri: MLflow store; by default as MLflow itself decides.
        **options: ``suite``, ``seed``, ``seeds``, ``data_root``, ``data`` (``{NAME: DIR}`` or
            ``["NAME=DIR"]``), ``weights``, ``architecture``, ``tags``, ``heads``,
            ``partial``, ``limit``, ``force``, ``experiment``, ``device``, ``jobs``,
            ``num_workers``, ``plugins``, as of ``python -m benchmark run``. A single backbone comes
            without baselines (``only=False`` adds them). A module is evaluated in this process.

    Raises:
        UserError: an option or the data cannot be used. A task that fails is a row without a value
            and with its reason.
    """
    import pandas as pd

    from benchmark.run import run_async
    from reports.store import using

    of_this_backbone = ("weights", "architecture", "tags", "heads", "force")
    for_others = {key: value for key, value in options.items() if key not in of_this_backbone}
    values = backbone.values() if isinstance(backbone, Mapping) else [backbone]
    if not all(isinstance(each, str | Path | Sequence) for each in values):
        options.setdefault("jobs", 1)
        elsewhere = options["jobs"] != 1 or options.get("executor", "local") != "local"
        if elsewhere or options.get("weights"):
            raise UserError(
                "a module in memory is evaluated in this process, with the weights that it has:"
                " leave jobs, executor and weights out, or register an entry point"
            )
    with _named(backbone, name, images) as names, using(tracking_uri):
        run_options = _run_options(names, tasks, settings, options)
        result = _run_to_end(run_async(run_options))
    rows = []
    for cell in result.cells:
        for metric, value in (cell.metrics or {"": float("nan")}).items():
            rows.append({**vars(cell), "metric": metric, "value": value, "run": cell.run_id})
    return Results(
        pd.DataFrame(rows)[COLUMNS],
        result.tracker.uri,
        result.tracker.experiment,
        tuple(result.run_ids.values()),
        {**for_others, "tasks": tasks, "settings": settings},
    )


@check_arguments
def compare(
    *subjects: Results | str | nn.Module, baseline: str | None = None, **options: Any
) -> Results:
    """Compare backbones with the statistics of the report (docs/statistics.md).

    Args:
        subjects: results of ``evaluate``; names and modules beside them are evaluated with the
            tasks, data and settings of the first results.
        baseline: a backbone's name; by default the suite's choice.
        **options: of ``evaluate``, for what is not evaluated yet.

    Raises:
        UserError: nothing to compare, or results of different MLflow stores or experiments.
    """
    import pandas as pd

    from reports.selection import shown_runs, weights_labels
    from reports.store import Store, read_run

    evaluated = [subject for subject in subjects if isinstance(subject, Results)]
    if evaluated:
        first = evaluated[0]
        options = {
            "tasks": list(dict.fromkeys(first.frame.task)),
            **first.options,
            "tracking_uri": first.tracking_uri,
            "experiment": first.experiment,
            **options,
        }
    results = [
        subject if isinstance(subject, Results) else evaluate(subject, **options)
        for subject in subjects
    ]
    experiments = {(each.tracking_uri, each.experiment) for each in results}
    if len(experiments) != 1:
        raise UserError(
            f"compare takes results of one MLflow experiment, not of {len(experiments)}"
        )
    uri, experiment = experiments.pop()
    parents = tuple(parent for each in results for parent in each.parents)
    frame = pd.concat([each.frame for each in results], ignore_index=True)
    frame = frame.drop_duplicates([*COLUMNS[:3], "seed", "network", "protocol"], keep="last")
    client = Store(uri).client
    runs = [read_run(client.get_run(parent)) for parent in parents]
    labels = weights_labels(shown_runs(runs, frame.backbone))
    own = zip(frame.backbone, frame.weights, frame.network, strict=True)
    frame = frame.assign(backbone=[labels.get(each, each[0]) for each in own])
    return Results(frame, uri, experiment, parents, baseline=baseline)


@check_arguments
def check(
    tasks: str | Sequence[str],
    *,
    name: str | None = None,
    images: DataConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    tracking_uri: str | None = None,
    **options: Any,
) -> None:
    """Check the arguments of a later ``evaluate`` before there is a backbone; the data are made and
    checked.

    Args:
        tasks, name, images, settings, tracking_uri, **options: as of ``evaluate``.

    Raises:
        UserError: tasks, a module's name, settings, options, data or the MLflow store cannot be
            used.
    """
    from torch import nn

    from benchmark.run import check_async
    from reports.store import using

    # stands for the module that ``evaluate`` will get; its weights are not looked at
    module = nn.Identity() if name or images else "random"
    with _named(module, name, images), using(tracking_uri):
        _run_to_end(check_async(_run_options(["random"], tasks, settings, {"jobs": 1, **options})))


def _run_options(
    names: Sequence[str],
    tasks: str | Sequence[str] | None,
    settings: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> RunOptions:
    """Raises ``UserError`` for an option that is unknown or not allowed."""
    from benchmark.options import RunOptions

    if tasks is not None and not tasks:
        raise UserError(
            f"tasks={tasks!r}: name tasks, such as imagefolder/knn, or leave tasks out for all of"
            " the suite"
        )
    allowed = field_names(RunOptions)
    for option in options:
        if option not in allowed:
            raise UserError(f"evaluate has no option {option!r}; {suggest(option, allowed)}")
    load_plugins(read_value("plugins", as_list(options.get("plugins", ())), Sequence[str | Path]))
    with one_line_errors():
        return RunOptions(
            backbones=names,
            tasks=tasks or (),
            overrides=as_pairs(settings or {}),
            **{"only": True, **options},
        )


def _is_module(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None))


@contextmanager
def _named(backbone: Any, name: str | None, images: DataConfig | None) -> Iterator[list[str]]:
    """The backbones as ``--backbone`` takes them; modules are registered while the block runs."""
    if isinstance(backbone, Mapping) and backbone:
        with ExitStack() as stack:
            items = []
            for label, each in backbone.items():
                label = read_value("backbone", label, Label)
                is_module = _is_module(each)
                if is_module:
                    (each,) = stack.enter_context(_named(each, label, images))
                items.append(label if each == label and not is_module else f"{label}={each}")
            yield items
        return
    if isinstance(backbone, str | Sequence) and len(backbone):
        if name or images:
            raise UserError("name and images are for modules; a registered backbone has its own")
        if any(map(_is_module, backbone)):
            raise UserError(
                "modules need labels, which name their columns: give a dictionary, as"
                ' {"a": module, "b": module}'
            )
        yield [backbone] if isinstance(backbone, str) else list(backbone)
        return
    if not _is_module(backbone) or isinstance(backbone, type):
        raise UserError(f"backbone={backbone!r}: give a name, names or a module, or labels of them")
    from backbones import DataConfig
    from backbones.adapters.module import entry_of
    from backbones.registry import BACKBONES, register

    images = read_value("images", images, DataConfig | None)
    if not name:
        name = type(backbone).__name__.lower()
        name = f"my-{name}" if name in BACKBONES else name
    name = read_value("name", name, Label)
    register(entry_of(backbone, name, images))
    try:
        yield [name]
    finally:
        BACKBONES.pop(name, None)


def _run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Where an event loop is running already, as in a notebook, it runs in
    a thread of its own, which an interruption of this one interrupts too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool, asyncio.Runner() as runner:
        thread = pool.submit(threading.get_ident).result()
        loop = runner.get_loop()
        future = pool.submit(runner.run, work)
        try:
            return future.result()
        except KeyboardInterrupt:
            if not future.done():
                # signals reach the main thread only: raise it in the one that has the event loop
                interrupt = ctypes.py_object(KeyboardInterrupt)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), interrupt)
                loop.call_soon_threadsafe(lambda: None)  # wakes it if it waits
                wait([future])
            raise
        finally:
            pool.submit(runner.close).result()
