"""Which runs count, and why a number is missing.

Of one backbone, task, protocol and seed the newest finished run counts. A network – weights and
configuration – has a column of its own: its label names it (``shown_runs``), or its backbone, with
what tells it from others of this name (``weights_labels``).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from cliptex_common.errors import suggest
from reports.records import (
    KIND_LEVELS,
    TAGS,
    Cell,
    Metric,
    ParentRun,
    Record,
    TrackingError,
    task_tag,
    variant_parts,
)
from reports.store import PREFIX, Store

R = TypeVar("R", Cell, ParentRun)
Network = tuple[str, str, str]  # a name of it, the sha256 of its weights, ``Cell.network``
Labels = Mapping[Network, str]
AT_STEP = re.compile(r"(.+) step (\d+)")  # a label, as ``--backbone LABEL=FOLDER`` gives it
PREFERRED_BASELINES = ("clip-ft", "clip", "random")


@dataclass(frozen=True)
class TaskColumn:
    """A task under one protocol, a column of the report: its numbers can be compared.

    Attributes:
        metrics: name and declaration of each, the main one first.
        letter: distinguishes several protocols of a task (``A``, ``B`` … ``Z``, ``AA`` …), else
            empty.
    """

    task: str
    kind: str
    protocol: str
    metrics: tuple[tuple[str, Metric], ...]
    letter: str = ""

    @property
    def title(self) -> str:
        return f"{self.task} ({self.letter})" if self.letter else self.task

    @property
    def base(self) -> str:
        """The task without its variant but for its tier: ``voc/linear`` of ``voc/linear:0.1``.

        Means over tasks count all variants as one.
        """
        return self.task.partition(":")[0] + (f":{self.tier}" if self.tier else "")

    @property
    def tier(self) -> str:
        """``tune=lora:16`` where the backbone was tuned; '' of a frozen one."""
        return next((part for part in variant_parts(self.task) if part.startswith("tune=")), "")

    @property
    def level(self) -> str:
        """Of ``LEVELS``."""
        return KIND_LEVELS.get(self.kind, "high")

    @property
    def main(self) -> str:
        """Name of the main metric."""
        return self.metrics[0][0] if self.metrics else ""

    def metric(self, name: str) -> Metric:
        """The declaration of a metric."""
        return dict(self.metrics)[name]


@dataclass
class Selection:
    """The runs that a report is about.

    Attributes:
        backbones: names of columns, see ``weights_labels``.
        cells: (backbone, column) → the finished cells that count, by seed; no key without any.
        missing: (backbone, column) → why there is no number.
        seeds: backbone → its seeds.
        parents: (backbone, seed) → the newest parent run.
        runs: id → every run of the experiments.
    """

    experiments: list[str]
    backbones: list[str]
    baseline: str
    columns: list[TaskColumn]
    cells: dict[tuple[str, TaskColumn], list[Cell]]
    missing: dict[tuple[str, TaskColumn], str]
    seeds: dict[str, list[int]]
    parents: dict[tuple[str, int], ParentRun]
    runs: dict[str, Record]

    def parent(self, backbone: str) -> ParentRun | None:
        """The parent run of a backbone's first seed, if it is stored."""
        return next((run for (name, _), run in self.parents.items() if name == backbone), None)

    @property
    def shared(self) -> dict[str, str]:
        """Backbone → who shared its results, of backbones without results in the store."""
        sources: dict[str, set[str]] = defaultdict(set)
        for (name, _), cells in self.cells.items():
            sources[name] |= {cell.source for cell in cells}
        return {
            name: ", ".join(sorted(sources[name]))
            for name in self.backbones
            if name in sources and "" not in sources[name]
        }

    def column_cells(self, column: TaskColumn) -> list[Cell]:
        """The cells of a column, by backbone and seed."""
        return [cell for name in self.backbones for cell in self.cells.get((name, column), ())]


def default_experiments(store: Store) -> list[str]:
    """The experiment of the latest finished task.

    Raises:
        TrackingError: the store has no finished task.
    """
    ids = store.experiments()
    newest = store.client.search_runs(
        list(ids.values()),
        f"attributes.status = 'FINISHED' and tags.`{PREFIX}{TAGS['key']}` != ''",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    for run in newest:
        return [name for name, identity in ids.items() if identity == run.info.experiment_id]
    raise TrackingError(
        f"no finished run in the MLflow store at {store.uri}; run `python -m benchmark run` first,"
        " or give --tracking-uri"
    )


def without_studies(runs: Sequence[Record]) -> list[Record]:
    """The runs that are not part of a sweep: a trial's tasks are compared with other trials."""
    in_study = {run.run_id for run in runs if run.study}
    while more := {run.run_id for run in runs if run.parent in in_study} - in_study:
        in_study |= more
    return [run for run in runs if run.run_id not in in_study]


def shown_runs(runs: Sequence[Record], requested: Iterable[str] = ()) -> list[Record]:
    """Runs, with cells and parent runs under the names that their networks have: those of them that
    are requested, else the newest label, else the names of the backbones.

    A cell with several names is there for each of them. So is, without labels, one that was run
    under another name of the same weights, for each parent that reused it.
    """
    networks: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        if isinstance(run, Cell | ParentRun) and run.network:
            networks[run.weights].add(run.network)
    shown: dict[tuple[str, str], Record] = {}
    runs = [_with_network(run, networks) for run in runs]
    parents = [run for run in runs if isinstance(run, ParentRun)]
    claims: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # network → name → label
    for parent in sorted(parents, key=attrgetter("started")):
        names = claims[parent.weights, parent.network]
        if parent.label:  # the newest is last; a run without a label takes none back
            names.pop(parent.column, None)
        names.setdefault(parent.column, parent.label)
    requested = {name.partition("@")[0] for name in requested}
    labelled = {
        network: [name for name in names if name in requested]
        or [*filter(None, names.values())][-1:]
        for network, names in claims.items()
        if any(names.values())
    }
    for run in runs:
        if isinstance(run, Cell | ParentRun):
            for name in labelled.get((run.weights, run.network), [run.backbone]):
                shown[run.run_id, name] = run.model_copy(update={"backbone": name})
        else:
            shown[run.run_id, ""] = run
    cells = {run.run_id: run for run in runs if isinstance(run, Cell)}
    for parent in parents:
        for child in {*parent.reused.values()} & cells.keys():
            cell = cells[child]
            if (cell.weights, cell.network) not in labelled:
                changes = {"backbone": parent.backbone, "parent": parent.run_id}
                shown.setdefault((child, parent.backbone), cell.model_copy(update=changes))
    return list(shown.values())


def _with_network(run: Record, networks: Mapping[str, set[str]]) -> Record:
    """An older run, which does not say of which configuration its weights are, with the only one
    that others say. ``networks``: sha256 of weights → their networks."""
    if isinstance(run, Cell | ParentRun) and len(networks.get(run.weights, ())) == 1:
        (network,) = networks[run.weights]
        return run.model_copy(update={"network": network})
    return run


def weights_labels(runs: Sequence[Record]) -> Labels:
    """Network → the name of its column: a name of several networks with numbers gets what tells
    them apart, the settings of their recipes, else the start of the sha256.

    Numbers of different networks are never pooled. Only those of the seeds of a recipe, each of
    which has weights of its own, are one column, which is called by those of its first seed.

    Args:
        runs: cells, and their parent runs, which have how the weights were made, by the names of
            ``shown_runs``.
    """
    own = [run for run in runs if isinstance(run, Cell | ParentRun)]
    columns = {_network(run): _network(run) for run in own if run.metrics}
    settings: dict[Network, str] = {}
    recipes: dict[tuple[str, ...], dict[str, set[tuple[int, Network]]]]
    recipes = defaultdict(lambda: defaultdict(set))  # recipe → settings → seeds and networks
    for run in own:
        if isinstance(run, ParentRun) and (network := _network(run)) in columns:
            settings[network] = run.settings or settings.get(network, "")
            if run.has_weights_of_seed:
                recipe = run.backbone, run.source, run.experiment, run.architecture
                recipes[recipe][run.settings].add((run.seed, network))
    for by_settings in recipes.values():
        unknown = by_settings.pop("", set())  # of older runs
        if len(by_settings) < 2:
            by_settings[""] = unknown.union(*by_settings.values())
        for pairs in by_settings.values():
            seeds, networks = map(set, zip(*pairs, strict=True))
            if len(seeds) == len(networks) == len(pairs):
                columns |= dict.fromkeys(networks, min(pairs)[1])
    names = {}
    for first in columns.values():
        name, sha, digest = first
        words = settings.get(first, "").split()
        changed = " ".join([name, *(word for word in words if word not in name.split())])
        by_sha = f"{name}@{sha[:8]}"
        names[first] = [name, changed, by_sha, f"{by_sha}-{digest[:8]}"]
    for _ in range(3):  # the next name where two have this one
        counts = Counter(wanted for wanted, *_ in names.values())
        names = {key: each[1:] if counts[each[0]] > 1 else each for key, each in names.items()}
    return {network: names[first][0] for network, first in columns.items()}


def _network(run: Cell | ParentRun) -> Network:
    return run.backbone, run.weights, run.network


def with_label(run: R, labels: Labels) -> R:
    """A cell or parent run under the name of its column; without a number it keeps its own."""
    name = labels.get(_network(run), run.backbone)
    return run if name == run.backbone else run.model_copy(update={"backbone": name})


def column_runs(
    runs: Sequence[Record], requested: Iterable[str] = ()
) -> tuple[list[Cell], list[ParentRun], Labels]:
    """The cells and parent runs among ``runs``, under the names of their columns, and these names;
    ``requested``: as of ``shown_runs``."""
    shown = shown_runs(runs, requested)
    labels = weights_labels(shown)
    cells = [with_label(run, labels) for run in shown if isinstance(run, Cell)]
    return cells, [with_label(run, labels) for run in shown if isinstance(run, ParentRun)], labels


def select(
    runs: Sequence[Record],
    experiments: Sequence[str],
    backbones: Sequence[str] = (),
    baseline: str | None = None,
    tasks: Sequence[str] = (),
) -> Selection:
    """Choose the runs that count.

    Args:
        runs: all runs of the experiments.
        backbones: only these columns, in this order; a ``NAME`` of several means all of them,
            ``NAME@SHA`` those whose sha256 starts so. Default: all.
        baseline: what the others are compared with; default: the first existing one of clip-ft,
            clip and random, else the first backbone.
        tasks: only these.

    Raises:
        TrackingError: no finished run, a backbone, baseline or task without one, or a baseline with
            several weights.
    """
    shown = ", ".join(experiments)
    every, parents, labels = column_runs(runs, [*backbones, baseline or ""])
    task_names = {cell.task for cell in every}
    for task in tasks if task_names else ():
        if task not in task_names:
            raise TrackingError(
                f"no run of task {task!r} in experiment {shown}; {suggest(task, task_names)}"
            )
    every = [cell for cell in every if not tasks or cell.task in tasks]
    if not any(cell.metrics for cell in every):
        reasons = Counter(cell.failure for cell in every if cell.failure).most_common(1)
        why = f" ({len(every)} tasks: {reasons[0][0]})" if reasons else ""
        raise TrackingError(
            f"no finished task in experiment {shown}{why}; run `python -m benchmark run` first"
        )
    names, baseline = _backbones(every, labels, backbones, baseline)
    cells = [cell for cell in every if cell.backbone in names]
    newest: dict[tuple[str, str, str, int], Cell] = {}
    unfinished = []
    for cell in sorted(cells, key=attrgetter("started", "run_id")):
        if cell.metrics:
            newest[cell.backbone, cell.task, cell.protocol, cell.seed] = cell
        else:
            unfinished.append(cell)
    columns = _columns([*newest.values()], unfinished, task_order(parents))
    grid: dict[tuple[str, TaskColumn], list[Cell]] = defaultdict(list)
    by_protocol = {(column.task, column.protocol): column for column in columns}
    by_id = {run.run_id: run for run in runs}
    newest_parents: dict[tuple[str, int], ParentRun] = {}
    bases = {column: name for (name, *_), column in labels.items()}
    for cell in newest.values():
        run = by_id.get(cell.parent)
        if isinstance(run, ParentRun):
            name = bases[cell.backbone]
            run = run.model_copy(update={"label": "" if name == run.backbone else name})
            stored = newest_parents.setdefault((cell.backbone, cell.seed), run)
            if run.started > stored.started:
                newest_parents[cell.backbone, cell.seed] = run
    for cell in sorted(newest.values(), key=attrgetter("seed")):
        grid[cell.backbone, by_protocol[cell.task, cell.protocol]].append(cell)
    planned = {(run.backbone, task) for run in parents if run.is_finished for task in run.protocols}
    missing = {
        (name, column): _missing_reason(name, column, cells, planned)
        for name in names
        for column in columns
        if (name, column) not in grid
    }
    return Selection(
        list(experiments),
        names,
        baseline,
        columns,
        dict(grid),
        missing,
        {name: sorted({seed for own, *_, seed in newest if own == name}) for name in names},
        newest_parents,
        by_id,
    )


def _backbones(
    cells: Sequence[Cell],
    labels: Labels,
    backbones: Sequence[str],
    baseline: str | None,
) -> tuple[list[str], str]:
    """The names of the columns of backbones, and that of the baseline. The name of a training
    stands for its checkpoints."""
    finished = dict.fromkeys(cell.backbone for cell in cells if cell.metrics)
    own_names = {column: name for (name, *_), column in labels.items()}

    def find(name: str, role: str) -> list[str]:
        if name in finished:
            return [name]
        columns = dict.fromkeys(
            label
            for (own, sha, _), label in labels.items()
            if label in finished
            and (own == name or ("@" in name and f"{own}@{sha}".startswith(name)))
        )
        if not columns:  # of a training all checkpoints
            steps = (each for each in finished if (m := AT_STEP.fullmatch(each)) and m[1] == name)
            columns = dict.fromkeys(_by_training(steps))
        if not columns:
            raise TrackingError(
                f"{role} {name!r} has no finished task there; choose among {', '.join(finished)}"
            )
        return list(columns)

    chosen = [column for name in backbones for column in find(name, "backbone")]
    names = list(dict.fromkeys(chosen)) or _by_training(finished)
    preferred = (name for each in PREFERRED_BASELINES for name in names if each == own_names[name])
    bases = find(baseline, "baseline") if baseline else [next(preferred, names[0])]
    if len(bases) > 1:
        raise TrackingError(
            f"baseline {baseline!r} has several weights; choose {' or '.join(bases)}"
        )
    (base,) = bases
    if base not in names or not backbones:
        names = [base, *(name for name in names if name != base)]
    return names, base


def _by_training(names: Iterable[str]) -> list[str]:
    """Columns with the checkpoints of a training beside each other, by their steps."""
    positions: dict[str, tuple[int, int]] = {}
    trainings: dict[str, int] = {}
    for name in names:
        match = AT_STEP.fullmatch(name)
        training, step = (match[1], int(match[2])) if match else (name, 0)
        positions[name] = (trainings.setdefault(training, len(trainings)), step)
    return sorted(positions, key=positions.__getitem__)


def task_order(parents: Sequence[ParentRun]) -> list[str]:
    """Tasks in the suite's order, as parent runs record it; the one with most tasks decides."""
    ordered = sorted(parents, key=lambda run: (-len(run.main_metrics), -run.started))
    names = (name for run in ordered for name in run.main_metrics)
    return list(dict.fromkeys(name.rpartition("/")[0] for name in names))


def _columns(
    finished: Sequence[Cell], unfinished: Sequence[Cell], order: Sequence[str]
) -> list[TaskColumn]:
    """One for each task and protocol; several protocols of a task get letters, oldest first.

    A task that nobody finished is a column without numbers, under its last protocol. Tasks that are
    not in ``order`` come last.
    """
    first: dict[tuple[str, str], Cell] = {}
    for cell in sorted(finished, key=attrgetter("started")):
        first.setdefault((cell.task, cell.protocol), cell)
    by_task: dict[str, list[Cell]] = defaultdict(list)
    for (task, _), cell in first.items():
        by_task[task].append(cell)
    latest = {cell.task: [cell] for cell in unfinished if cell.task not in by_task}
    columns = []
    for task, cells in (by_task | latest).items():
        for number, cell in enumerate(cells):
            letter = _letter(number) if len(cells) > 1 else ""
            metrics = tuple(cell.declared.items())
            columns.append(TaskColumn(task, cell.kind, cell.protocol, metrics, letter))
    tasks = list(dict.fromkeys([*order, *by_task, *latest]))
    return sorted(columns, key=lambda column: tasks.index(column.task))


def _letter(number: int) -> str:
    """The name of a protocol, as spreadsheets name columns: ``A`` of 0, ``AA`` of 26."""
    further, last = divmod(number, 26)
    return (_letter(further - 1) if further else "") + chr(ord("A") + last)


def _missing_reason(
    name: str, column: TaskColumn, cells: Sequence[Cell], planned: Collection[tuple[str, str]]
) -> str:
    """Why a backbone has no number in a column.

    Args:
        planned: backbone and task, as ``task_tag`` writes it, of finished parent runs.
    """
    mine = [cell for cell in cells if cell.backbone == name and cell.task == column.task]
    unfinished = sorted((cell for cell in mine if not cell.metrics), key=lambda cell: cell.started)
    same_protocol = [cell for cell in unfinished if cell.protocol == column.protocol]
    if same_protocol:
        return same_protocol[-1].failure or "no value on this data"
    if len(unfinished) < len(mine):
        return "other protocol"
    if unfinished:
        return f"other protocol: {unfinished[-1].failure or 'no value'}"
    return "not applicable" if (name, task_tag(column.task)) in planned else "not run"
