"""What a run will do, decided before any work: backbones, tasks with settings and data, and which
tasks share a unit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones.cliptex.recipes import changed_settings
from backbones.registry import located_name
from backbones.weights import WEIGHTS_SUFFIXES, checkpoints, read_metadata
from benchmark.executor import Executor, decide_precision
from benchmark.options import DataOptions, FolderOptions, RunOptions
from benchmark.progress import reporter
from benchmark.suites import SUITES, BackboneSource, Pipeline, Suite, choose_suite
from benchmark.tasks import (
    BackboneInfo,
    Job,
    PlannedTask,
    describe_backbone,
    plan_tasks,
    stored_heads,
)
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.files import content_key, expand_user
from cliptex_common.images import spread_indices
from probes.base import NotApplicable, Probe
from probes.datasets.base import Lister, PreparedDataset, Sample, Split, UnfitCopy
from probes.datasets.check import DatasetNotFound, find_folder, prepare
from probes.features.files import chosen_limit
from probes.registry import check_required, find_task
from probes.settings import TrainingSettings

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Plan:
    """What a run or a sweep does: tasks on their data, and of a run the backbones.

    Attributes:
        options: of the command.
        backbones: column → how its backbone is created, but for the seed.
        absent: tasks of the suite that are left out because their data have no folder.
        notes: lines to print first.
        pipeline: makes the data and weights that are the suite's own, if it has any; see
            ``with_pipeline``.
        data: task → its dataset; empty before ``with_data``.
    """

    options: Any
    suite: Suite
    tasks: Sequence[PlannedTask]
    backbones: Mapping[str, BackboneSource] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    absent: Sequence[PlannedTask] = ()
    notes: Sequence[str] = ()
    pipeline: Pipeline | None = None
    data: Mapping[str, PreparedDataset] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        return self.options.experiment or self.suite.name

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Column and seed of each backbone."""
        return [(name, seed) for seed in self.seeds for name in self.backbones]

    def with_pipeline(self, executor: Executor | None) -> Self:
        """The plan with the suite's pipeline. ``executor`` makes what does not exist; with None
        that raises ``NotMade``."""
        make = self.suite.pipeline
        return replace(self, pipeline=make(executor, self.experiment) if make else None)

    async def with_data(self, num_workers: int, cached_only: bool = False) -> Self:
        """The plan with its data, made by the suite and checked. Raises as ``prepare_data``."""
        if self.pipeline is not None:
            await self.pipeline.make_data()
        data = prepare_data(
            self.tasks, self.folders, self.options, num_workers, cached_only, self.suite
        )
        return replace(self, data=data)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """``find_folders`` of the plan."""
        created = self.pipeline.data if self.pipeline else NOTHING
        return find_folders(self.tasks, self.options, created)

    @cached_property
    def units(self) -> list[list[PlannedTask]]:
        """The tasks of each unit of work: those that are scored on the same photographs (by their
        names), such as three probes of VOC, or depth and normals of NYU, and those that are scored
        on other images with what was trained for these. A detector is alone. Variants of different
        sizes share no features and are apart. Without data a unit for each task."""
        if not self.data:
            return [[task] for task in self.tasks]
        stem_keys: dict[int, str] = {}  # id of a dataset → key, as a million names take seconds
        units: dict[str, list[PlannedTask]] = {}
        for task in self.tasks:
            dataset = self.data[task.name].trained_on or self.data[task.name]
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

    @cached_property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Task → its ``PlannedTask.conditions``, computed once for all backbones and seeds."""
        return {task.name: task.conditions(self.data[task.name]) for task in self.tasks}

    def is_trained(self, column: str) -> bool:
        """Whether the suite trains a backbone; it does not if the user brings weights."""
        arguments = self.backbones[column].create_arguments
        if self.pipeline is None or arguments["weights"] is not None:
            return False
        return self.pipeline.trains(arguments["name"])

    async def source(self, column: str, seed: int) -> BackboneSource:
        """How to create a backbone, whose weights are trained first if the suite trains it."""
        source = self.backbones[column]
        if self.pipeline is not None and self.is_trained(column):
            return await self.pipeline.weights(source.create_arguments["name"], seed)
        return replace(source, create_arguments={**source.create_arguments, "seed": seed})

    def planned_backbone(self, column: str) -> BackboneInfo:
        """A backbone before any work: of one that the suite trains its architecture, else with the
        weights of the first seed. Raises ``UserError`` if it cannot be built."""
        arguments = self.backbones[column].create_arguments
        if self.is_trained(column):
            return replace(self.trained_architecture, name=arguments["name"], label=column)
        arguments = {**arguments, "seed": self.seeds[0]}
        info = BackboneInfo.recall(arguments) or describe_backbone(arguments)
        return replace(info, label=column)

    @cached_property
    def trained_architecture(self) -> BackboneInfo:
        """Of the backbones that the suite trains."""
        assert self.pipeline is not None
        return BackboneInfo.of(self.pipeline.architecture(), {})

    def inapplicable_tasks(self, backbone: BackboneInfo) -> dict[str, str]:
        """Task → why it does not apply to a backbone, of those that do not. Raises ``UserError`` if
        a probe does not fit the backbone or its dataset."""
        reasons = {}
        for task in self.tasks:
            data = PreparedDataset(task.spec.name, self.folders[task.spec.name], {})
            try:
                task.probe.fits(backbone, data, task.settings)
                Probe.fits(task.probe, backbone, data, task.settings)  # a plugin's may not call it
            except NotApplicable as error:
                reasons[task.name] = str(error)
        return reasons

    def job(self, tasks: Sequence[PlannedTask], experiment: str, **of_row: Any) -> Job:
        """The unit of work that probes ``tasks``, one of ``units`` or those of it that are not
        finished.

        Args:
            experiment: in MLflow.
            of_row: backbone, model, seed and parent run; see ``Job``.
        """
        names = [task.name for task in tasks]
        return Job(
            tasks=tuple(tasks),
            data={name: self.data[name] for name in names},
            conditions={name: self.conditions[name] for name in names},
            data_root=self.options.data_root,
            suite=self.suite.name,
            experiment=experiment,
            force=getattr(self.options, "force", False),
            **of_row,
        )

    def as_config_file(self) -> dict[str, Any]:
        """The options as a ``--config`` file of the same run: absolute paths, what the plan has
        resolved (backbones, suite), nothing about execution."""
        options = self.options
        values: dict[str, Any] = {
            "backbone": [source.request for source in self.backbones.values()],
            "only": True,
            "seed": self.seeds[0],
            "seeds": len(self.seeds),
            "suite": self.suite.name if self.suite.name in SUITES else None,
            "task": list(options.tasks),
            "set": dict(options.overrides),
            "partial": options.partial,
            "limit": options.limit,
            "data": {name: str(path.absolute()) for name, path in options.data.items()},
            "weights": options.weights and str(options.weights.absolute()),
            "architecture": options.architecture and located_name(options.architecture),
            "tag": dict(options.tags),
            "head": list(options.heads),
            "data-root": options.data_root and str(options.data_root.absolute()),
            "experiment": self.experiment,
            "plugin": [str(path) for path, plugin in registry.LOADED.items() if plugin.entries],
        }
        return {key: value for key, value in values.items() if value or key == "seed"}


def make_plan(options: RunOptions) -> Plan:
    """The plan of a run.

    Raises:
        UserError: an unknown backbone, suite, task or setting, or options that contradict each
            other.
    """
    chosen_limit()  # raises for a wrong one, which would only show when features are first cached
    heads = stored_heads(options.heads)
    suite = SUITES.find(options.suite) if options.suite else choose_suite(options.tasks)
    tasks = plan_tasks(suite, options.tasks, options.overrides, heads)
    names, notes = _backbones(suite, options)
    names = list(_with_checkpoints(names))
    if options.weights is not None and len(names) != 1:
        raise UserError(
            f"--weights applies to one backbone, but {len(names)} are given:"
            f" {', '.join(names)}; write --backbone LABEL=FILE for each"
        )
    sources = backbone_sources(names, options)
    absent: Sequence[PlannedTask] = ()
    chosen = {name.partition(":")[0] for name in options.tasks or suite.tasks}  # without variants
    if added := [task.name for task in tasks if task.name.partition(":")[0] not in chosen]:
        notes.append(f"{', '.join(added)}: trained here, because other tasks use its head")
    if suite.skips_absent_data and not options.tasks:
        tasks, absent, unfit = _split_by_folder(suite, tasks, options)
        if absent:
            notes.append(
                f"{len(absent)} of {len(tasks) + len(absent)} tasks of {suite.name} have no data:"
                f" {_folders(absent)}"
            )
        notes += [f"{name} is left out: {reason}" for name, reason in unfit.items()]
    if "size" in options.overrides:
        others = [task.name for task in tasks if "size" not in task.probe.setting_names]
        if others:
            notes.append(
                f"{', '.join(others)}: no setting `size`; `list settings {others[0]}` shows which"
                " give the size of images"
            )
    specs = [each.spec for task in (*tasks, *absent) for each in task.needed_tasks]
    unused = options.data.keys() - {name for spec in specs for name in (spec.name, spec.folder)}
    if unused and not options.tasks:
        notes.append(f"--data {', '.join(unused)}: suite {suite.name} has no task on it")
    if any(task.is_precision_open for task in tasks):
        # as far as this machine can tell; ``run.ask_for_precision`` asks a worker for the rest
        precision, note = decide_precision(options)
        tasks = [task.with_precision(precision) for task in tasks]
        notes.append(note)
    seeds = range(options.seed, options.seed + options.seeds)
    return Plan(options, suite, tasks, sources, seeds, absent, notes)


def _backbones(suite: Suite, options: RunOptions) -> tuple[list[str], list[str]]:
    """Names of the backbones to run, and notes about them. Raises ``UserError`` if there are none.

    If there is exactly one name and it is a key of ``Suite.backbone_sets``, that set runs instead.
    A set that contains its own name is a backbone with its baselines (see ``Suite``); with
    ``--only`` or ``--weights``, only the backbone runs.
    """
    names = list(dict.fromkeys(options.backbones)) or list(suite.default_backbones)
    if not names:
        raise UserError(f"suite {suite.name} has no default backbones; give --backbone NAME")
    if len(names) != 1 or names[0] not in suite.backbone_sets:
        return names, []
    name, members = names[0], list(suite.backbone_sets[names[0]])
    if name not in members:
        return members, [f"{name} stands for {', '.join(members)}"]
    if options.only or options.weights is not None or members == names:
        return names, []
    baselines = ", ".join(member for member in members if member != name)
    return members, [f"{name} runs beside its baselines {baselines} (--only: without them)"]


LABELLED = re.compile(r"([^=/:(]+)=(.+)")


def backbone_sources(names: Sequence[str], options: RunOptions) -> dict[str, BackboneSource]:
    """Column → how its backbone is created, but for the seed. Raises ``UserError`` for an unknown
    name or source, a checkpoint of unknown architecture, or two backbones with one label.

    Args:
        names: each ``NAME`` or ``LABEL=SOURCE``.
    """
    if options.name and len(options.backbones) != 1:
        raise UserError(f"--name {options.name}: it labels one backbone; write LABEL=NAME for each")
    sources: dict[str, BackboneSource] = {}
    for item in names:
        match = LABELLED.fullmatch(item)
        label, name = match.groups() if match else ("", item)
        name = re.sub("^hub:", "hub/", name)  # as the other sources are written
        if options.name and item in options.backbones:
            label = options.name
        arguments: dict[str, Any] = {"name": name}
        arguments["weights"] = options.weights and str(options.weights)
        if match and not options.weights and (path := find_checkpoint(name)):
            arguments = _checkpoint_arguments(item, path, options.architecture)
            name = name if name.startswith(("run:", "hf:")) else str(path)
        prefix = "random/" if arguments["name"].startswith("random/") else ""
        try:
            entry = backbones.find(arguments["name"].removeprefix(prefix), fresh=True)
        except UserError as error:
            if item.startswith("="):
                raise UserError(
                    f"--backbone {item}: the label before = is empty; name the column, as in"
                    f" my-net{item}"
                ) from error
            if not match and (Path(name).suffix in WEIGHTS_SUFFIXES or Path(name).is_dir()):
                raise UserError(
                    f"--backbone {item}: label files of weights, as in LABEL={item}"
                ) from error
            absent = f"--backbone {item}: no such file or folder, and " if match else ""
            raise UserError(f"{absent}{error}") from error
        arguments["name"] = located_name(arguments["name"])
        request = f"{label}={located_name(name)}" if label else located_name(name)
        settings = checkpoint_metadata(arguments["weights"])[2]
        source = BackboneSource(
            arguments,
            name=f"{prefix}{entry.name}",
            label=label,
            settings=settings,
            request=request,
        )
        if source.column in sources:
            raise UserError(
                f"--backbone {item}: two are called {source.column!r}; give each another label"
            )
        sources[source.column] = source
    return sources


def _with_checkpoints(names: Sequence[str]) -> Iterator[str]:
    """``LABEL=FOLDER`` as ``LABEL step N=FILE`` of each checkpoint, by which reports know a
    training (``reports.trainings``). Raises ``UserError`` if there is none."""
    for item in names:
        match = LABELLED.fullmatch(item)
        if not (match and match[2] not in backbones.names() and expand_user(match[2]).is_dir()):
            yield item
            continue
        if not (files := checkpoints(expand_user(match[2]))):
            raise UserError(
                f"--backbone {item}: no checkpoint in the folder has a step in its name, as in"
                " step-1000.safetensors, or checkpoint-1000/model.safetensors"
            )
        for step, path in files.items():
            yield f"{match[1]} step {step}={path}"


def find_checkpoint(source: str) -> Path | None:
    """The file of a ``SOURCE`` of ``--backbone LABEL=SOURCE``, which need not exist; None if it is
    a name. Raises ``UserError`` if it cannot be fetched."""
    kind, _, rest = source.partition(":")
    if kind == "run":
        from benchmark.stages import trained_weights  # with all that trains

        return trained_weights(rest)
    if kind == "hf":
        from backbones.adapters.common import hub_file

        parts = rest.split("/")
        file = "/".join(parts[2:]) or "model.safetensors"
        return hub_file("/".join(parts[:2]), [file], backbone=source, weights=False)
    path = expand_user(source).absolute()
    return path if path.is_file() or path.suffix in WEIGHTS_SUFFIXES else None


def _checkpoint_arguments(item: str, path: Path, architecture: str | None) -> dict[str, Any]:
    """Arguments of ``backbones.create`` for a checkpoint. Raises ``UserError`` if nothing says its
    architecture."""
    stored, recipe, _ = checkpoint_metadata(path)
    if stored and stored != architecture:
        name = recipe if recipe in backbones.names() else stored
        return {"name": name, "weights": str(path), "any_architecture": True}
    if not architecture:
        from backbones.adapters.open_clip import nearest_architectures

        raise UserError(
            f"--backbone {item}: the file does not say its architecture; add --architecture NAME,"
            f" nearest by shapes: {nearest_architectures(path)}"
        )
    return {"name": architecture, "weights": str(path)}


def checkpoint_metadata(path: str | Path | None) -> tuple[str, str, str]:
    """Architecture, name of the recipe, and its ``changed_settings`` of a checkpoint; '' for what
    it does not say."""
    metadata = read_metadata(Path(path)) if path and Path(path).is_file() else {}
    recipe = json.loads(metadata.get("extra", "{}")).get("recipe", {})
    changes = changed_settings(recipe) if recipe else ""
    return metadata.get("architecture", ""), recipe.get("name", ""), changes


def _split_by_folder(
    suite: Suite, tasks: Sequence[PlannedTask], options: DataOptions
) -> tuple[list[PlannedTask], list[PlannedTask], dict[str, str]]:
    """Tasks whose dataset has a folder, tasks whose dataset has none, and dataset → reason of unfit
    copies, whose tasks are in neither. Raises ``UserError`` if no task has a folder."""
    present, absent, unfit = [], [], {}
    for task in tasks:
        try:
            for each in task.needed_tasks:
                each.spec.at(find_folder(each.spec, options.data_root, options.data))
            present.append(task)
        except DatasetNotFound:
            absent.append(task)
        except UnfitCopy as error:
            unfit[task.spec.name] = str(error)
    if not present:
        where = f"in {options.data_root}" if options.data_root else "given; add --data-root DIR"
        count = len({task.spec.name for task in tasks})
        raise UserError(
            f"suite {suite.name!r}: none of its {count} datasets is {where}; its folders are"
            f" {_folders(absent)}"
        )
    return present, absent, unfit


def _folders(tasks: Sequence[PlannedTask]) -> str:
    """``wds_cifar10, wds_mnist …``, at most six."""
    folders = list(dict.fromkeys(task.spec.folder for task in tasks))
    return ", ".join(folders[:6]) + " …" * (len(folders) > 6)


# stands for the folder of the images that stored heads were trained on; nothing reads it
NO_FOLDER = Path("absent")


def find_folders(
    tasks: Sequence[PlannedTask], options: FolderOptions, created: Mapping[str, Path] = NOTHING
) -> dict[str, Path]:
    """Dataset → folder: the user's ``--data``, what the suite creates, or under ``--data-root``.

    Args:
        created: dataset → folder, of those that the suite creates, perhaps later.

    Raises:
        DatasetNotFound: a dataset has no folder.
    """
    specs = {each.spec.name: each.spec for task in tasks for each in task.needed_tasks}
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
    suite: Suite | None = None,
) -> dict[str, PreparedDataset]:
    """Task → its dataset; each dataset and set of splits is checked once, and the result is cached.

    Args:
        folders: dataset → folder, see ``find_folders``.
        cached_only: write nothing; a dataset that was never checked has no fingerprint.
        suite: that may read a part of the images only.

    Raises:
        UserError: a dataset is incomplete or broken, its copy is not the one that a protocol
            requires, or a batch is set that is larger than it.
    """
    needed = {each.name: each for task in tasks for each in task.needed_tasks}.values()
    for task in needed:
        trains = task.scored_with is None
        if trains and (protocol := getattr(task.settings, "protocol", "")):
            check_required(protocol, task.spec.at(folders[task.spec.name]), task.probe)
    images = suite.images if suite else None
    # split → images to read, None for all
    limits: dict[Split, int | None] = {"train": images, "val": images}
    if options.limit:
        limits["val"] = min(options.limit, images or options.limit)
    datasets: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in needed:
        spec, splits = task.spec, task.splits
        if (spec.name, splits) not in datasets:
            if suite and suite.train_images:
                lister = partial(spread_train, spec.list_samples, suite.train_images)
                spec = replace(spec, list_samples=lister)
            datasets[spec.name, splits] = prepare(
                spec,
                folders[spec.name],
                splits={split: limits[split] for split in splits},
                partial=options.partial,
                workers=num_workers,
                progress=reporter(),
                cached_only=cached_only,
            )
        if trains:
            _check_batch(task, datasets[spec.name, splits])
    data = {}
    for task in tasks:
        dataset, trained = datasets[task.spec.name, task.splits], task.scored_with
        if trained and (spec := find_task(trained.name)[0]).name != task.spec.name:
            if isinstance(trained, PlannedTask):
                trained_on = datasets[spec.name, trained.splits]
            else:
                # of what stored heads were trained on, only the declaration is read
                trained_on = PreparedDataset(spec.name, NO_FOLDER, {"train": [], "val": []})
            dataset = replace(dataset, trained_on=trained_on)
        if task.stored_heads:
            dataset.check_classes(task.stored_heads.classes)
        elif dataset.trained_on:
            dataset.check_classes(dataset.trained_on.classes)
        data[task.name] = dataset
    return data


def spread_train(lister: Lister, count: int, root: Path, split: Split) -> list[Sample]:
    """The samples of a split; of train at most ``count``, evenly spaced."""
    samples = lister(root, split)
    if split != "train":
        return samples
    return [samples[index] for index in spread_indices(len(samples), count)]


def _check_batch(task: PlannedTask, data: PreparedDataset) -> None:
    """Refuse a batch of MMEngine's training that a user sets above the number of images and above
    the default, which small datasets may have.

    Raises:
        UserError: the batch is larger than the training images.
    """
    is_set = any(change.startswith("batch_size=") for change in task.changed)
    if not is_set or not isinstance(task.settings, TrainingSettings):
        return
    images = max(1, round(task.train_share * len(data.samples["train"])))
    if task.settings.batch_size > max(images, type(task.settings).batch_size):
        raise UserError(
            f"batch_size={task.settings.batch_size}, but {task.name} is trained on"
            f" {images:,} image{'s' if images > 1 else ''}; set at most batch_size={images}"
        )
