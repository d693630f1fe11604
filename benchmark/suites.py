"""Suites: named lists of tasks with their settings.

A suite may create its own data and weights, as the mini world does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cliptex_common.errors import UserError
from cliptex_common.registry import Registry, instance_of
from cliptex_common.settings import setting_of
from probes.registry import find_task, trained_task

if TYPE_CHECKING:
    from backbones.backbone import Backbone
    from backbones.cliptex.recipes import Recipe
    from benchmark.executor import Executor
    from benchmark.stages import TrainedWeights


@dataclass(frozen=True)
class BackboneSource:
    """How to create a backbone and, if the suite trained it, by which run and at what cost.

    Attributes:
        create_arguments: keyword arguments of ``backbones.create``, from any folder.
        run: id of the MLflow run that trained its weights; '' if unknown.
        cost: of the weights: ``train_seconds``, ``label_seconds`` …
        name: of the backbone; label: that the user gives it.
        settings: of the recipe that trained the user's weights, where they are not its defaults.
        request: as ``--backbone`` takes it.
    """

    create_arguments: Mapping[str, Any]
    run: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    label: str = ""
    settings: str = ""
    request: str = ""

    @property
    def column(self) -> str:
        """What its column is called: its label, or its name and what its recipe changes of the
        method."""
        changes = [word for word in self.settings.split() if word.startswith(("λ", "experts"))]
        return self.label or " ".join([self.name, *changes])


class NotMade(Exception):
    """A pipeline without an executor would have to make something first.

    Attributes:
        titles: of what would be made, in the order of the work.
    """

    def __init__(self, *titles: str) -> None:
        super().__init__(", ".join(titles))
        self.titles = titles


class Pipeline(Protocol):
    """The data and weights that a suite makes itself, such as the mini world and CLIPTeX on it.

    Nothing is made until it is awaited, and each result once, however many await it; what exists is
    returned at once. Without an executor nothing is made or written: what does not exist raises
    ``NotMade``.

    Attributes:
        data: dataset → folder, known before anything is made.
    """

    data: Mapping[str, Path]

    async def make_data(self) -> None:
        """Make the folders of ``data``."""

    def trains(self, name: str) -> bool:
        """Whether the suite trains this backbone."""

    def architecture(self) -> Backbone:
        """The architecture of all backbones that the suite trains, untrained."""

    async def weights(self, name: str, seed: int) -> BackboneSource:
        """How to create a backbone that the suite trains, once its weights exist."""

    async def train(self, recipe: Recipe, parent: str = "") -> TrainedWeights:
        """The weights of any recipe, with the data, labels and initial weights of the suite's own.

        Args:
            parent: id of the MLflow run that the training's run nests under, '' for none.
        """


@dataclass(frozen=True)
class Suite:
    """A named list of tasks.

    Attributes:
        name: also the MLflow experiment.
        about: one line for ``list suites``.
        tasks: task → changes to its probe's settings, in the order of the report. Several values
            of an axis, ``"224,448"`` as for ``--set`` or a list, make variants.
        default_backbones: used without ``--backbone``.
        backbone_sets: name → the backbones that run if ``--backbone`` gives this name alone. A set
            that contains its own name is a backbone with its baselines: ``cliptex`` → (``random``,
            ``clip``, ``clip-ft``, ``cliptex``); ``--only`` leaves the baselines out. A set without
            its own name, such as ``ablation``, is only short for its backbones.
        pipeline: (executor or None, MLflow experiment) → what makes the suite's own data and
            weights; None if it has none.
        training_settings: changes to the recipes that a sweep trains.
        skips_absent_data: leave out, and name, tasks whose dataset has no folder.
        average: how the mean of the main metrics of all tasks is called, where this is a published
            figure.
        groups: name → datasets. There is then an average for each probe and tier, the mean over
            groups of the mean over their datasets, of ``group_metric``.
        images: how many images of each split are read, evenly spaced; None for all.
        train_images: likewise of train alone, where the suite is defined by this number.
        any_dataset: accept tasks on datasets of no suite, with the probes' own settings.
        unlisted: task, dataset, or '' for every dataset → changes to the settings of a task on the
            suite's datasets that it does not list, as far as its probe has them.
    """

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, Any]]
    default_backbones: Sequence[str] = ()
    backbone_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pipeline: Callable[[Executor | None, str], Pipeline] | None = None
    training_settings: Mapping[str, Any] = field(default_factory=dict)
    skips_absent_data: bool = False
    average: str = ""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    group_metric: str = "top1"
    images: int | None = None
    train_images: int | None = None
    any_dataset: bool = False
    unlisted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def datasets(self) -> set[str]:
        """Of the tasks that it lists."""
        return {task.partition("/")[0] for task in self.tasks}


SUITES: Registry[Suite] = Registry("suite", "suites", instance_of(Suite), ("benchmark.catalog",))


def register_suite(suite: Suite) -> Suite:
    """Add a suite. Raises ``UserError`` if its name is taken."""
    return SUITES.register(suite.name, suite)


def cross(
    datasets: Sequence[str], probes: Sequence[str], **settings: Any
) -> dict[str, dict[str, Any]]:
    """Every dataset with every probe: ``{"voc/linear": settings, …}``."""
    return {f"{dataset}/{probe}": settings for dataset in datasets for probe in probes}


def choose_suite(tasks: Sequence[str]) -> Suite:
    """The first suite that accepts all tasks, if possible one that lists them all. If none accepts
    them, a suite of these tasks alone, each with the settings that its own suite gives it. Suites
    are in order of registration, ``mini`` first.

    Raises:
        UserError: no such task, or tasks of two suites that make their own data.
    """
    candidates = [
        suite
        for suite in SUITES.load_entry_points().values()
        # a suite on a part of the images is asked for by its name
        if suite.images is None
        and suite.train_images is None
        and all(settings_in(suite, task) is not None for task in tasks)
    ]
    names = list(dict.fromkeys(task.partition(":")[0] for task in tasks))
    if not candidates:
        return _combined_suite(names)
    return next((suite for suite in candidates if suite.tasks.keys() >= set(names)), candidates[0])


def _combined_suite(tasks: Sequence[str]) -> Suite:
    """See ``choose_suite``."""
    if len(tasks) == 1:
        raise UserError(f"no suite has the task {tasks[0]}; name one that does with --suite")
    owners = {task: choose_suite([task]) for task in tasks}
    suites = list({owner.name: owner for owner in owners.values()}.values())
    makers = [suite for suite in suites if suite.pipeline]
    if len(makers) > 1:
        listed = ", ".join(f"{task} of {owner.name}" for task, owner in owners.items())
        raise UserError(f"two of these suites make their own data ({listed}); run them apart")
    settings = {task: settings_in(owner, task) or {} for task, owner in owners.items()}
    name = "+".join(suite.name for suite in suites)
    if makers:
        return replace(makers[0], name=name, tasks=settings)
    return Suite(name, about="tasks of several suites", tasks=settings)


def settings_in(suite: Suite, task: str) -> Mapping[str, Any] | None:
    """A suite's changes to the settings of a task, or None if it does not accept the task.

    A variant (``TASK:VALUE``) has the settings of its task, and a task that is scored with what
    another one trains has those of that one. A task that the suite does not list is accepted if the
    suite lists others on its dataset, or if ``any_dataset`` allows it; see ``Suite.unlisted``.
    """
    task = task.partition(":")[0]
    trained = trained_task(task)
    for name in (trained, task):  # the settings are those of the task that trains, if it has any
        if name in suite.tasks:
            return suite.tasks[name]
    dataset = trained.partition("/")[0]
    if dataset not in suite.datasets:
        suites = SUITES.load_entry_points().values()
        is_listed = any(dataset in each.datasets for each in suites)
        return {} if suite.any_dataset and not is_listed else None
    probe = find_task(trained)[1]
    names = [name for name in (trained, dataset, "") if name in suite.unlisted]
    changes = suite.unlisted[names[0]] if names else {}
    return {key: changes[key] for key in changes if setting_of(key) in probe.setting_names}
