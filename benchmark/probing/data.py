"""The data and backbones of a run, checked before hours of work start, and the tasks that share
images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from benchmark.execution import Executor
from benchmark.execution.progress import reporter
from benchmark.planning.options import DataOptions
from benchmark.planning.plan import RunPlan
from benchmark.probing.records import BackboneInfo, PlannedTask, with_training_tasks
from benchmark.probing.unit import describe_backbone
from benchmark.suites.registry import BackboneSource
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from probes.base import NotApplicable
from probes.checks.check import check_names, find_folder, prepare
from probes.datasets.base import DatasetSpec, PreparedDataset, Split
from probes.layers import layer_number
from probes.protocols.base import check_required

ABSENT = Path("absent")  # folder of the images that stored heads were trained on


def prepare_data(
    tasks: Sequence[PlannedTask],
    options: DataOptions,
    num_workers: int,
    cached_only: bool = False,
    images: int | None = None,
    created: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, PreparedDataset]:
    """Task → its dataset; each dataset and set of splits is checked once, and the result is cached.

    Args:
        cached_only: write nothing; a dataset that was never checked raises ``NotChecked``.
        images: of each split at most, of a suite that is a quick look; None for all.
        created: dataset → folder, of those that the suite creates.

    Raises:
        UserError: a dataset is missing, incomplete or broken, or its copy is not the one that a
            protocol requires.
    """
    roots = _find_folders(tasks, options, created)
    for task in {
        task.training_task.name: task.training_task for task in tasks if not task.heads
    }.values():
        if protocol := getattr(task.settings, "protocol", ""):
            check_required(protocol, task.spec.at(roots[task.spec.name]), task.probe)
    # split → images to read, None for all
    limits: dict[Split, int | None] = {"train": images, "val": images}
    if options.limit:
        limits["val"] = min(options.limit, images or options.limit)
    datasets: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in with_training_tasks(tasks):
        spec, splits = task.spec, task.splits
        if (spec.name, splits) not in datasets:
            datasets[spec.name, splits] = prepare(
                spec,
                roots[spec.name],
                splits={split: limits[split] for split in splits},
                partial=options.partial,
                workers=num_workers,
                progress=reporter(),
                cached_only=cached_only,
            )
    data = {}
    for task in tasks:
        trained = task.training_task
        data[task.name] = datasets[task.spec.name, task.splits]
        if trained.spec.name != task.spec.name:
            if task.heads:
                trained_on = PreparedDataset(trained.spec, ABSENT, {"train": [], "val": []})
            else:
                trained_on = datasets[trained.spec.name, trained.splits]
            data[task.name] = replace(data[task.name], trained_on=trained_on)
            trained_classes = task.heads.classes if task.heads else len(trained_on.classes)
            _check_classes(data[task.name].spec, data[task.name].classes, trained_classes)
    return data


def _check_classes(spec: DatasetSpec, classes: Sequence[str], trained_classes: int) -> None:
    """Raise ``UserError`` if what is trained on another dataset cannot have these classes."""
    if classes and not spec.transfer.get("classes") and len(classes) != trained_classes:
        raise UserError(
            f"{spec.name} has {len(classes)} classes, what is trained on {spec.trained_on} has"
            f" {trained_classes}; transfer['classes'] of the dataset says which of them stand for"
            " its own"
        )


def check_fit(
    tasks: Sequence[PlannedTask],
    options: DataOptions,
    created: Mapping[str, Path],
    backbone: BackboneInfo,
) -> dict[str, str]:
    """Task → why it does not apply to a backbone, of those that do not.

    Args:
        created: dataset → folder, of those that the suite creates, perhaps later.

    Raises:
        UserError: a dataset has no folder, the backbone has no layer that a task names, or a probe
            does not fit it or its dataset.
    """
    reasons, roots = {}, _find_folders(tasks, options, created)
    for task in tasks:
        root = roots[task.spec.name]
        for layer in task.encoded_layers:
            layer_number(layer, backbone.depth, backbone.name)
        data = PreparedDataset(task.spec.at(root), root, {})
        try:
            task.probe.fits(backbone, data, task.settings)
        except NotApplicable as error:
            reasons[task.name] = str(error)
    return reasons


def _find_folders(
    tasks: Sequence[PlannedTask], options: DataOptions, created: Mapping[str, Path]
) -> dict[str, Path]:
    """Dataset → folder: the user's ``--data``, what the suite creates, or under ``--data-root``."""
    check_names(options.data)
    specs = {task.spec.name: task.spec for task in with_training_tasks(tasks)}
    folders = {name: root for name, root in created.items() if name not in options.data}
    return {
        name: folders.get(name) or find_folder(spec, options.data_root, options.data)
        for name, spec in specs.items()
    }


def split_into_units(
    tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """The tasks of each unit of work: those that are scored on the same photographs (by their
    names), such as three probes of VOC, or depth and normals of NYU, and those that are scored on
    other images with what was trained for these. A detector is alone. Variants of different sizes
    share no features and are apart."""
    stem_keys: dict[int, str] = {}  # id of a dataset → key, as a million names take seconds
    units: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        dataset = data[task.name].trained_on or data[task.name]
        if id(dataset) not in stem_keys:
            stem_keys[id(dataset)] = content_key(
                [Path(sample.image).stem for sample in dataset.samples["val"]]
            )
        is_detection = task.spec.kind == "detection"
        key = task.name if is_detection else stem_keys[id(dataset)]
        if task.varies("size"):
            key += f" {task.settings.size}"
        units.setdefault(key, []).append(task)
    return list(units.values())


class RunInputs:
    """The data and backbones of a run.

    Args:
        executor: makes what does not exist; with None that raises ``NotMade``.
    """

    def __init__(self, plan: RunPlan, executor: Executor | None) -> None:
        make = plan.suite.pipeline
        self.plan = plan
        self.pipeline = make(executor, plan.experiment) if make else None

    def is_trained(self, name: str) -> bool:
        """Whether the suite trains a backbone; it does not if the user brings weights."""
        return (
            self.pipeline is not None
            and self.plan.options.weights is None
            and self.pipeline.trains(name)
        )

    async def backbone(self, name: str, seed: int) -> BackboneSource:
        """How to create a backbone, whose weights are trained first if the suite trains it."""
        if self.pipeline is not None and self.is_trained(name):
            return await self.pipeline.weights(name, seed)
        return self._source(name, seed)

    async def data(self, num_workers: int, cached_only: bool = False) -> dict[str, PreparedDataset]:
        """Task → its dataset, made by the suite and checked. Raises as ``prepare_data``."""
        plan = self.plan
        created: Mapping[str, Path] = {}
        if self.pipeline is not None:
            await self.pipeline.make_data()
            created = self.pipeline.data
        return prepare_data(
            plan.tasks, plan.options, num_workers, cached_only, plan.suite.images, created
        )

    def planned_backbone(self, name: str) -> BackboneInfo:
        """A backbone before any work: of one that the suite trains its architecture, else with the
        weights of the first seed. Raises ``UserError`` if it cannot be built."""
        if self.is_trained(name):
            return replace(self._architecture, name=name)
        source = self._source(name, self.plan.seeds[0])
        return describe_backbone(source.create_arguments)

    def inapplicable_tasks(self, backbone: BackboneInfo) -> dict[str, str]:
        """Task → why it does not apply to a backbone. Raises as ``check_fit``."""
        created = self.pipeline.data if self.pipeline else {}
        return check_fit(self.plan.tasks, self.plan.options, created, backbone)

    def _source(self, name: str, seed: int) -> BackboneSource:
        """How to create a backbone that the suite does not train."""
        weights = self.plan.options.weights
        path = None if weights is None else str(weights)
        return BackboneSource({"name": name, "weights": path, "seed": seed})

    @cached_property
    def _architecture(self) -> BackboneInfo:
        """Of the backbones that the suite trains."""
        assert self.pipeline is not None
        return BackboneInfo.of(self.pipeline.architecture(), {})
