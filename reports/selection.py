"""Which runs count: of one backbone, task, protocol and seed the newest finished one; what is
missing, with its reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from common.errors import nearest
from reports.errors import TrackingError
from reports.metrics import TAG, Metric
from reports.mlflow.query import Scored, Store, StoredRun, scored

PREFERRED_BASELINES = ("clip-ft", "clip", "random")
KINDS = (
    "segmentation",
    "detection",
    "depth",
    "normals",
    "classification",
    "image-text",
    "association",
    "correspondence",
)
PROBES = (
    *(
        "linear",
        "deeplabv3",
        "pspnet",
        "dpt",
        "dpt-probe3d",
        "patch-knn",
        "logreg",
        "in-context",
        "open-vocabulary",
    ),
    *("ssd", "mask-rcnn", "attentive", "knn", "few-shot", "zero-shot", "retrieval"),
)
DATASETS = (
    "voc",
    "ade20k",
    "coco",
    "nyu-depth",
    "nyu-normal",
    "imagenet",
    "places365",
    "flickr30k",
)  # the paper's order


@dataclass(frozen=True)
class TaskProtocol:
    """A task under one protocol: numbers in one column can be compared.

    Attributes:
        metrics: by name, the main one first.
        letter: told apart by it where a task has several protocols (``A``, ``B`` …), else empty.
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
        """The task without what makes it a variant: ``voc/linear`` of ``voc/linear:0.1``. In means
        it counts once."""
        return self.task.partition(":")[0]

    @property
    def main(self) -> str:
        """Name of the main metric."""
        return self.metrics[0][0] if self.metrics else ""

    def sign(self, metric: str) -> int:
        """+1 where higher is better, else -1."""
        return self.metric(metric).direction

    def metric(self, name: str) -> Metric:
        """What is declared of a metric."""
        return dict(self.metrics)[name]


@dataclass
class Selection:
    """What a report is about.

    Attributes:
        cells: (backbone, column) → the finished cells that count, by seed; none where there is
            none.
        missing: (backbone, column) → why there is no number.
        seeds: backbone → its seeds.
        parents: (backbone, seed) → the newest parent run.
        notes: what was left out and why, one line each.
    """

    experiments: list[str]
    backbones: list[str]
    baseline: str
    columns: list[TaskProtocol]
    cells: dict[tuple[str, TaskProtocol], list[Scored]]
    missing: dict[tuple[str, TaskProtocol], str]
    seeds: dict[str, list[int]]
    parents: dict[tuple[str, int], StoredRun]
    runs: dict[str, StoredRun]
    notes: list[str] = field(default_factory=list)


def default_experiments(store: Store) -> list[str]:
    """``mini`` when it has a finished task, else the experiment whose task finished last.

    Raises:
        TrackingError: no task was ever finished in this store.
    """
    known = store.experiments()
    wanted, newest = (
        "attributes.status = 'FINISHED' and tags.protocol != ''",
        ["attributes.start_time DESC"],
    )
    for identities in ([known["mini"]] if "mini" in known else [], list(known.values())):
        page = (
            store.client.search_runs(identities, wanted, max_results=1, order_by=newest)
            if identities
            else []
        )
        if len(page):
            return [
                name for name, identity in known.items() if identity == page[0].info.experiment_id
            ]
    raise TrackingError(
        f"no finished run in the MLflow store at {store.uri}; run `python -m benchmark run` first,"
        " or give --tracking-uri"
    )


def select(
    runs: Sequence[StoredRun],
    experiments: Sequence[str],
    backbones: Sequence[str] = (),
    baseline: str | None = None,
    tasks: Sequence[str] = (),
) -> Selection:
    """Choose what counts among all runs of the experiments.

    Args:
        backbones: only these, in this order; ``NAME@SHA`` means the weights whose sha256 starts so.
            Default: all.
        baseline: what the others are compared with; default: clip-ft, clip, random or the first
            that is there.
        tasks: only these.

    Raises:
        TrackingError: no finished run, or a backbone or baseline that has none.
    """
    shown = ", ".join(experiments)
    every = scored(runs)
    known = {cell.task for cell in every}
    for task in tasks if known else ():
        if task not in known:
            raise TrackingError(
                f"no run of task {task!r} in experiment {shown}; {nearest(task, known)}"
            )
    every = [cell for cell in every if not tasks or cell.task in tasks]
    if not any(cell.metrics for cell in every):
        reasons = Counter(cell.reason or "without numbers" for cell in every)
        told = (
            f" ({sum(reasons.values())} tasks: {reasons.most_common(1)[0][0]})" if reasons else ""
        )
        raise TrackingError(
            f"no finished task in experiment {shown}{told}; run `python -m benchmark run` first"
        )
    names = _chosen(every, backbones, baseline)
    cells = [cell for name in names for cell in _of(every, name)]
    chosen_baseline = baseline or next((b for b in PREFERRED_BASELINES if b in names), names[0])
    if not backbones and chosen_baseline in names:
        names = [chosen_baseline, *(name for name in names if name != chosen_baseline)]

    kept, notes = _newest(cells, runs)
    columns = _columns(kept, [cell for cell in cells if not cell.metrics])
    grid: dict[tuple[str, TaskProtocol], list[Scored]] = defaultdict(list)
    place = {(column.task, column.protocol): column for column in columns}
    for cell in kept:
        grid[cell.backbone, place[cell.task, cell.protocol]].append(cell)
    by_id = {run.id: run for run in runs}
    parents: dict[tuple[str, int], StoredRun] = {}
    for cell in kept:
        if cell.parent in by_id:
            key = (cell.backbone, cell.seed)
            old = parents.get(key)
            if old is None or by_id[cell.parent].started > old.started:
                parents[key] = by_id[cell.parent]
    seeds = {name: sorted({cell.seed for cell in kept if cell.backbone == name}) for name in names}
    planned = _planned(runs, names)
    missing = {
        (name, column): _why(name, column, cells, kept, planned)
        for name in names
        for column in columns
        if (name, column) not in grid
    }
    return Selection(
        list(experiments),
        names,
        chosen_baseline,
        columns,
        {key: sorted(found, key=lambda cell: cell.seed) for key, found in grid.items()},
        missing,
        seeds,
        parents,
        by_id,
        notes,
    )


def _chosen(cells: Sequence[Scored], backbones: Sequence[str], baseline: str | None) -> list[str]:
    have = list(dict.fromkeys(cell.backbone for cell in cells if cell.metrics))
    wanted = list(dict.fromkeys(backbones)) or list(have)
    if baseline and baseline not in wanted:
        wanted.insert(0, baseline)
    for name in wanted:
        if not any(cell.metrics for cell in _of(cells, name)):
            what = "baseline" if name == baseline else "backbone"
            raise TrackingError(
                f"{what} {name!r} has no finished task there; these have: {', '.join(have)}"
            )
    return wanted


def _of(cells: Sequence[Scored], name: str) -> list[Scored]:
    """The cells of a backbone, or of ``NAME@SHA``, under that name."""
    backbone, at, sha = name.rpartition("@")
    if not at:
        return [cell for cell in cells if cell.backbone == name]
    return [
        replace(cell, backbone=name)
        for cell in cells
        if cell.backbone == backbone and cell.weights.startswith(sha)
    ]


def _newest(cells: Sequence[Scored], runs: Sequence[StoredRun]) -> tuple[list[Scored], list[str]]:
    """Of equal cells the newest; of a backbone's seed only the weights that were run last: no row
    mixes two sets of weights.

    A run that finds its cells finished makes none anew, so the last run of weights is that of their
    parent.
    """
    finished = sorted(
        (cell for cell in cells if cell.metrics), key=lambda cell: (cell.run.started, cell.run.id)
    )
    there = {(cell.backbone, str(cell.seed), cell.weights) for cell in finished}
    used = [(cell.run.started, cell.backbone, str(cell.seed), cell.weights) for cell in finished]
    for run in runs:
        who = tuple(run.tags.get(tag, "") for tag in ("backbone", "seed", "weights.sha256"))
        if run.is_parent and who in there:
            used.append((run.started, *who))
    weights = {(backbone, int(seed)): sha for _, backbone, seed, sha in sorted(used)}
    kept: dict[tuple, Scored] = {}
    older, replaced = Counter[str](), 0
    for cell in finished:
        if cell.weights != weights[cell.backbone, cell.seed]:
            older[cell.backbone] += 1
            continue
        key = (cell.backbone, cell.task, cell.protocol, cell.seed)
        replaced += key in kept
        kept[key] = cell
    notes = []
    if replaced:
        notes.append(f"{replaced} finished runs were run again later; the newest count")
    for name, count in older.items():
        notes.append(
            f"{count} runs of {name} with older weights are left out (name them with --backbone"
            f" {name}@SHA to see them)"
        )
    unfinished = Counter(cell.status for cell in cells if not cell.metrics)
    words = {
        "FAILED": "failed",
        "KILLED": "ended by interruption",
        "RUNNING": "did not end yet",
        "FINISHED": "gave no number",
    }
    notes += [
        f"{count} task run{'s' if count > 1 else ''} {words.get(status, status)}"
        for status, count in sorted(unfinished.items())
    ]
    return list(kept.values()), notes


def _columns(cells: Sequence[Scored], broken: Sequence[Scored]) -> list[TaskProtocol]:
    """One for each task and protocol, in the paper's order; several protocols of a task get
    letters, oldest first.

    A task that nobody finished is a column without numbers, under the protocol that was tried last.
    """
    first: dict[tuple[str, str], Scored] = {}
    for cell in sorted(cells, key=lambda cell: cell.run.started):
        known = first.get((cell.task, cell.protocol))
        if known is None or _declares(cell) > _declares(known):
            first[cell.task, cell.protocol] = cell
    latest = {cell.task: cell for cell in sorted(broken, key=lambda cell: cell.run.started)}
    for task in latest.keys() - {task for task, _ in first}:
        first[task, latest[task].protocol] = latest[task]
    protocols: dict[str, list[str]] = defaultdict(list)
    for task, protocol in first:
        protocols[task].append(protocol)
    columns = []
    for (task, protocol), cell in first.items():
        several = protocols[task]
        letter = _letter(several.index(protocol)) if len(several) > 1 else ""
        columns.append(
            TaskProtocol(task, cell.kind, protocol, tuple(cell.declared.items()), letter)
        )
    return sorted(columns, key=_paper_order)


def _declares(cell: Scored) -> tuple[bool, int]:
    """How much a run says of its metrics."""
    return TAG in cell.run.tags, len(cell.declared)


def _letter(place: int) -> str:
    """0 → A, 25 → Z, 26 → AA …"""
    text = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        text = chr(65 + rest) + text
    return text


def _paper_order(column: TaskProtocol) -> tuple:
    dataset, _, probe = column.base.partition("/")
    try:
        variant = float(column.task.partition(":")[2])
    except ValueError:
        variant = float("inf")

    def place(name: str, order: Sequence[str]) -> int:
        return order.index(name) if name in order else len(order)

    zero_shot = probe == "zero-shot"
    return (
        place(column.kind, KINDS),
        zero_shot,
        place(dataset, DATASETS),
        dataset,
        place(probe, PROBES),
        probe,
        variant,
        len(column.letter),
        column.letter,
    )


def _planned(runs: Sequence[StoredRun], names: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Backbone → task → whether a parent run that planned it ended well (then a missing child was
    not applicable)."""
    planned: dict[str, dict[str, bool]] = defaultdict(dict)
    for run in runs:
        if not run.is_parent or run.status != "FINISHED":
            continue
        for tag in run.tags:
            if tag.startswith("protocol."):
                planned[run.tags.get("backbone", "")][tag.removeprefix("protocol.")] = True
    return planned


def _why(
    name: str,
    column: TaskProtocol,
    cells: Sequence[Scored],
    kept: Sequence[Scored],
    planned: dict[str, dict[str, bool]],
) -> str:
    mine = [cell for cell in cells if cell.backbone == name and cell.task == column.task]
    broken = [cell for cell in mine if cell.protocol == column.protocol and not cell.metrics]
    if broken:
        return max(broken, key=lambda cell: cell.run.started).reason or "no value on this data"
    if any(cell.protocol == column.protocol for cell in mine):
        return "only with older weights"
    if any(cell.task == column.task for cell in kept if cell.backbone == name):
        return "other protocol"
    if tried := [cell for cell in mine if not cell.metrics]:
        return (
            f"other protocol: {max(tried, key=lambda cell: cell.run.started).reason or 'no value'}"
        )
    if planned[name.rpartition("@")[0] or name].get(column.task.replace("/", ".")):
        return "not applicable"
    return "not run"
