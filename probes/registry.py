"""Names: probes by ``kind of dataset/name``, datasets and dense heads; tasks, which are a dataset
with a probe; and published protocols, named settings by which a number can be compared with the
published one.

``protocol`` is a setting of every probe. Its preset overrides the defaults and the settings of the
suite; the user's own (``--set``) override the preset, and the difference is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cliptex_common import registry as plugins
from cliptex_common.errors import UserError, suggest
from cliptex_common.registry import Registry, instance_of
from probes.base import Probe
from probes.datasets.base import DATASETS, DatasetSpec
from probes.datasets.ground_truth import class_of
from probes.dense.tasks import DENSE_TASKS
from reports.records import DECLARERS, Metric

PROBES: Registry[Probe] = Registry(
    "probe", "probes", instance_of(Probe, lambda probe: f"{probe.kind}/{probe.name}")
)
# kinds of dense heads, not trained ones: ``probes.dense.probe.register_head`` fills it, and
# ``PROBES`` with the probes of each
HEADS: Registry[Any] = Registry("head", "heads")


def register_probe(probe: Probe) -> Probe:
    """Add a probe. Raises ``UserError`` when its kind and name are registered already."""
    return PROBES.register(f"{probe.kind}/{probe.name}", probe)


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Add a dataset of the calling module.

    Raises:
        UserError: its name is registered, or it lacks what datasets of its kind declare.
    """
    declared = (DENSE_TASKS.get(spec.kind) or class_of(spec.kind)).declared
    if missing := [f"{key}, {about}" for key, about in declared.items() if key not in spec.extra]:
        raise UserError(
            f"dataset {spec.name!r} does not declare, in extra={{…}} of its DatasetSpec:"
            f" {'; '.join(missing)}"
        )
    if not spec.module:
        module = sys._getframe(1).f_globals["__name__"]  # of the caller
        if plugins.calling_plugin():  # configs cannot import a plugin's file
            module = __name__
        spec = replace(spec, module=module)
    return DATASETS.register(spec.name, spec)


def tasks() -> dict[str, tuple[DatasetSpec, Probe]]:
    """Every task, including those of other packages."""
    for registry in (DENSE_TASKS, HEADS):
        registry.load_entry_points()  # their probes too
    probes = PROBES.load_entry_points().values()
    return {
        f"{spec.name}/{probe.name}": (spec, _scored_on(spec, probe))
        for spec in DATASETS.load_entry_points().values()
        for probe in probes
        if probe.kind == spec.kind
    }


def _scored_on(spec: DatasetSpec, probe: Probe) -> Probe:
    return probe.with_main_metric(spec.extra.get("main_metric", ""))


def _declared_metrics(task: str, kind: str, main_metric: str) -> dict[str, Metric]:
    """The metrics of a task's probe, for reports; none of an unknown one."""
    dataset, _, name = task.partition(":")[0].partition("/")
    key = f"{kind}/{name}"
    if key not in PROBES:
        tasks()  # with those of other packages
    if key not in PROBES or (dataset in DATASETS and DATASETS[dataset].kind != kind):
        return {}
    return dict(PROBES[key].with_main_metric(main_metric).metrics)


DECLARERS.append(_declared_metrics)  # reports ask it for the metrics of a task


def trained_task(name: str) -> str:
    """The task that trains what a task is scored with: that of another dataset
    (``DatasetSpec.trained_on``) or probe (``Probe.head_of``), or the task itself."""
    spec, probe = find_task(name)
    if "train" not in probe.splits:
        return name
    trained = f"{spec.trained_on or spec.name}/{probe.head_of or probe.name}"
    return trained if trained != f"{spec.name}/{probe.name}" else name


def find_task(name: str) -> tuple[DatasetSpec, Probe]:
    """Dataset and probe of a task such as ``voc/pspnet``, or of a variant (``voc/pspnet:0.1``).

    Raises:
        UserError: no such dataset, or no such probe for it (suggests the nearest), or the package
            that provides it is broken.
    """
    name, _, _ = name.partition(":")
    dataset, _, probe = name.partition("/")
    if spec := DATASETS.get(dataset):
        key = f"{spec.kind}/{probe}"
        if key in PROBES:
            return spec, _scored_on(spec, PROBES[key])
    all_tasks = tasks()  # with those of other packages
    if name in all_tasks:
        return all_tasks[name]
    if dataset in DATASETS.broken:
        DATASETS.find(dataset)  # raises, and says what is broken
    if spec := DATASETS.get(dataset):
        if f"{spec.kind}/{probe}" in PROBES.broken:
            PROBES.find(f"{spec.kind}/{probe}")
        kinds = {each.kind for each in PROBES.values()}
        if spec.kind not in kinds:
            raise UserError(
                f"dataset {dataset!r} has kind {spec.kind!r}, which no probe is for;"
                f" {suggest(spec.kind, kinds)}"
            )
    raise UserError(f"no task {name!r}; {suggest(name, all_tasks)}")


@dataclass(frozen=True)
class Preset:
    """The settings of a protocol for one probe.

    Attributes:
        probe: its name in ``PROBES`` (``segmentation/linear``).
        settings: setting → value. Others are the suite's or the probe's own.
        datasets: that the source covers; empty for every dataset of the kind.
        data: facts of the source's copy of the dataset, as in ``DatasetSpec.extra``, where copies
            differ.
        required: likewise, without which the preset is refused.
        images: of each split, where the source's copy has other numbers than the official one.
    """

    probe: str
    settings: Mapping[str, Any]
    datasets: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)


NORMALISED_BLACK = {
    "normalised black": (
        "images of every backbone have ImageNet's mean and deviation, here its own (of"
        " EfficientNet-Lite0, whose own are 0.5, 60 % of the ten nearest neighbours are shared)"
    ),
}
HEAD_PRECISION = {"head precision": "its heads compute in fp32, on a GPU those here in bf16"}
# what sources of dense probes share: they flip images, encode each anew and have one learning rate
TRAINED_ON_IMAGES: dict[str, Any] = {
    "flip": 0.5,
    "flip_test": False,
    "fixed_crops": 0,
    "cache": "none",
    "lr_grid": (),
    "epochs": 0.0,
    "clip_norm": 0.0,
    "precision": "fp32",
    "layers": "last",
    "slide": (),
}
ADAMW: dict[str, Any] = {
    **TRAINED_ON_IMAGES,
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "feature_stride": None,
    "dropout": 0.0,
}
CROPS_512 = {
    "size": 512,
    "crop": (512, 512),
    "scale_range": (0.5, 2.0),
    "loss_mean": "all",
    "batch_size": 16,
}
# VOC with the masks of SBD
TRAINAUG: dict[str, Any] = {
    "required": {"train_list": "trainaug"},
    "images": {"train": 10_582},
}
NEIGHBOURS = {"precision": "fp32", "temperature": 0.07, "features": "projected"}


@dataclass(frozen=True)
class Protocol:
    """A published protocol.

    Attributes:
        name: as in ``--set protocol=NAME``.
        source: the paper and its code (``facebookresearch/dinov3``, files).
        presets: of its probes. Of several for one probe, the one that names the dataset is used.
        differs: what the source does and this package does not: the preset's probe
            (``segmentation/linear``), the kind of several (``segmentation``), or '' for all →
            fields, as the golden record of the protocol names them (``tests/protocols/records``),
            separated by commas → a phrase; in brackets how far that moves the number, and on what
            data, where it was measured.
        commit: of the source's code that the presets follow.
        version: raised whenever a preset gives other numbers; part of a task's identity.
    """

    name: str
    source: str
    presets: tuple[Preset, ...] = ()
    differs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    commit: str = ""
    version: int = 1

    def preset(self, spec: DatasetSpec, probe: Probe) -> Preset | None:
        """The preset of a task, or None."""
        presets = [
            preset
            for preset in self.presets
            if preset.probe == f"{probe.kind}/{probe.name}"
            and (not preset.datasets or spec.name in preset.datasets)
        ]
        return max(presets, key=lambda preset: bool(preset.datasets), default=None)


PROTOCOLS: Registry[Protocol] = Registry("protocol", "protocols", instance_of(Protocol))


def register_protocol(protocol: Protocol) -> Protocol:
    """Add a protocol. Raises ``UserError`` when its name is registered already."""
    return PROTOCOLS.register(protocol.name, protocol)


OWN = register_protocol(
    Protocol("own", "this package's own settings: the probe's defaults and what the suite changes")
)


def find_preset(name: str, spec: DatasetSpec, probe: Probe) -> Preset:
    """The preset of a protocol for a task; that of ``own`` is empty.

    Raises:
        UserError: unknown protocol, or one without a preset for the task (names the tasks that have
            one).
    """
    protocol = PROTOCOLS.find(name)
    if protocol is OWN:
        return Preset(f"{probe.kind}/{probe.name}", {})
    if preset := protocol.preset(spec, probe):
        return preset
    applicable = [task for task, pair in tasks().items() if protocol.preset(*pair)]
    raise UserError(
        f"protocol {name} does not apply to {spec.name}/{probe.name}; it applies to"
        f" {', '.join(sorted(applicable))}"
    )


def check_required(name: str, spec: DatasetSpec, probe: Probe) -> None:
    """Raise ``UserError`` where a copy of a dataset lacks what a protocol's preset requires.

    Args:
        spec: of the copy, see ``DatasetSpec.at``.
    """
    for key, value in find_preset(name, spec, probe).required.items():
        if (actual := spec.extra.get(key)) != value:
            raise UserError(
                f"protocol {name} needs {spec.name} with {key}={value}, and this copy has"
                f" {key}={actual}; add what is missing, or choose another protocol"
            )


def preset_deviations(preset: Preset, settings: Any, spec: DatasetSpec) -> list[str]:
    """``max_iters=100 instead of 40000`` for each setting and fact of the dataset that differs."""
    pairs = {key: (getattr(settings, key), value) for key, value in preset.settings.items()}
    pairs |= {key: (spec.extra.get(key, "none"), value) for key, value in preset.data.items()}
    return [
        f"{key}={actual} instead of {published}"
        for key, (actual, published) in pairs.items()
        if actual != published
    ]
