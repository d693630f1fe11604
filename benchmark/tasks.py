"""The tasks of a run: settings, variants by axes, conditions, and the heads that they use.

``plan_tasks`` makes ``PlannedTask``s of a suite and the user's options. ``Job`` is what a unit of
work takes along of them: plain values that any process can read. A setting that its probe declares
an axis makes a variant of a task for each of its values (``--set layers=3,6,9,12``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import backbones
from backbones.remembered import recall, remember
from backbones.weights import Weights
from benchmark.suites import Suite, choose_suite, settings_in
from benchmark.unit import keep_last_model
from cliptex_common.errors import UserError, report_malformed, suggest
from cliptex_common.files import content_key
from cliptex_common.process import PROBING_LIBRARIES, versions
from cliptex_common.settings import (
    PositiveShare,
    Precision,
    as_text,
    field_names,
    read_value,
    setting_of,
    split_task,
    suggest_setting,
    with_changes,
)
from probes.base import Context, Layer, Probe, requested_layer
from probes.datasets.base import DatasetSpec, PreparedDataset, Split, with_share
from probes.registry import (
    DATASETS,
    PROBES,
    PROTOCOLS,
    find_preset,
    find_task,
    preset_deviations,
    trained_task,
)
from probes.upsamplers.names import HUB_SOURCES
from reports.records import Cell, cell_key, network_key, variant_parts

if TYPE_CHECKING:
    import torch

    from backbones.backbone import Backbone, DeferredBackbone

# defaults of settings that were added later; left out of conditions, so that keys of earlier cells
# stay as they are
NEUTRAL = {
    "upsampler": "bilinear",
    "linear_norm": True,
    "positions": "interpolated",
    "bins_read": "features",
    "relative_weight": 0.0,
    "solver": "sgd",
    "tune": "frozen",
    "tune_rates": (),
    "layer_decay": 0.75,
    "drop_path": 0.1,
    "checkpointing": False,
    "accumulate": 1,
    "ema": 0.0,
}
# settings that a tier does not have, whatever they say
OF_TUNED = ("tune_rates", "layer_decay", "drop_path", "checkpointing", "ema")
UNUSED = {"frozen": OF_TUNED, "blocks": ("layer_decay",), "lora": ("layer_decay", "drop_path")}
TUNING_VERSION = 3  # of how a backbone is tuned
PARTS_VERSION = 2  # of how a batch in parts is trained on; see ``probes.team``


def unused_settings(settings: Any) -> tuple[str, ...]:
    """Names of the settings that change nothing in the tier of a probe's ``settings``."""
    return UNUSED.get(getattr(settings, "tune", "").partition(":")[0], ())


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

    @property
    def name(self) -> str:
        """The task that trained them."""
        return self.conditions["task"]

    def cell_of(self, backbone: BackboneInfo, seed: int) -> Cell:
        """The one of a backbone and seed. Raises ``UserError`` if there is none."""
        for cell in self.cells:
            if (cell.weights, cell.seed) == (backbone.weights.sha256, seed):
                return cell
        owners = ", ".join(f"{cell.label} ({cell.weights[:12]})" for cell in self.cells)
        raise UserError(
            f"no head is of {backbone.column} ({backbone.weights.sha256[:12]}) and seed {seed};"
            f" --head names {owners}"
        )


@dataclass(frozen=True)
class PlannedTask:
    """A task with the settings it runs with and the share of train that it is trained on.

    Attributes:
        encoded_layers: layers that any task of the run reads; one pass of the backbone gives all.
        scored_with: what it is scored with, where it trains nothing itself: another task under the
            same settings, of the dataset that its own is ``trained_on`` or of the probe whose head
            it uses (``head_of``); of a probe that keeps no head, that task's training images. Or
            heads of earlier runs, for which neither that task nor its images are needed.
        changed: what the user changed of the settings that the suite or a protocol gives it, in
            words.
    """

    name: str
    settings: Any
    train_share: PositiveShare = 1.0
    encoded_layers: tuple[Layer, ...] = ()
    scored_with: PlannedTask | StoredHeads | None = None
    changed: tuple[str, ...] = ()

    @property
    def spec(self) -> DatasetSpec:
        """Looked up, like the probe, by the task's name: a planned task travels as plain values."""
        return find_task(self.name)[0]

    @property
    def probe(self) -> Probe:
        return find_task(self.name)[1]

    def varies(self, axis: str) -> bool:
        """Whether this is a variant of a task by an axis such as ``size``."""
        return any(part.startswith(f"{axis}=") for part in variant_parts(self.name))

    @property
    def main_metric(self) -> str:
        return next(iter(self.probe.metrics))

    @property
    def uses_head(self) -> bool:
        """Whether it is scored with the head of another task."""
        return self.scored_with is not None and self.probe.reuse == "head"

    @property
    def stored_heads(self) -> StoredHeads | None:
        """The heads of earlier runs that it is scored with, if it is."""
        return self.scored_with if isinstance(self.scored_with, StoredHeads) else None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are read of its own dataset."""
        return ("val",) if self.spec.trained_on or self.stored_heads else self.probe.splits

    @property
    def needed_tasks(self) -> tuple[PlannedTask, ...]:
        """The tasks whose images it needs: the one that it is scored with, and itself."""
        trained = self.scored_with
        return (trained, self) if isinstance(trained, PlannedTask) else (self,)

    @property
    def is_precision_open(self) -> bool:
        """Whether its precision is ``auto``."""
        return getattr(self.settings, "precision", "") == "auto"

    def with_precision(self, precision: Precision) -> PlannedTask:
        """With ``precision`` in place of ``auto``."""
        if not self.is_precision_open:
            return self
        trained = self.scored_with
        if isinstance(trained, PlannedTask):
            trained = trained.with_precision(precision)
        settings = replace(self.settings, precision=precision)
        return replace(self, settings=settings, scored_with=trained)

    def deviations(self, data: PreparedDataset) -> str:
        """What differs from the published protocol that the setting ``protocol`` names, in one
        line; '' if nothing differs, or if the protocol is ``own``, which is not published."""
        if "protocol" not in field_names(self.probe.settings_type):
            return ""
        preset = find_preset(self.settings.protocol, *find_task((self.scored_with or self).name))
        differences = preset_deviations(preset, self.settings, (data.trained_on or data).spec)
        if preset.settings and self.train_share < 1:
            differences.append(f"train_share={self.train_share}")
        if not differences:
            return ""
        return f"differs from {self.settings.protocol}: {', '.join(differences)}"

    def shortened(self, data: PreparedDataset) -> str:
        """What the user changed of its settings and images, in one line."""
        counts = []
        for split, samples in data.samples.items() if data.partial else ():
            expected = data.spec.expected.get(split)
            official = f" of {expected}" if expected else ""
            counts.append(f"{len(samples)}{official} images of {split}")
        return ", ".join([*self.changed, *counts])

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
        unused = unused_settings(self.settings)
        conditions: dict[str, Any] = {
            "task": self.name,
            "version": self.probe.version,
            "libraries": versions(*PROBING_LIBRARIES),
            "settings": {
                name: value
                for name, value in asdict(self.settings).items()
                if name not in NEUTRAL or value != NEUTRAL[name]
                if name not in unused
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
        if upsampler := HUB_SOURCES.get(getattr(self.settings, "upsampler", "")):
            conditions["upsampler"] = asdict(upsampler)
        if getattr(self.settings, "is_tuned", False):
            conditions["tuning"] = TUNING_VERSION
        if getattr(self.settings, "accumulate", 1) > 1:
            conditions["parts"] = PARTS_VERSION
        if self.train_share < 1:
            conditions["train_share"] = self.train_share
        if isinstance(self.scored_with, StoredHeads):
            conditions[self.probe.reuse] = self.scored_with.conditions
        elif self.scored_with is not None:
            conditions[self.probe.reuse] = self.scored_with.conditions(data.trained_on or data)
        if self.scored_with is not None:
            conditions["transfer"] = dict(data.spec.transfer)
        return conditions


FORGOTTEN = ("create_arguments", "label")  # fields that say how a backbone was asked for


@dataclass(frozen=True)
class BackboneInfo:
    """What the submitting process and the runs in MLflow record of a backbone.

    Attributes:
        create_arguments: keyword arguments of ``backbones.create`` that build it.
        name, architecture, weights, channels, strides, divisor, has_text, has_dense_text,
            fixed_size, depth, files, summary: as of ``backbones.Backbone``.
        identity: of ``Backbone.identity``.
        params: of its LoggedModel in MLflow.
        label: name of its column, if it is another one.
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
    files: Mapping[str, str]
    summary: str = ""
    label: str = ""

    @property
    def column(self) -> str:
        """The name of its column; no part of its identity."""
        return self.label or self.name

    @property
    def network(self) -> str:
        """``network_key`` of its identity."""
        return network_key(self.identity)

    @classmethod
    def of(cls, backbone: Backbone, create_arguments: Mapping[str, Any]) -> BackboneInfo:
        own = ("create_arguments", "identity", "params", "label")
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

    @classmethod
    def recall(cls, create_arguments: Mapping[str, Any]) -> BackboneInfo | None:
        """Of a backbone that was remembered; None if it has to be built."""
        description = recall(create_arguments)
        if description.keys() != set(field_names(cls)) - set(FORGOTTEN):
            return None
        weights = Weights(**description.pop("weights"))
        if path := create_arguments.get("weights"):  # the same content may be elsewhere
            weights = replace(weights, source=str(Path(path)))
        return cls(create_arguments=create_arguments, weights=weights, **description)

    def remember(self) -> None:
        """Store it for ``recall``."""
        fields = {name: value for name, value in vars(self).items() if name not in FORGOTTEN}
        remember(self.create_arguments, {**fields, "weights": vars(self.weights)})

    def deferred(self, device: torch.device) -> DeferredBackbone:
        """What stands for it until it has to be built."""
        from backbones.backbone import DataConfig, DeferredBackbone  # imports torch

        known = {
            name: getattr(self, name)
            for name in field_names(BackboneInfo)
            if name not in ("create_arguments", "identity", "params", "label")
        }
        known |= {
            "channels": tuple(self.channels),
            "strides": tuple(self.strides),
            "embed_dim": self.params["embed_dim"],
            "model_config": self.identity["model_config"],
            "data": DataConfig(**self.identity["data"]),
        }
        build = partial(load_backbone, **self.create_arguments)
        return DeferredBackbone(known, self.identity, build, device)

    def is_built_by(self, create_arguments: Mapping[str, Any]) -> bool:
        """Whether these arguments build the same weights: the seed is that of random ones only."""
        ignored = set() if self.weights.source.startswith("random(") else {"seed"}
        own = self.create_arguments
        names = (own.keys() | create_arguments.keys()) - ignored
        return all(own.get(name) == create_arguments.get(name) for name in names)

    def cell_keys(
        self,
        tasks: Sequence[PlannedTask],
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
            task.name: cell_key(
                self.identity,
                conditions[task.name],
                seed,
                heads[task.name].head if task.uses_head else "",
            )
            for task in tasks
            if task.name in heads or not task.uses_head
        }


load_backbone = keep_last_model(lambda **arguments: backbones.create(**arguments))


def describe_backbone(create_arguments: Mapping[str, Any]) -> BackboneInfo:
    """Build a backbone, which this process may probe next, and describe it; a unit of work. Raises
    ``UserError`` as ``backbones.create``."""
    return BackboneInfo.of(load_backbone(**create_arguments), create_arguments)


@dataclass(frozen=True)
class Job:
    """The argument of ``probe_unit``: tasks that share images, on one backbone and seed.

    Attributes:
        data: task → its ``PreparedDataset``.
        conditions: task → its ``PlannedTask.conditions``.
        data_root: as by ``--data-root``; its subfolders ``wds_NAME`` are webdatasets, which the
            worker has to register before it can find their tasks.
        model_id: of the backbone's LoggedModel.
        suite: name of the suite.
        experiment: in MLflow.
        parent_id: of the run that the cells' runs nest under.
        force: run finished cells again, except those finished under this same parent (by a worker
            that died before its unit ended).
        device, num_workers: of the executor.
    """

    tasks: tuple[PlannedTask, ...]
    data: Mapping[str, PreparedDataset]
    conditions: Mapping[str, Mapping[str, Any]]
    data_root: Path | None
    backbone: BackboneInfo
    model_id: str
    seed: int
    suite: str
    experiment: str
    parent_id: str
    force: bool = False
    device: str = "auto"
    num_workers: int = 2

    @property
    def title(self) -> str:
        return unit_title(self.backbone.column, self.seed, self.tasks)


def unit_title(backbone: str, seed: int, tasks: Sequence[PlannedTask]) -> str:
    """How the unit that probes ``tasks`` is called."""
    return f"{backbone} · seed {seed} · {' + '.join(task.name for task in tasks)}"


def stored_heads(sources: Sequence[str]) -> dict[str, StoredHeads]:
    """Task → its heads.

    Args:
        sources: ids of runs, or files.

    Raises:
        UserError: one has no head, or heads of a task were trained under different conditions.
        TrackingError: the store cannot be used.
    """
    heads: dict[str, StoredHeads] = {}
    for source in sources:
        from probes.predictor import load_head  # needs torch

        head = load_head(source)
        message = f"--head {source} does not hold what it was trained on"
        with report_malformed(message, "name the run of a finished task, or the file of one"):
            about, conditions = head.metadata, head.metadata["conditions"]
            task, kind, classes = conditions["task"], about["kind"], about["classes"]
            dict(conditions["settings"])
            cell = Cell(
                backbone=about["backbone"]["name"],
                task=task,
                seed=about["seed"],
                weights=about["weights.sha256"],
                head=head.sha256,
                run_id=source,
            )
        of_task = heads.setdefault(task, StoredHeads(kind, classes, conditions, ()))
        if content_key(of_task.conditions) != content_key(conditions):
            raise UserError(
                f"--head {source}: its data, settings or versions are not those of the other heads"
                f" of {task}; score them in runs of their own"
            )
        heads[task] = replace(of_task, cells=(*of_task.cells, cell))
    return heads


def split_variant(name: str, probe: Probe) -> dict[str, str]:
    """The axes that a task's name fixes: ``voc/linear:0.1:size=224`` → ``{"train_share": "0.1",
    "size": "224"}``.

    Raises:
        UserError: the probe has no such axis.
    """
    task = name.partition(":")[0]
    fixed: dict[str, str] = {}
    for part in filter(None, variant_parts(name)):
        axis, equals, value = part.partition("=")
        if not equals:
            axis, value = probe.train_size, part
        if not axis:
            raise UserError(
                f"{name}: {task} trains on nothing and has no variants; leave :{part} out"
            )
        if axis not in probe.axes:
            raise UserError(f"{name}: {task} has no axis {axis!r}, only {', '.join(probe.axes)}")
        fixed[axis] = value
    return fixed


def split_values(
    probe: Probe, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Setting → value, and axis → values of those that make variants: of what ``--set``
    or a suite gives a probe. An axis with a name of its own (``layers``, of ``features``) is
    for the probes whose setting takes what is given.

    Raises:
        UserError: an axis has a comma without two different values, or values of which a probe
            takes only some.
    """
    changes: dict[str, Any] = {}
    ranges: dict[str, list[str]] = {}
    for key, value in values.items():
        if key not in probe.axes:
            changes[key] = value
            continue
        text = as_text(key, value)
        parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
        if "," in text and (len(parts) < 2 or "" in parts):
            raise UserError(
                f"--set {key}={text}: an axis has two or more different values, separated by single"
                " commas; for one value leave the comma out"
            )
        refused = [part for part in parts if refusal(probe, key, part)]
        if refused and len(refused) < len(parts):
            raise UserError(
                f"--set {key}={text}: {probe.name} does not take {', '.join(refused)}; name the"
                f" tasks that do, --set TASK.{key}={text}"
            )
        if refused:
            continue
        if len(parts) > 1:
            ranges[key] = parts
        else:
            changes[key] = value
    return changes, ranges


def refusal(probe: Probe, axis: str, text: str) -> str:
    """Why the setting of an axis with another name does not take a value; '' if it does."""
    if probe.axes[axis] != axis:
        try:
            with_changes(probe.settings_type(), {probe.axes[axis]: text})
        except UserError as error:
            return str(error)
    return ""


def _variant(task: PlannedTask, values: Mapping[str, str]) -> PlannedTask:
    """The task with these values of axes, which join its name. A share or a number of shots that
    the task has anyway does not."""
    probe, name = task.probe, task.name
    # a share is a field of the task, the other axes are settings
    share = read_value("train_share", values.get("train_share", task.train_share), PositiveShare)
    changes = {probe.axes[axis]: value for axis, value in values.items() if axis != "train_share"}
    settings = with_changes(task.settings, changes)
    for axis in values:
        if axis == "train_share":
            before, value = task.train_share, share
        else:
            before, value = (getattr(each, probe.axes[axis]) for each in (task.settings, settings))
        if axis == "tune":
            name += f":tune={value}" if value != "frozen" else ""
        elif axis != probe.train_size:
            name += f":{axis}={value[0] if isinstance(value, tuple) else value}"
        elif value != before:
            name += f":{value}"
    return replace(task, name=name, settings=settings, train_share=share)


def plan_tasks(
    suite: Suite,
    requested: Sequence[str],
    overrides: Mapping[str, str],
    heads: Mapping[str, StoredHeads] = MappingProxyType({}),
) -> list[PlannedTask]:
    """The suite's tasks (or the requested ones) with their settings: the probe's defaults, changed
    by the suite, by a published protocol (``protocol=NAME``), and by the user, in this order.

    An override applies to every task that has the setting; ``TASK.SETTING`` applies to that task
    and takes precedence. A requested task may be one that the suite does not list, see
    ``settings_in``. Several values of an axis (``size=224,448``) make a variant of each task for
    every combination, called ``TASK:size=224``, and a requested variant fixes the axis.
    ``TASK:VALUE`` is TASK with this share of train or (few-shot) this number of shots. A task that
    is scored with what another one trains has the settings of that one, which is planned, too, if
    it trains a head.

    Args:
        heads: task → stored heads, which are used instead, with the settings that they have.

    Raises:
        UserError: an unknown task, a task that is not in the suite, an override that changes no
            task, a protocol that does not apply, an axis with too few values, or heads for no task.
    """
    tasks: dict[str, PlannedTask] = {}
    # in these three, the task '' stands for all tasks
    requests = {split_task(key): text for key, text in overrides.items()}
    applied: set[tuple[str, str]] = set()  # task and setting
    probes: dict[str, list[Probe]] = {"": []}
    order = {name: position for position, name in enumerate(suite.tasks)}  # then others
    for name in sorted(
        requested or order, key=lambda name: order.get(name.partition(":")[0], len(order))
    ):
        listed, base = settings_in(suite, name), name.partition(":")[0]
        if listed is None:
            owner = choose_suite([base]).name
            raise UserError(
                f"suite {suite.name!r} has no task {name!r}, suite {owner!r} has; without --suite"
                " each task has the settings of its own suite"
            )
        trained, probe = trained_task(base), find_task(base)[1]
        probes[trained] = [probe]
        probes[""].append(probe)
        texts: dict[str, str] = {}
        for scope in ("", trained):  # what is set of this task alone comes last
            texts |= {setting: text for (task, setting), text in requests.items() if task == scope}
        fixed = split_variant(name, probe)
        free = {
            key: text
            for key, text in texts.items()
            if key not in fixed and setting_of(key) in probe.setting_names
        }
        changes, ranges = split_values(probe, free)
        if probe.train_size in changes:  # each value that a user gives is a task of its own
            ranges[probe.train_size] = [changes.pop(probe.train_size)]
        if "tune" in changes:  # a tier of its own, whose numbers join no frozen ones
            ranges["tune"] = [changes.pop("tune")]
        applied |= {(scope, key) for scope in ("", trained) for key in (*changes, *ranges)}
        listed, of_suite = split_values(probe, listed)
        if "tune" in listed and "tune" not in texts:
            of_suite["tune"] = [listed.pop("tune")]
        ranges |= {axis: of_suite[axis] for axis in of_suite if axis not in texts}
        ranges |= {axis: [value] for axis, value in fixed.items()}
        planned = replace(_with_settings(trained, listed, changes), name=base)
        tier = getattr(planned.settings, "tune", "frozen")
        if tier != "frozen" and "tune" not in {*texts, *fixed}:  # of a protocol
            ranges["tune"] = [tier]
        axes = [axis for axis in probe.axes if axis in ranges]  # variants' names have this order
        changed = {*changes, *ranges}
        usual: dict[str, Any] = {}
        unknown = "that of the suite"
        protocol = {key: changes[key] for key in changes if key == "protocol"}
        with suppress(UserError):  # some suites' settings fit only together with the user's
            usual = asdict(_with_settings(trained, listed, protocol).settings)
        for values in product(*map(ranges.__getitem__, axes)):
            variant = _variant(planned, dict(zip(axes, values, strict=True)))
            epochs = getattr(variant.settings, "epochs", 0)
            if epochs and "max_iters" in changed and "epochs" not in changed:
                raise UserError(
                    f"--set max_iters changes nothing in {variant.name}, whose length is"
                    f" epochs={epochs:g}; set epochs=0 as well, or epochs"
                )
            differences = tuple(
                f"{key}={value}"
                f" instead of {'the default' if (was := usual.get(key, unknown)) is None else was}"
                for key, value in asdict(variant.settings).items()
                if (value != usual[key] if usual else key in changed)
                if key not in unused_settings(variant.settings)
            )
            tasks[variant.name] = replace(variant, changed=differences)
    for (task, key), text in requests.items():
        if task not in probes:
            raise UserError(f"--set {task}.{key}: no such task is chosen; {suggest(task, probes)}")
        if (task, key) not in applied:
            raise _unused_override(task, key, text, probes)
        if key in OF_TUNED and not any(
            getattr(planned.settings, "is_tuned", False)
            for name, planned in tasks.items()
            if task in ("", name.partition(":")[0])
        ):
            raise UserError(
                f"--set {key}={text}: no task of this run trains the backbone; add a tier, such as"
                " tune=lora:16"
            )
    for name in heads.keys() - requested:  # not trained again, although the suite lists it
        tasks.pop(name, None)
    # what tasks that train nothing are scored with: stored heads, or a task that is planned too
    for name, planned in list(tasks.items()):
        base, *parts = name.split(":")
        if (trained := trained_task(base)) == base:
            continue
        other = replace(planned, name=":".join([trained, *parts]))  # it trains, the same settings
        stored, keeps_head = heads.get(other.name), planned.probe.reuse == "head"
        if stored and keeps_head and stored.kind == planned.spec.kind:
            tasks[name] = _with_heads(planned, stored, requests)
            continue
        tasks[name] = replace(planned, scored_with=other)
        if keeps_head:
            tasks.setdefault(other.name, other)
    used_heads = {each.stored_heads.name for each in tasks.values() if each.stored_heads}
    if unused := heads.keys() - used_heads:
        raise UserError(f"--head: no chosen task is scored with the head of {', '.join(unused)}")
    # each task has the layers of all, so that one pass of the backbone encodes them
    layers = [requested_layer(planned.settings) for planned in tasks.values()]
    encoded = tuple(dict.fromkeys(layer for layer in layers if layer is not None))
    return [replace(planned, encoded_layers=encoded) for planned in tasks.values()]


def _with_heads(
    task: PlannedTask, heads: StoredHeads, requests: Mapping[tuple[str, str], str]
) -> PlannedTask:
    """The task with stored heads and their settings. Raises ``UserError`` if ``requests``, (task or
    '', setting) → text, have another value of one."""
    trained, settings = heads.name, task.probe.settings_type()
    settings = with_changes(settings, heads.conditions["settings"])
    for (scope, key), text in requests.items():
        applies = scope in ("", trained.partition(":")[0])
        is_setting = setting_of(key) in field_names(task.probe.settings_type)
        if applies and is_setting and with_changes(settings, {key: text}) != settings:
            raise UserError(
                f"--set {key}={text}: the head of {trained} was trained with"
                f" {getattr(settings, setting_of(key))}, and heads keep their settings"
            )
    return replace(task, settings=settings, scored_with=heads)


def _unused_override(
    task: str, key: str, text: str, probes_of: Mapping[str, Sequence[Probe]]
) -> UserError:
    """The error of an override that changes no task, or not ``task``; ``probes_of``: of each chosen
    task, and of all as ''."""
    probes = probes_of[task]
    for probe in probes:
        if key in probe.axes and (reason := refusal(probe, key, text)):
            return UserError(f"--set {key}={text}: {probe.name} does not take it; {reason}")
    allowed = set[str]() if task else {"train_share", "shots"}
    allowed = allowed.union(*(probe.setting_names for probe in probes))
    hint = suggest_setting(key, allowed, *(probe.settings_type for probe in probes))
    every = PROBES.load_entry_points().values()
    if owners := {probe.name for probe in every if setting_of(key) in probe.setting_names}:
        hint = f"it is a setting of {', '.join(sorted(owners))}"
    elif "." in key and not task:
        part, _, setting = key.partition(".")
        names = [name for name in probes_of if name]
        name = next((name for name in names if part in name.split("/")), names[0])
        hint = f"before the point stands a whole task, as in --set {name}.{setting}={text}"
    if key in allowed:
        hint = "TASK:VALUE fixes it, and tasks without training do not have it"
    if task:
        return UserError(f"--set {task}.{key}: {task} does not have this setting; {hint}")
    return UserError(f"--set {key}: none of the tasks has this setting; {hint}")


def plan_task(suite: Suite, name: str, changes: Mapping[str, str]) -> PlannedTask:
    """A task with its settings: of the suite, of its protocol, and of the user.

    Raises:
        UserError: an unknown task, setting or value.
    """
    listed, _ = split_values(find_task(name)[1], settings_in(suite, name) or {})
    return _with_settings(name, listed, changes)


def _with_settings(name: str, listed: Mapping[str, Any], changes: Mapping[str, str]) -> PlannedTask:
    """A task with a suite's settings for it, and with the user's ``changes``, by setting or axis.
    A suite changes no config file of a user."""
    spec, probe = find_task(name)
    values, changes = (
        {probe.axes.get(key, key): value for key, value in each.items()}
        for each in (listed, changes)
    )
    values = {key: value for key, value in values.items() if key not in probe.defaults}
    if protocol := {**values, **changes}.get("protocol"):
        values |= find_preset(protocol, spec, probe).settings
        values["protocol"] = protocol
    defaults = with_changes(probe.settings_type(), probe.defaults)
    try:
        return PlannedTask(name, with_changes(defaults, {**values, **changes}))
    except UserError as error:
        raise UserError(
            f"{name}: {error}; see `list settings {name}`, and --set TASK.KEY=VALUE for one task"
            " alone"
        ) from error
