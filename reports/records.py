"""The records of finished work: what MLflow, and a file of shared results, hold of a run.

A record writes its own tags, and is read back from tags, parameters and metrics, in both alike. Its
metrics are declared where their probe is registered and recorded with each number, so reports have
no list of metrics of their own. The names of runs' artifacts are here, too.
"""

from __future__ import annotations

import io
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
)

from cliptex_common.errors import UserError, first_line
from cliptex_common.files import content_key

# artifacts of a cell
PROTOCOL = "protocol.json"
METRICS_FILE = "metrics.json"
PER_IMAGE = "per_image.npz"
DETECTIONS = "detections.npz"
PARTS = "parts.npz"
HEAD = "head/head.safetensors"
PICTURES = "pictures"
GALLERY = f"{PICTURES}/gallery.zip"
FEATURES = f"{PICTURES}/features.npz"
# of the run of one backbone, suite and seed
PARENT = "run.json"
OPTIONS = "options.yaml"
REPORT = "report/index.html"
# of a sweep
PLOTS = "plots.json"

MOST_ARRAYS = 1000


# what reading a file raises that was damaged, by accident or on purpose
DAMAGED = (
    *(ValueError, TypeError, LookupError, AttributeError, OSError, EOFError),
    *(RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error),
)


def inflate(content: bytes, budget: int) -> dict[str, bytes]:
    """The members of a zip file, which inflate to at most ``budget`` bytes.

    Raises one of ``DAMAGED``: they are larger, or the file is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > budget:
            raise ValueError(f"it inflates to more than {budget / 1e6:.0f} MB")
        members = {}
        for info in infos:
            # only these inflate no further than they are read
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is neither stored nor deflated")
            with archive.open(info) as file:
                members[info.filename] = file.read(info.file_size)
    return members


# numpy reads an array's header with ast, which before Python 3.11.8 fails in threads
# (https://github.com/python/cpython/issues/106905)
HEADERS = threading.Lock()


def read_arrays(content: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, of them those in ``names``.

    Raises one of ``DAMAGED``: it is damaged, holds Python objects, or so many arrays that numpy
    takes minutes.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        stored = {member.removesuffix(".npy"): member for member in archive.namelist()}
        if len(stored) > MOST_ARRAYS:
            raise ValueError(f"it has {len(stored)} arrays")
        chosen = [name for name in stored if names is None or name in names]
        members = [archive.read(stored[name]) for name in chosen]
    with HEADERS:
        arrays = [np.lib.format.read_array(io.BytesIO(member)) for member in members]
    return dict(zip(chosen, arrays, strict=True))


Columns = Mapping[str, np.ndarray]
TYPES = {
    "image_id": np.int64,
    "category_id": np.int32,
    "score": np.float32,
    "class": np.int16,
    "bbox_hits": np.uint16,
    "bbox_ignored": np.uint16,
    "segm_hits": np.uint16,
    "segm_ignored": np.uint16,
}


def to_columns(detections: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """A COCO result list as arrays over its N detections, which load a hundred times as fast.

    Args:
        detections: with ``image_id``, ``category_id``, ``bbox``, ``score``, perhaps
            ``segmentation`` as a compressed run-length code, and their matches (see
            ``probes.detection.coco``). A missing field is 0.

    Returns:
        Each field; ``bbox`` (N, 4) float32; of masks ``mask_size`` (N, 2), the bytes of all codes,
        ``mask_codes``, and where each ends, ``mask_ends`` (N,).
    """
    columns = {
        name: np.array([detection.get(name, 0) for detection in detections], kind)
        for name, kind in TYPES.items()
        if any(name in detection for detection in detections)
        or not (detections or name.startswith("segm"))
    }
    boxes = [detection.get("bbox", (0, 0, 0, 0)) for detection in detections]
    columns["bbox"] = np.array(boxes, np.float32).reshape(-1, 4)
    masks = [detection["segmentation"] for detection in detections if "segmentation" in detection]
    if masks and len(masks) == len(detections):
        codes = [mask["counts"].encode() for mask in masks]
        columns["mask_size"] = np.array([mask["size"] for mask in masks], np.int32)
        columns["mask_codes"] = np.frombuffer(b"".join(codes), np.uint8)
        columns["mask_ends"] = np.cumsum([len(code) for code in codes])
    return columns


class TrackingError(UserError):
    """The MLflow store cannot be used, or holds something unreadable."""


def damaged(artifact: str, run_id: str, run_name: str, error: Exception) -> TrackingError:
    """The error for an artifact that exists but cannot be read."""
    return TrackingError(
        f"the artifact {artifact} of run {run_id} ({run_name}) is damaged "
        f"({type(error).__name__}: {first_line(error)}); "
        "run that task again with --force, or delete the run"
    )


@dataclass(frozen=True)
class Metric:
    """A metric of a probe; the default is a score in percent.

    Attributes:
        direction: +1 where higher is better, else -1.
        unit: as written after the number; '' for a bare number.
        low, high: bounds of its range, None where it is open.
        label: name in reports; '' for the metric's own name.
        shown: whether tables show it beside the main metric, which they always show.
    """

    direction: int = 1
    unit: str = "%"
    low: float | None = 0.0
    high: float | None = 100.0
    label: str = ""
    shown: bool = False

    @property
    def width(self) -> float:
        """Of its range; 0 where that is open."""
        return 0.0 if self.low is None or self.high is None else self.high - self.low

    @property
    def floor(self) -> float:
        """The smallest baseline value that a relative change is computed from.

        One point of a score, next to nothing of other metrics.
        """
        return 1.0 if self.unit == "%" else 1e-6


# (task, kind of its dataset, the dataset's main metric or '') → declarations of the task's metrics,
# the main one first; empty if the probe is not registered for this dataset. Of results that others
# share, metrics are what the probe says, never what the file says. ``probes.registry``,
# which reports do not import, adds its own.
DECLARERS: list[Callable[[str, str, str], dict[str, Metric]]] = []

# what tasks ask of features, after Chen, Marks and Cheng (arXiv 2411.17474): edges and corners;
# geometry, grouping and likeness; categories
LEVELS = ("low", "mid", "high")
KIND_LEVELS: dict[str, str] = {}  # kind of task → its level; high where probes name no other


def variant_parts(task: str) -> list[str]:
    """What makes a variant of a task: ``voc/linear:0.1:tune=lora:16`` → ``0.1``,
    ``tune=lora:16``."""
    return re.findall(r":((?:tune=(?:blocks|lora):)?[^:]*)", task)


def metric_key(name: str) -> str:
    """A name of a metric or tag as MLflow accepts it: without ``@``, ``+``, ``=`` and ``%``.

    ``i2t_R@1`` → ``i2t_R_at_1``, ``lr_1e+06`` → ``lr_1e06``, ``voc/knn:layers=50%`` →
    ``voc/knn:layers-50pct``.
    """
    for character, text in {"@": "_at_", "+": "", "=": "-", "%": "pct"}.items():
        name = name.replace(character, text)
    return name


def metric_name(key: str, declared: Iterable[str] = ()) -> str:
    """The inverse of ``metric_key``, for ``declared`` names and recalls (``R@1``)."""
    for name in declared:
        if metric_key(name) == key:
            return name
    return re.sub(r"(?<=R)_at_(?=\d+$)", "@", key)


T = TypeVar("T")
COST = "cost/"  # of metrics that say what a run took
HELD_OUT = "select/"  # of scores on held-out training images, by which a probe chose a setting
NOTE_TAG = "mlflow.note.content"  # the description in MLflow's UI
TRAIN_LOSS = "train/loss"
BEYOND_GRID = "a better one may lie beyond it"  # in the note of a setting at its grid's edge
# before the name of a metric: what needs no features (the best constant, chance), and what the best
# features could reach (a grid of patches); logged as ``bound/floor_mIoU``
FLOOR, CEILING, BOUND = "floor_", "ceiling_", "bound/"
LABEL_FREE = "label_free/"  # of diagnostics of features without labels, which nothing ranks
SAMPLED = ("shots", "train_share")  # parameters that learning curves are drawn over
PROTOCOL_PREFIX, REUSED_PREFIX = "protocol.", "cached."  # of a parent's tags, one for each task
OWN_PREFIX = "tag."  # of a parent's tags that the user gave it
# field → its tag in MLflow, where they differ
TAGS = {
    "weights": "weights.sha256",
    "network": "weights.network",
    "settings": "weights.settings",
    "weights_source": "weights.source",
    "licence": "weights.licence",
    "device": "device.kind",
    "key": "cell",
    "head": "head.sha256",
    "run_key": "run.key",
    "fingerprint": "data.fingerprint",
    "partial": "data.partial",
    "image_set": "data.images",
    "declared": "metrics.declared",
    "commit": "git.commit",
    "model": "model.id",
    "train_run": "train.run",
    "main_metrics": "metrics.main",
    "average": "average.title",
    "groups": "average.groups",
    "group_metric": "average.metric",
    # of other runs than cells and parents
    "train_key": "train.key",
    "watch_key": "watch.key",
    "weights_file": "weights.file",
    "labels_file": "labels.file",
}
METRICS: TypeAdapter[dict[str, Metric]] = TypeAdapter(dict[str, Metric])


def _read_metrics(value: Any) -> Any:
    return METRICS.validate_json(value) if isinstance(value, str) else value


def _dump_metrics(metrics: dict[str, Metric]) -> str:
    """As JSON, of each metric what differs from the default."""
    return METRICS.dump_json(metrics, exclude_defaults=True).decode()


def _split_words(value: Any) -> Any:
    return list(filter(None, value.split(","))) if isinstance(value, str) else value


Declared = Annotated[
    dict[str, Metric], BeforeValidator(_read_metrics), PlainSerializer(_dump_metrics)
]
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words), PlainSerializer(",".join)]
Flag = Annotated[bool, PlainSerializer(lambda flag: str(flag).lower())]


class Record(BaseModel):
    """A run: a training, a trial of a sweep …; ``Cell`` and ``ParentRun`` add what their tags hold.

    Attributes:
        run_id, name: of the run.
        parent: id of the run that it nests under; '' for none.
        status: ``done``, ``cached`` (a cell that was finished before), ``failed``, ``not
            applicable``, ``interrupted``, ``still running`` or ``not started``.
        reason: why it has no result.
        experiment, experiment_id, artifacts: where it is in MLflow, and the URI of its files.
        started, ended: in milliseconds since 1970; 0 if unknown.
        source: who shared it; '' for a run of the store.
        study: the sweep that it is part of.
        metrics: name as the field writes it (``i2t_R@1``) → value.
        costs: what it took: ``seconds``, ``peak_memory_mb`` …
        params: of a cell those of ``SAMPLED``, of a parent run none.
        tags: of a run that is neither a cell nor a parent run.
    """

    # a field is read from, and written to, its tag by the name that ``TAGS`` has for it
    model_config = ConfigDict(
        frozen=True, populate_by_name=True, alias_generator=lambda name: TAGS.get(name, name)
    )

    run_id: str = ""
    name: str = ""
    parent: str = ""
    status: str = "done"
    reason: str = ""
    experiment: str = ""
    experiment_id: str = ""
    artifacts: str = ""
    started: int = 0
    ended: int = 0
    source: str = ""
    study: str = ""
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    costs: dict[str, float] = {}
    tags: dict[str, str] = {}

    @property
    def is_finished(self) -> bool:
        return self.status in ("done", "cached")

    @property
    def seconds(self) -> float:
        """How long it took; 0 if that is unknown, or a cell is cached."""
        return self.costs.get("seconds", 0.0)

    @property
    def failure(self) -> str:
        """Why it has no result, in one line; '' if it is finished."""
        words = [] if self.is_finished else [self.status, self.reason]
        return ": ".join(dict.fromkeys(filter(None, words)))

    def all_metrics(self) -> dict[str, float]:
        """Metrics and costs, under their names in MLflow."""
        return {**self.metrics, **cost_metrics(self.costs)}

    def to_tags(self) -> dict[str, str]:
        """Its tags in MLflow, without empty ones."""
        # the fields that every record has are MLflow's own: ids, status, metrics, params
        fields = self.model_dump(by_alias=True, exclude=set(Record.model_fields))
        return {tag: str(value) for tag, value in fields.items() if value != ""}


class Cell(Record):
    """The numbers of one backbone, task and seed.

    Attributes:
        weights: sha256.
        network: hash of the weights and configuration of the backbone (``network_key``).
        probe: name of the probe; kind: of the dataset (``segmentation``, ``detection`` …).
        protocol: hash of the conditions that its numbers depend on (``PROTOCOL``).
        key: identity of the cell (``cell_key``).
        head: sha256 of the file of its head, or of that of another task that it uses; '' for none.
        fingerprint, partial: of the data.
        image_set: name of the images that its dataset has all or some of, as other datasets have;
            '' for a dataset with images of its own. Reports draw them alike in all of these.
        preset, differs: the published protocol that its settings follow, and how they differ.
        changed: what the user changed of the suite's settings and images, in words.
        metrics, declared: name → value, and the metric's declaration; the main one first. Only
            finished cells have values.
        commit: of the code.
        held_out: ``METRIC/SETTING`` → score on held-out training images.
        label_free: diagnostic of the training features (``probes.pictures``) → value.
        train_loss: the last one of its head; None where none was logged here.
        at_edge: whether the setting that was chosen for its head is the first or last of a grid.
        bounds: of the main metric, ``FLOOR`` and ``CEILING`` → value, where the task has them.
        notes: what the user should know of it, one line each; empty if it is read back.
    """

    backbone: str
    task: str
    seed: int
    weights: str = ""
    network: str = ""
    dataset: str = ""
    kind: str = ""
    probe: str = ""
    suite: str = ""
    device: str = ""
    threads: str = ""
    protocol: str = ""
    key: str = ""
    head: str = ""
    fingerprint: str = ""
    partial: Flag = False
    image_set: str = ""
    preset: str = ""
    differs: str = ""
    changed: str = ""
    declared: Declared = {}
    commit: str = ""
    held_out: Annotated[dict[str, float], Field(exclude=True)] = {}
    label_free: Annotated[dict[str, float], Field(exclude=True)] = {}
    train_loss: Annotated[float | None, Field(exclude=True)] = None
    at_edge: Annotated[bool, Field(exclude=True)] = False
    bounds: Annotated[dict[str, float], Field(exclude=True)] = {}
    notes: Annotated[tuple[str, ...], Field(exclude=True)] = ()

    @property
    def label(self) -> str:
        return f"{self.backbone} · {self.task} · seed {self.seed}"

    @property
    def main(self) -> str:
        """Name of its main metric."""
        return next(iter(self.declared), "")

    @property
    def shortened(self) -> str:
        """Why its numbers are not those of the complete benchmark; '' if they are."""
        return self.changed or "on a part of the data" * self.partial


def shortened_notes(cells: Iterable[Cell]) -> list[str]:
    """A sentence for all tasks of which the user changed the same."""
    tasks: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.shortened:
            tasks.setdefault(cell.shortened, {})[cell.task] = None
    return [
        f"Not numbers of the complete benchmark: {', '.join(names)} ({text})."
        for text, names in tasks.items()
    ]


class ParentRun(Record):
    """The run of one backbone, suite and seed, which the runs of its cells nest under.

    Attributes:
        label: the name of its column, if the user gave it one; '' for that of the backbone. It is
            part of no identity and may change.
        weights, weights_source, licence: the sha256 of its weights, where they are from, and how
            they may be used.
        network: as of ``Cell``; settings: those of the recipe that trained the weights, where they
            are not its defaults (``λ_seg=0.3 epochs=2``).
        run_key: a run with the same key is resumed.
        model: id of the LoggedModel; train_run: of the run that trained the weights.
        experts: of CLIPTeX and its ablations; empty for other backbones.
        main_metrics: ``TASK/METRIC`` of its tasks, in the suite's order, as many as a tag holds.
        average: title of the suite's average, if it has one and there is a number for each task.
        groups: ``GROUP/DATASET`` of an average by groups, of ``group_metric``, which each probe and
            tier with a number for each dataset has; empty for one average of all tasks.
        protocols: task → hash of its conditions; reused: task → id of a cell's run under another
            parent. Of the task as ``task_tag`` writes it.
        own_tags: those that the user gave it.
    """

    backbone: str
    seed: int
    run_key: str
    label: str = ""
    architecture: str = ""
    suite: str = ""
    weights: str = ""
    network: str = ""
    settings: str = ""
    weights_source: str = ""
    licence: str = ""
    model: str = ""
    train_run: str = ""
    experts: Words = ()
    main_metrics: Words = ()
    average: str = ""
    groups: Words = ()
    group_metric: str = ""
    commit: str = ""
    protocols: Annotated[dict[str, str], Field(exclude=True)] = {}
    reused: Annotated[dict[str, str], Field(exclude=True)] = {}
    own_tags: Annotated[dict[str, str], Field(exclude=True)] = {}

    @property
    def column(self) -> str:
        """What its column is called, unless another network has that name."""
        return self.label or self.backbone

    @property
    def has_weights_of_seed(self) -> bool:
        """Whether its weights follow from its seed: those of a training recipe, or random ones."""
        is_trained = bool(self.train_run) or "train_seconds" in self.costs
        return is_trained or self.weights_source == f"random(seed={self.seed})"

    def naming_tags(self) -> dict[str, str]:
        """Those of its tags that say its column and network, and the user's own; a finished run may
        get others."""
        own_tags = {f"{OWN_PREFIX}{name}": value for name, value in self.own_tags.items()}
        network = {TAGS["network"]: self.network, TAGS["settings"]: self.settings}
        return {"label": self.label, **network, **own_tags}

    def to_tags(self) -> dict[str, str]:
        """Its tags in MLflow, without empty ones."""
        protocols = {f"{PROTOCOL_PREFIX}{task}": value for task, value in self.protocols.items()}
        reused = {f"{REUSED_PREFIX}{task}": run_id for task, run_id in self.reused.items()}
        own = {tag: text for tag, text in self.naming_tags().items() if text}
        return super().to_tags() | protocols | reused | own


def cell_key(
    identity: Mapping[str, Any], conditions: Mapping[str, Any], seed: int, head: str = ""
) -> str:
    """Identity of a cell: backbone weights and layers, conditions of the task, seed, and the sha256
    of the head of another task, where the conditions name one that it uses."""
    used = {"head": head} if "head" in conditions else {}
    return content_key({"backbone": identity, "protocol": conditions, "seed": seed, **used})


def network_key(identity: Mapping[str, Any]) -> str:
    """Hash of a network, of ``Backbone.identity``: of its weights and its configuration, whatever
    versions of libraries compute it."""
    names = ("architecture", "model_config", "sha256", "data")
    return content_key({name: identity.get(name) for name in names})


def cost_metrics(costs: Mapping[str, float]) -> dict[str, float]:
    """Costs under their names in MLflow."""
    return {f"{COST}{name}": value for name, value in costs.items()}


def task_tag(task: str) -> str:
    """A task as part of a tag's name."""
    return metric_key(task.replace("/", "."))


def read_record(
    tags: Mapping[str, str], params: Mapping[str, str], metrics: Mapping[str, float], **fields: Any
) -> Record:
    """The record of a run: a ``Cell`` if it nests under another and has a task and a protocol, a
    ``ParentRun`` if it has a key, else a plain ``Record``.

    Args:
        fields: other fields of ``Record``.

    Raises:
        pydantic.ValidationError: a tag is not of the type of its field.
    """
    costs = _with_prefix(metrics, COST)
    metrics = {name: value for name, value in metrics.items() if not name.startswith(COST)}
    values = {**tags, "metrics": metrics, "costs": costs, **fields}
    if fields.get("parent") and tags.get("task") and tags.get("protocol"):
        held_out, label_free = _with_prefix(metrics, HELD_OUT), _with_prefix(metrics, LABEL_FREE)
        loss = metrics.get(TRAIN_LOSS)
        cell = Cell(**values, held_out=held_out, label_free=label_free, train_loss=loss)
        declared = cell.declared if cell.is_finished else ()
        own = {
            "at_edge": BEYOND_GRID in tags.get(NOTE_TAG, ""),
            "metrics": {name: metrics[name] for name in declared if name in metrics},
            "params": {name: params[name] for name in SAMPLED if name in params},
            "bounds": {
                name: metrics[key]
                for name in (FLOOR, CEILING)
                if (key := f"{BOUND}{name}{cell.main}") in metrics
            },
        }
        return cell.model_copy(update=own)
    if TAGS["run_key"] in tags:
        return ParentRun(
            **values,
            protocols=_with_prefix(tags, PROTOCOL_PREFIX),
            reused=_with_prefix(tags, REUSED_PREFIX),
            own_tags=_with_prefix(tags, OWN_PREFIX),
        )
    return Record(**values, params=dict(params), tags=dict(tags))


def _with_prefix(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names begin so, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
