"""What the parts of a run hand to each other: plain values that any process can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backbones.backbone import PROBING, Backbone, Weights, versions
from cliptex_common.errors import UserError
from cliptex_common.settings import PositiveShare, Precision, field_names
from probes.base import Context, Probe
from probes.datasets.base import DatasetSpec, PreparedDataset, Split
from probes.datasets.share import with_share
from probes.layers import Layer
from probes.protocols.base import PROTOCOLS, find_preset, preset_deviations
from probes.registry import DATASETS, PROBES, find_task, trained_task
from probes.upsamplers.names import upsampler_identity
from reports.cell import Cell, cell_key

# values of settings that change nothing; not part of identities, which are older than the settings
NEUTRAL = {"upsampler": "bilinear", "linear_norm": True, "positions": "interpolated"}


@dataclass(frozen=True)
class StoredHeads:
    """Heads of a task that earlier runs trained under the same conditions, of several backbones and
    seeds.

    Attributes:
        kind: of the dataset.
        classes: names of those that they were trained on.
        conditions: of the task, see ``PlannedTask.conditions``.
        cells: one for each head; ``run_id`` is its MLflow run or its file.
    """

    kind: str
    classes: Sequence[str]
    conditions: Mapping[str, Any]
    cells: Sequence[Cell]

    def cell_of(self, backbone: BackboneInfo, seed: int) -> Cell:
        """The one of a backbone and seed. Raises ``UserError`` if there is none."""
        for cell in self.cells:
            if (cell.weights, cell.seed) == (backbone.weights.sha256, seed):
                return cell
        owners = ", ".join(f"{cell.label} ({cell.weights[:12]})" for cell in self.cells)
        raise UserError(
            f"no head is of {backbone.name} ({backbone.weights.sha256[:12]}) and seed {seed};"
            f" --head names {owners}"
        )


@dataclass(frozen=True)
class PlannedTask:
    """A task with the settings it runs with and the share of train that it is trained on.

    Attributes:
        encoded_layers: layers that any task of the run reads; one pass of the backbone gives all.
        heads: one of these is scored; neither ``training_task`` nor its images are needed.
    """

    name: str
    settings: Any
    train_share: PositiveShare = 1.0
    encoded_layers: tuple[Layer, ...] = ()
    heads: StoredHeads | None = None

    @property
    def spec(self) -> DatasetSpec:
        return find_task(self.name)[0]

    @property
    def probe(self) -> Probe:
        return find_task(self.name)[1]

    def varies(self, axis: str) -> bool:
        """Whether this is a variant of a task by an axis such as ``size``."""
        return any(part.startswith(f"{axis}=") for part in self.name.split(":")[1:])

    @property
    def main_metric(self) -> str:
        return next(iter(self.probe.metrics))

    @property
    def training_task(self) -> PlannedTask:
        """The task whose head or training images this one is scored with, under the same settings:
        itself, or that of another dataset (``DatasetSpec.trained_on``) or probe
        (``Probe.head_of``)."""
        name, *variant = self.name.split(":")
        return replace(self, name=":".join([trained_task(name), *variant]))

    @property
    def uses_head(self) -> bool:
        """Whether it is scored with the head of another task."""
        return self.training_task != self and self.probe.reuse == "head"

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are read of its own dataset."""
        return ("val",) if self.spec.trained_on or self.heads else self.probe.splits

    @property
    def with_training_task(self) -> tuple[PlannedTask, ...]:
        """The tasks whose images it needs: its ``training_task``, if stored heads do not replace
        it, and itself."""
        is_trained_here = self.heads is None and self.training_task != self
        return (self.training_task, self) if is_trained_here else (self,)

    @property
    def is_precision_open(self) -> bool:
        """Whether its precision is ``auto``."""
        return getattr(self.settings, "precision", "") == "auto"

    def with_precision(self, precision: Precision) -> PlannedTask:
        """With ``precision`` in place of ``auto``."""
        if not self.is_precision_open:
            return self
        return replace(self, settings=replace(self.settings, precision=precision))

    def deviations(self, data: PreparedDataset) -> str:
        """What differs from the published protocol that the setting ``protocol`` names, in one
        line; '' if nothing differs, or if the protocol is ``own``, which is not published."""
        if "protocol" not in field_names(self.probe.settings_type):
            return ""
        trained = self.training_task
        preset = find_preset(self.settings.protocol, trained.spec, trained.probe)
        differences = preset_deviations(preset, self.settings, (data.trained_on or data).spec)
        if preset.settings and self.train_share < 1:
            differences.append(f"train_share={self.train_share}")
        if not differences:
            return ""
        return f"differs from {self.settings.protocol}: {', '.join(differences)}"

    def context(self, data: PreparedDataset, seed: int, **fields: Any) -> Context:
        """The context of the probe, on the task's share of ``data``, with further ``fields`` of
        ``Context``."""
        data = with_share(data, self.train_share, seed)
        context = Context(data=data, settings=self.settings, seed=seed, **fields)
        return context.at_layers(self.encoded_layers)

    def conditions(self, data: PreparedDataset) -> dict[str, Any]:
        """All that a number of this task depends on besides backbone and seed. Numbers of
        different conditions never share a column.

        In a cell's MLflow run, their hash is the tag ``protocol``, and the setting ``protocol``
        (the name of a protocol, whose preset changes the task's settings) is the tag ``preset``. A
        task that uses the head or training images of another one has that one's conditions under
        ``head`` or ``train``.
        """
        conditions: dict[str, Any] = {
            "task": self.name,
            "version": self.probe.version,
            "libraries": versions(*PROBING),
            "settings": {
                name: value
                for name, value in asdict(self.settings).items()
                if name not in NEUTRAL or value != NEUTRAL[name]
            },
            "dataset": {
                "name": self.spec.name,
                "fingerprint": data.fingerprint,
                "partial": data.partial,
                "extra": dict(data.spec.extra),
                **DATASETS.origin(self.spec.name),
            },
            **PROBES.origin(f"{self.probe.kind}/{self.probe.name}"),
        }
        if preset := getattr(self.settings, "protocol", ""):
            conditions["preset_version"] = PROTOCOLS.find(preset).version
            if origin := PROTOCOLS.origin(preset):
                conditions["preset_origin"] = origin
        if upsampler := upsampler_identity(getattr(self.settings, "upsampler", "")):
            conditions["upsampler"] = upsampler
        if self.train_share < 1:
            conditions["train_share"] = self.train_share
        if self.training_task != self:
            conditions[self.probe.reuse] = (
                self.heads.conditions
                if self.heads
                else self.training_task.conditions(data.trained_on or data)
            )
            conditions["transfer"] = dict(data.spec.transfer)
        return conditions


@dataclass(frozen=True)
class BackboneInfo:
    """What the submitting process and the runs in MLflow record of a backbone.

    Attributes:
        create_arguments: keyword arguments of ``backbones.create`` that build it.
        name, architecture, weights, channels, strides, divisor, has_text, has_dense_text,
            fixed_size, depth: as of ``backbones.Backbone``.
        identity: of ``Backbone.identity``.
        params: of its LoggedModel in MLflow.
    """

    create_arguments: Mapping[str, Any]
    name: str
    architecture: str
    weights: Weights
    identity: Mapping[str, Any]
    channels: Sequence[int]
    strides: Sequence[float]
    divisor: int
    has_text: bool
    has_dense_text: bool
    fixed_size: tuple[int, int] | None
    depth: int
    params: Mapping[str, Any]

    @classmethod
    def of(cls, backbone: Backbone, create_arguments: Mapping[str, Any]) -> BackboneInfo:
        own = ("create_arguments", "identity", "params")
        shared = {name: getattr(backbone, name) for name in field_names(cls) if name not in own}
        return cls(
            **shared,
            create_arguments=create_arguments,
            identity=backbone.identity(),
            params={
                "architecture": backbone.architecture,
                "parameters": sum(each.numel() for each in backbone.parameters()),
                "image_size": "x".join(map(str, backbone.data.size)),
                "embed_dim": backbone.embed_dim,
                "channels": backbone.channels,
                "strides": backbone.strides,
                "text": backbone.has_text,
            },
        )

    def cell_keys(
        self,
        conditions: Mapping[str, Mapping[str, Any]],
        seed: int,
        heads: Mapping[str, Cell] = MappingProxyType({}),
    ) -> dict[str, str]:
        """Task → identity of its cell: backbone weights and layers, conditions of the task
        (``PlannedTask.conditions``), seed, and the head that it uses of another task.

        Args:
            heads: task → the cell whose head it uses. A task that uses one and is not in it, since
                the head is not trained yet, has no identity yet and is left out.
        """
        return {
            name: cell_key(self.identity, each, seed, heads[name].head if name in heads else "")
            for name, each in conditions.items()
            if name in heads or "head" not in each
        }


@dataclass(frozen=True)
class ProbeRequest:
    """The argument of ``probe_unit``: tasks that share images, on one backbone and seed.

    Attributes:
        data: task → its ``PreparedDataset`` ``without_specs``.
        data_root: as by ``--data-root``; its subfolders ``wds_NAME`` are webdatasets, which the
            worker has to register before it can find their tasks.
        model_id: of the backbone's LoggedModel.
        suite: name of the suite.
        experiment: in MLflow.
        parent_id: of the run that the cells' runs nest under.
        force: run finished cells again, except those finished under this same parent (by a worker
            that died before its unit ended).
    """

    tasks: tuple[PlannedTask, ...]
    data: Mapping[str, PreparedDataset]
    data_root: Path | None
    backbone: BackboneInfo
    model_id: str
    seed: int
    suite: str
    experiment: str
    parent_id: str
    device: str
    num_workers: int
    force: bool

    def dataset(self, task: PlannedTask) -> PreparedDataset:
        """The dataset of a task, with its spec."""
        return _with_spec(self.data[task.name], task.spec)


def _with_spec(data: PreparedDataset, spec: DatasetSpec) -> PreparedDataset:
    trained_on = data.trained_on and _with_spec(data.trained_on, DATASETS.find(spec.trained_on))
    return replace(data, spec=spec.at(data.root), trained_on=trained_on)


def without_specs(data: PreparedDataset) -> PreparedDataset:
    """The dataset with ``spec=None``: a spec may hold functions that cannot be pickled."""
    trained_on = data.trained_on and without_specs(data.trained_on)
    return replace(data, spec=None, trained_on=trained_on)  # type: ignore[arg-type]
