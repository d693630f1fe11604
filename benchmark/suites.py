"""Suites: named lists of tasks with their settings.

A suite may create its own data and weights, as the mini world does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cliptex_common.registry import Registry, instance_of

if TYPE_CHECKING:
    from backbones.backbone import Backbone
    from backbones.cliptex.recipes import Recipe
    from benchmark.executor import Executor
    from benchmark.stages import TrainedWeights


@dataclass(frozen=True)
class BackboneSource:
    """How to create a backbone and, if the suite trained it, by which run and at what cost.

    Attributes:
        create_arguments: keyword arguments of ``backbones.create``.
        run: id of the MLflow run that trained its weights; '' if unknown.
        cost: of the weights: ``train_seconds``, ``label_seconds`` …
        label: that the user gives it; settings: of the recipe that trained the user's weights,
            where they are not its defaults.
        request: as ``--backbone`` takes it.
    """

    create_arguments: Mapping[str, Any]
    run: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    settings: str = ""
    request: str = ""

    @property
    def column(self) -> str:
        """What its column is called: its label, or its name and what its recipe changes of the
        method."""
        changes = [word for word in self.settings.split() if word.startswith(("λ", "experts"))]
        return self.label or " ".join([self.create_arguments["name"], *changes])


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
        images: how many images of each split are read, evenly spaced; None for all.
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
    images: int | None = None
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
