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
from benchmark.planning.options import DataOptions, FolderOptions
from benchmark.planning.plan import RunPlan
from benchmark.probing.records import BackboneInfo, PlannedTask
from benchmark.probing.unit import describe_backbone
from benchmark.suites.registry import BackboneSource
from cliptex_common.files import content_key
from probes.base import NotApplicable, Probe
from probes.checks.check import find_folder, prepare
from probes.datasets.base import PreparedDataset, Split
from probes.protocols.base import check_required

NOTHING: Mapping[str, Path] = MappingProxyType({})
ABSENT = Path("absent")  # folder of the images that stored heads were trained on


def find_folders(
    tasks: Sequence[PlannedTask], options: FolderOptions, created: Mapping[str, Path] = NOTHING
) -> dict[str, Path]:
    """Dataset → folder: the user's ``--data``, what the suite creates, or under ``--data-root``.

    Args:
        created: dataset → folder, of those that the suite creates, perhaps later.

    Raises:
        DatasetNotFound: a dataset has no folder.
    """
    specs = {each.spec.name: each.spec for task in tasks for each in task.with_training_task}
    folders = {name: root for name, root in created.items() if name not in options.data}
    return {
        name: folders.get(name) or find_folder(spec, options.data_root, options.data)
        for name, spec in specs.items()
    }


def prepare_data(
    tasks: Sequence[PlannedTask],
    folders: Mapping[str, Path],
    options: DataOptions,
    num_workers: int,
    cached_only: bool = False,
    images: int | None = None,
) -> dict[str, PreparedDataset]:
    """Task → its dataset; each dataset and set of splits is checked once, and the result is cached.

    Args:
        folders: dataset → folder, see ``find_folders``.
        cached_only: write nothing; a dataset that was never checked raises ``NotChecked``.
        images: of each split at most, of a suite that is a quick look; None for all.

    Raises:
        UserError: a dataset is incomplete or broken, or its copy is not the one that a protocol
            requires.
    """
    needed = {each.name: each for task in tasks for each in task.with_training_task}.values()
    for task in needed:
        is_trained = task.training_task == task
        if is_trained and (protocol := getattr(task.settings, "protocol", "")):
            check_required(protocol, task.spec.at(folders[task.spec.name]), task.probe)
    # split → images to read, None for all
    limits: dict[Split, int | None] = {"train": images, "val": images}
    if options.limit:
        limits["val"] = min(options.limit, images or options.limit)
    datasets: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in needed:
        spec, splits = task.spec, task.splits
        if (spec.name, splits) not in datasets:
            datasets[spec.name, splits] = prepare(
                spec,
                folders[spec.name],
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
        if task.heads:
            data[task.name].check_classes(task.heads.classes)
        elif own := data[task.name].trained_on:
            data[task.name].check_classes(own.classes)
    return data


def check_fit(
    tasks: Sequence[PlannedTask], folders: Mapping[str, Path], backbone: BackboneInfo
) -> dict[str, str]:
    """Task → why it does not apply to a backbone, of those that do not.

    Args:
        folders: dataset → folder, see ``find_folders``.

    Raises:
        UserError: a probe does not fit the backbone or its dataset.
    """
    reasons = {}
    for task in tasks:
        root = folders[task.spec.name]
        data = PreparedDataset(task.spec.at(root), root, {})
        try:
            task.probe.fits(backbone, data, task.settings)
            Probe.fits(task.probe, backbone, data, task.settings)  # a plugin's may not call it
        except NotApplicable as error:
            reasons[task.name] = str(error)
    return reasons


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
        if self.pipeline is not None:
            await self.pipeline.make_data()
        return prepare_data(
            plan.tasks, self.folders, plan.options, num_workers, cached_only, plan.suite.images
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
        return check_fit(self.plan.tasks, self.folders, backbone)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """``find_folders`` of the plan."""
        created = self.pipeline.data if self.pipeline else NOTHING
        return find_folders(self.plan.tasks, self.plan.options, created)

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
