"""The contract of a probe: what it gets for one task, and what it returns; the setting that says
which layer of a backbone it reads; and the file that a training resumes from.

Importing this does not import torch.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import numpy as np
from pydantic import BeforeValidator

from cliptex_common.errors import UserError
from cliptex_common.files import atomic_write
from cliptex_common.progress import Progress, RunLog, Silent
from cliptex_common.settings import Axis, axes_of, field_names
from probes.datasets.base import PreparedDataset, Split
from probes.upsamplers.names import upsampler_misfit
from reports.records import Metric

if TYPE_CHECKING:
    import torch

    from backbones.backbone import Backbone

Layer = int | str  # a number from 1 on, or a share of the depth such as ``50%``


def _read_layer(value: Any, names: Sequence[str]) -> Layer:
    text = str(value)
    if text in names:
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text.endswith("%") and text[:-1].isdecimal() and 0 < int(text[:-1]) <= 100:
        return text
    raise ValueError(
        f"must be {', '.join(names)}, the number of a layer from 1 on, or a share of the depth such"
        " as 50%"
    )


def _layer_or(*names: str) -> Any:
    """The type of a setting that is one layer, or one of some words."""
    return Annotated[Layer, BeforeValidator(partial(_read_layer, names=names)), Axis("layers")]


# ``all`` or the ``last`` of the backbone's own maps, or one layer
DenseLayers: Any = _layer_or("all", "last")
PatchLayers: Any = _layer_or("auto", "last", "all")
KeypointLayers: Any = _layer_or("last")
# of a whole image: an embedding, or the class token of one layer
ImageFeatures: Any = _layer_or("projected", "pre_projection")
LikenessFeatures: Any = _layer_or("projected", "pre_projection", "class", "patches", "both")


# From a setting to a map: ``requested_layer`` is what the setting names, ``layer_number`` its
# number from 1, ``requested_map`` the index, from 0, of its map, and ``map_index`` that or the last
# one.
def requested_layer(settings: Any) -> Layer | None:
    """The layer that a task's settings name by number or share; None if they name none."""
    field = axes_of(type(settings)).get("layers")  # type: ignore[arg-type]
    value = getattr(settings, field) if field else None
    return value if isinstance(value, int) or str(value).endswith("%") else None


def layer_number(layer: Layer, depth: int, backbone: str) -> int:
    """The number, from 1, of a layer in a backbone of this depth. Shares are rounded down.

    Raises:
        UserError: there is no such layer, or the backbone gives its own maps alone.
    """
    if not depth:
        raise UserError(
            f"layers={layer}: backbone {backbone!r} has only its own feature maps; set layers=last"
        )
    number = layer if isinstance(layer, int) else max(depth * int(layer[:-1]) // 100, 1)
    if number > depth:
        raise UserError(
            f"layers={layer}: backbone {backbone!r} has {depth} layers; choose 1 to {depth}"
        )
    return number


def requested_map(settings: Any, backbone: Backbone) -> int | None:
    """The index of the map that a task reads, of those of a backbone of ``at_layers``, which reads
    in one pass the layers of all tasks; None if it names no layer."""
    layer = requested_layer(settings)
    if layer is None:
        return None
    number = layer_number(layer, backbone.depth, backbone.name)
    return backbone.data.layers.index(number - 1)  # these count from 0


def map_index(settings: Any, backbone: Backbone) -> int:
    """The index of the map that a task reads where it reads one: ``requested_map``, or the last."""
    index = requested_map(settings, backbone)
    return -1 if index is None else index


def check_blocks(tune: str, depth: int, backbone: str) -> None:
    """Raise ``UserError`` where a tier trains more blocks than are read.

    Args:
        depth: number of the last layer that is read; 0 if it is not known before the backbone is
            built. (Of a CNN the first may be no stage of its own: ``Tuning`` counts them.)
    """
    tier, _, number = tune.partition(":")
    if tier == "blocks" and 0 < depth < int(number):
        raise UserError(
            f"tune={tune}: backbone {backbone!r} has {depth} blocks; ask for fewer, or tune=all"
        )


T = TypeVar("T")
END = object()
Reuse = Literal["", "head", "train"]


@dataclass
class Cost:
    """What a task costs: seconds and images by phase – ``encode``, ``text``, ``train``, ``eval``,
    ``pictures`` and ``label_free`` – and bytes of features that were stored.

    ``images["encode"]`` counts what went through the backbone, each view of an image once.
    ``trained_parameters`` is the number of weights of the backbone that were trained, and
    ``processor_seconds`` what the training took of processors (``cliptex_common.device``).
    """

    seconds: dict[str, float] = field(default_factory=partial(defaultdict, float))
    images: dict[str, float] = field(default_factory=partial(defaultdict, float))
    disk_bytes: float = 0.0
    trained_parameters: int = 0
    processor_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a phase, less those of phases inside the block."""
        before, started = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - started - inner

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield ``items``; the seconds spent producing them count as a phase."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                item = next(iterator, END)
            if item is END:
                return
            yield item  # type: ignore[misc]

    def add(self, cost: Cost, share: float = 1.0) -> None:
        """Add a share of another cost, such as that of a pass made for several tasks."""
        for name, seconds in cost.seconds.items():
            self.seconds[name] += share * seconds
        for name, images in cost.images.items():
            self.images[name] += share * images
        self.disk_bytes += share * cost.disk_bytes
        self.processor_seconds += share * cost.processor_seconds
        self.notes += [note for note in cost.notes if note not in self.notes]

    def metrics(self) -> dict[str, float]:
        """``disk_bytes``, ``PHASE_seconds``, and ``PHASE_images_per_second`` of phases that count
        images.

        Without ``encode`` where every feature came from the cache.
        """
        metrics = {"disk_bytes": self.disk_bytes}
        if self.trained_parameters:
            metrics["trained_parameters"] = float(self.trained_parameters)
            metrics["train_processor_seconds"] = self.processor_seconds
        for name, seconds in self.seconds.items():
            images = self.images.get(name)
            if images or name != "encode":
                metrics[f"{name}_seconds"] = seconds
            if images and seconds:
                metrics[f"{name}_images_per_second"] = images / seconds
        return metrics


@dataclass(frozen=True)
class EncodeContext:
    """What encoding images takes, besides a backbone.

    Attributes:
        device: the device that computes.
        num_workers: loading processes (0 = in this one); by itself never changes a result.
        progress: of the progress bar.
        cost: counts the images that are encoded, and the seconds.
    """

    device: torch.device
    num_workers: int = 2
    progress: Progress = field(default_factory=Silent)
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Context(EncodeContext):
    """Everything that a probe needs for one task.

    Attributes:
        backbone: frozen, on ``device``; for probes of this package perhaps a ``DeferredBackbone``.
        backbone_config: keyword arguments of ``backbones.create`` that create it again, in another
            process or from a config.
        data: the checked dataset.
        settings: an instance of the probe's ``settings_type``.
        seed: of everything random.
        work_dir: scratch folder of the cell until it is finished, with the state to resume from.
        log: of curves.
        cost: what the task costs; the caller records it.
        head: of the task whose head this one uses; None where it trains its own.
        config: by which the task is trained, once it is resolved; see ``GroupedProbe.join_group``.
    """

    backbone: Backbone
    backbone_config: Mapping[str, Any]
    data: PreparedDataset
    settings: Any
    seed: int
    work_dir: Path
    log: RunLog
    head: Head | None = None
    config: Any = None

    def with_head_weights(self) -> Context:
        """The context with the backbone that the task of ``head`` has tuned, if it has."""
        return self if self.head is None else replace(self, backbone=self.head.tuned(self.backbone))

    @property
    def training(self) -> Context:
        """The context with the dataset that the probe is trained on."""
        return replace(self, data=self.data.trained_on or self.data)

    def at_layers(self, layers: Sequence[Layer]) -> Context:
        """The context with a backbone that reads all ``layers`` in one pass, if the task reads one
        of them; see ``requested_map``.

        Raises:
            UserError: a layer does not exist.
        """
        if requested_layer(self.settings) is None:
            return self
        backbone = self.backbone
        numbers = sorted({layer_number(layer, backbone.depth, backbone.name) for layer in layers})
        config = {**self.backbone_config, "layers": numbers}
        return replace(self, backbone=backbone.at_layers(numbers), backbone_config=config)


@dataclass(frozen=True)
class Head:
    """The weights of a trained head, as a cell stores them, without the frozen backbone;
    ``probes.predictor`` makes it predict again.

    Attributes:
        tensors: its weights, by name.
        metadata: its task, backbone and model, as Python literals; of a stored head also its
            ``seed`` and the ``conditions`` of its task.
        sha256: of its file; '' before it is stored.
    """

    PREFIX: ClassVar[str] = "backbone."  # of tuned weights, where ``metadata`` has the ``tune``

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any]
    sha256: str = ""

    def _parts(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Its own weights, and by their names in the network those of the backbone."""
        own, tuned = dict[str, Any](), dict[str, Any]()
        for name, tensor in self.tensors.items():
            is_tuned = "tune" in self.metadata and name.startswith(self.PREFIX)
            (tuned if is_tuned else own)[name.removeprefix(self.PREFIX * is_tuned)] = tensor
        return own, tuned

    def tuned(self, backbone: Backbone) -> Backbone:
        """The backbone, with the weights that the head's task has tuned. Raises ``UserError`` if it
        has others."""
        from backbones.tuning import with_weights

        _, weights = self._parts()
        return with_weights(backbone, weights) if weights else backbone

    @classmethod
    def of(cls, context: Context, tensors: Mapping[str, torch.Tensor], **metadata: Any) -> Head:
        """The head of a task; ``metadata`` are those of its kind."""
        backbone = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in context.backbone_config.items()
        }
        shared = {
            "task": context.data.spec.name,
            "kind": context.data.spec.kind,
            "classes": tuple(context.data.classes),
            "backbone": backbone,
            "weights.sha256": context.backbone.weights.sha256,
        }
        return cls(dict(tensors), shared | metadata)

    def write(self, path: Path) -> None:
        """Write safetensors, with the metadata as a Python literal in the header;
        ``probes.predictor.read_head`` reads them."""
        from safetensors.torch import save_file

        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.tensors.items()
        }
        save_file(tensors, path, {"head": repr(self.metadata)})

    def load_into(self, module: torch.nn.Module) -> None:
        """Give ``module`` the weights. Raises ``UserError`` if it has others, by their names and
        shapes."""
        try:
            module.load_state_dict(self._parts()[0])
        except RuntimeError as error:
            raise UserError(f"this is no head of the task: {error}; name a finished run") from error


@dataclass
class TaskResult:
    """The result of a task.

    Attributes:
        metrics: name → value; the names usual in the literature (``mIoU``, ``bbox_mAP``,
            ``abs_rel`` …), percentages 0–100. The caller records those that the probe declares.
        per_image: what the statistics of a report need: arrays whose first axis is the images,
            always with ``image`` (relative paths); for segmentation ``intersection``,
            ``prediction``, ``label`` pixel counts (N, classes); for depth and normals the metrics
            of each image and ``pixels``; for classification ``rank`` of the true class; for
            retrieval the best ``rank`` of each query. Where scores are of more than an image,
            ``unit`` (N,) or (N, k): names of what each is made of (pair of images, video); those
            of a dataset (``DatasetSpec.units``) are added by ``with_units``.
        bounds: of the main metric, ``reports.records.FLOOR`` and ``CEILING`` → value, where a task
            has them; those among ``metrics`` (``ceiling_recall_10px``) count, too.
        detections: COCO result list (image_id, category_id, bbox, score[, segmentation RLE]) of
            detection.
        preview: PNG of images, ground truth and predictions side by side; dense tasks and
            detection.
        head: the trained head, of probes that train one.
        notes: for the user, one line each (chosen learning rate, missing objects …).
        config: what it was trained by, as ``Probe.config`` says it: with the values that were
            chosen; '' where nothing was.
    """

    metrics: dict[str, float]
    per_image: dict[str, np.ndarray] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    detections: list[dict[str, Any]] | None = None
    preview: Path | None = None
    head: Head | None = None
    notes: list[str] = field(default_factory=list)
    config: str = ""


def with_units(result: TaskResult, data: PreparedDataset) -> TaskResult:
    """The result with the ``unit`` of each image as the dataset names it, where it does and the
    probe has not named its own; an image that the dataset does not name counts on its own."""
    if not result.per_image or "unit" in result.per_image or data.spec.units is None:
        return result
    units, images = data.spec.units(data.root), result.per_image["image"].tolist()
    unit = np.array([units.get(image, image) for image in images])
    return replace(result, per_image={**result.per_image, "unit": unit})


class NotApplicable(UserError):
    """A backbone lacks what a probe needs: the task has no number, and the others go on."""


@runtime_checkable
class SizedSettings(Protocol):
    """Settings that say which images the backbone gets."""

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` (height, width) only."""


@runtime_checkable
class Probe(Protocol):
    """A probe for one kind of dataset; ``probes.registry.PROBES`` has it as ``kind/name``. A
    protocol, so that any object with these attributes is one; a subclass has their defaults.

    Attributes:
        name: second half of a task's name (``linear``, ``pspnet``, ``mask-rcnn`` …).
        kind: of dataset.
        version: raised whenever the same settings give other numbers; part of a task's identity.
        settings_type: ``cliptex_common.settings.settings_dataclass`` of JSON-able fields, all of
            which are part of a task's identity; the defaults are the paper's.
        metrics: name → unit, range, direction and label, recorded with each number; the main metric
            first.
        defaults: settings of this probe that are not the defaults of ``settings_type``.
        needs_text, needs_dense_text: whether the backbone must have a text tower, and patch
            features that are aligned with it.
        splits: the splits that the probe reads; (``val``,) where nothing is trained.
        reuse: what it is scored with on a dataset that others are trained on
            (``DatasetSpec.trained_on``): the ``head`` of their task; their ``train`` split, where
            nothing is learned from it but a setting; '' where it cannot be scored there.
        head_of: name of the probe whose head it uses, where it trains none itself.
    """

    name: str
    kind: str
    version: int
    settings_type: type
    metrics: Mapping[str, Metric]
    defaults: Mapping[str, Any] = MappingProxyType({})
    needs_text: bool = False
    needs_dense_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")
    reuse: Reuse = ""
    head_of: str = ""

    @property
    def setting_names(self) -> set[str]:
        """Names of its settings and axes, as ``--set`` takes them."""
        return field_names(self.settings_type) | self.axes.keys()

    @property
    def train_size(self) -> str:
        """The axis of how much it is trained on, whose values alone name a variant
        (``voc/linear:0.1``): ``shots`` or ``train_share``; '' if it is not trained."""
        if "shots" in field_names(self.settings_type):
            return "shots"
        return "train_share" if "train" in self.splits else ""

    @property
    def axes(self) -> dict[str, str]:
        """Axis → the setting that it changes."""
        train_size = {name: name for name in [self.train_size] if name}
        return {**train_size, **axes_of(self.settings_type)}

    def with_main_metric(self, name: str) -> Probe:
        """The probe as it is scored on a dataset with a main metric of its own ('' for none)."""
        return self

    def fits(self, backbone: Any, data: PreparedDataset, settings: Any) -> None:
        """Check, before any work, that backbone, dataset and settings fit each other and the probe.
        Those of this class, of layers, texts and sizes, are made in any case, after a probe's own.

        Args:
            backbone: a ``Backbone``, or a record of one that is not there yet, with its attributes.
            data: perhaps without samples, where they are not checked yet.

        Raises:
            NotApplicable: the backbone lacks what the probe needs.
            UserError: something else does not fit.
        """
        layer, tune = requested_layer(settings), getattr(settings, "tune", "frozen")
        if layer is not None or tune != "frozen":
            depth = backbone.depth
            if layer is not None:
                depth = layer_number(layer, depth, backbone.name)
            check_blocks(tune, depth, backbone.name)
        if self.needs_text and not backbone.has_text:
            raise NotApplicable("no text tower")
        if self.needs_dense_text and not backbone.has_dense_text:
            raise NotApplicable("its patch features are not aligned with its text encoder")
        upsampled = getattr(settings, "upsampler", "bilinear") != "bilinear"
        if upsampled and (reason := upsampler_misfit(settings, backbone)):
            raise NotApplicable(reason)
        if data.spec.trained_on and "train" in self.splits and not self.reuse:
            raise UserError(
                f"{data.spec.name} is scored with what was trained on {data.spec.trained_on}, and"
                f" {self.name} keeps nothing that could be"
            )
        # where settings do not say the size, the backbone checks that of the first image
        size = backbone.fixed_size if isinstance(settings, SizedSettings) else None
        if size and not settings.feeds_only(size):
            height, width = size
            raise NotApplicable(
                f"takes images of {height}×{width} only; set size={height}, and of a dense probe"
                f" slide={height},{height // 2} or resize=square-bilinear, of instance retrieval"
                " resize=square"
            )

    def config(self, context: Context) -> str:
        """The resolved config as text: MMEngine's python, which plain mmengine runs, or JSON."""

    def run(self, context: Context) -> TaskResult:
        """Train on ``train`` and evaluate on ``val``.

        Raises:
            UserError: the data or the settings do not fit.
            NonFiniteLoss: training diverged.
        """


@dataclass
class FeatureProbe(Probe):
    """A probe on frozen features, without MMEngine's Runner; see ``Probe``.

    Attributes:
        module: has ``run(context)``, or, as ``MODULE:NAME``, a function of another name. It is
            imported when the probe runs, so that names are listed without torch.
        other_metrics: main metrics of some datasets (``DatasetSpec.extra["main_metric"]``).
    """

    name: str
    kind: str
    settings_type: type
    metrics: Mapping[str, Metric]
    module: str
    splits: tuple[Split, ...] = ("train", "val")
    needs_text: bool = False
    needs_dense_text: bool = False
    version: int = 1
    other_metrics: Mapping[str, Metric] = field(default_factory=dict)
    reuse: Reuse = ""
    head_of: str = ""

    def config(self, context: Context) -> str:
        """The settings, the backbone and the data, as JSON."""
        data, backbone = context.data, context.backbone
        content = {
            "task": f"{data.spec.name}/{self.name}",
            "settings": asdict(context.settings),
            "seed": context.seed,
            "backbone": {"config": dict(context.backbone_config), "identity": backbone.identity()},
            "dataset": {"fingerprint": data.fingerprint, "partial": data.partial},
        }
        return json.dumps(content, indent=2, default=str)

    def run(self, context: Context) -> TaskResult:
        """Encode what is not cached, train what there is to train, and score ``val``."""
        with context.cost.phase("eval"):  # less what runs in phases inside it, such as ``train``
            module, _, function = self.module.partition(":")
            result: TaskResult = getattr(import_module(module), function or "run")(context)
        return result

    def with_main_metric(self, name: str) -> FeatureProbe:
        """See ``Probe``."""
        if name not in self.other_metrics:
            return self
        return replace(self, metrics={name: self.other_metrics[name], **self.metrics})


@runtime_checkable
class GroupedProbe(Probe, Protocol):
    """A probe that can be trained with others in one training loop, on the same batches.

    Each result is as if the probe were trained alone; ``run`` is the same for a single probe.
    """

    def join_group(self, context: Context) -> tuple[str | None, Context]:
        """A key that is equal for tasks of one backbone and seed that one training loop can train
        on the same batches, None to run alone; and the context with its resolved ``config``."""

    def run_group(self, tasks: Sequence[tuple[Probe, Context]]) -> list[TaskResult | Exception]:
        """``run`` of tasks with one key, in the contexts of ``join_group``: the result of each in
        their order, or its own error."""


def save_state(path: Path, key: str, state: Mapping[str, Any]) -> None:
    """Replace the state of the training ``key``."""
    import torch

    with atomic_write(path) as temporary:
        torch.save({"key": key, **state}, temporary)


def load_state(path: Path, key: str, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """The state of the training ``key``, on the CPU; None where there is none. One that is damaged
    or of another training is not used, and ``warn`` gets the reason."""
    import torch

    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types: a damaged file breaks torch, zip or pickle
        warn(f"cannot read {path} ({error}): starting anew")
        return None
    if state.get("key") != key:
        warn(f"{path} is of another training: starting anew")
        return None
    return state
