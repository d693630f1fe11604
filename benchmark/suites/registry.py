"""Suites: named lists of tasks with their settings.

A suite may create its own data and weights, as the mini world does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cliptex_common.errors import UserError
from cliptex_common.registry import Registry, instance_of
from probes.registry import find_task

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.cliptex.training.recipes import Recipe
    from benchmark.execution import Executor
    from benchmark.stages.weights import TrainedWeights


@dataclass(frozen=True)
class BackboneSource:
    """How to create a backbone and, if the suite trained it, by which run and at what cost.

    Attributes:
        create_arguments: keyword arguments of ``backbones.create``.
        run: id of the MLflow run that trained its weights; '' if unknown.
        cost: of the weights: ``train_seconds``, ``label_seconds`` …
    """

    create_arguments: Mapping[str, Any]
    run: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)


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
        """A backbone that the suite trains."""

    async def train(self, recipe: Recipe, parent: str = "") -> TrainedWeights:
        """The weights of any recipe, from what the suite's own recipe of this seed starts from.

        Args:
            parent: id of the MLflow run that the training's run nests under, '' for none.
        """


@dataclass(frozen=True)
class Suite:
    """A named list of tasks.

    Attributes:
        name: also the MLflow experiment.
        about: one line for ``list suites``.
        tasks: task → changes to its probe's settings, in the order of the report. Text with commas
            for an axis, such as ``"224,448"``, makes variants.
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
        images: how many images of each split are read, evenly spaced; None for all.
        any_dataset: accept tasks on datasets of no suite, with the probes' own settings.
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
    images: int | None = None
    any_dataset: bool = False


SUITES: Registry[Suite] = Registry("suite", "suites", instance_of(Suite), ("benchmark.catalog",))


def register_suite(suite: Suite) -> Suite:
    """Add a suite. Raises ``UserError`` if its name is taken."""
    return SUITES.register(suite.name, suite)


def find_suite(name: str) -> Suite:
    """The suite called ``name``; raises ``UserError`` with the nearest name."""
    return SUITES.find(name)


def choose_suite(name: str | None, tasks: Sequence[str]) -> Suite:
    """The suite called ``name``; without a name the first, in order of registration (``mini``
    before others), that lists all tasks; if none does, the first that accepts them.

    Raises:
        UserError: no such suite or task, or no suite has all of these tasks.
    """
    if name:
        return find_suite(name)
    candidates = [
        suite
        for suite in SUITES.load_entry_points().values()
        if suite.images is None  # a quick look is asked for by its name
        and all(settings_in(suite, task) is not None for task in tasks)
    ]
    if not candidates:
        owners = {task: choose_suite(None, [task]).name for task in tasks if len(tasks) > 1}
        listed = ", ".join(f"{task} of {owner}" for task, owner in owners.items()) or tasks[0]
        raise UserError(
            f"no suite has all of these tasks ({listed}); run those of one suite at a time"
        )
    names = {task.partition(":")[0] for task in tasks}
    return next((suite for suite in candidates if names <= set(suite.tasks)), candidates[0])


def settings_in(suite: Suite, task: str) -> Mapping[str, Any] | None:
    """A suite's changes to the settings of a task, or None if it does not accept the task.

    A variant (``TASK:VALUE``) has the settings of its task. A task that the suite does not list,
    such as ``nyu-depth/dpt-probe3d`` in ``paper``, is accepted if the suite lists others on the
    same dataset (or ``any_dataset`` allows it). It gets the changes that all listed tasks on that
    dataset share. If some of these have the same settings type as the task, only those are
    compared.
    """
    task, _, _ = task.partition(":")
    if task in suite.tasks:
        return suite.tasks[task]
    dataset = _dataset(task)
    if names := [name for name in suite.tasks if _dataset(name) == dataset]:
        settings_type = find_task(task)[1].settings_type
        similar = [name for name in names if find_task(name)[1].settings_type is settings_type]
        settings = [suite.tasks[name] for name in similar or names]
        return {
            key: value
            for key, value in settings[0].items()
            if all(each.get(key) == value for each in settings)
        }
    suites = SUITES.load_entry_points().values()
    listed = {_dataset(name) for each in suites for name in each.tasks}
    return {} if suite.any_dataset and dataset not in listed else None


def _dataset(task: str) -> str:
    return task.partition("/")[0]


def cross(
    datasets: Sequence[str], probes: Sequence[str], **settings: Any
) -> dict[str, dict[str, Any]]:
    """Every dataset with every probe: ``{"voc/linear": settings, …}``."""
    return {f"{dataset}/{probe}": settings for dataset in datasets for probe in probes}
