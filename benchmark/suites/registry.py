"""Suites: named lists of tasks with their settings.

A suite may create its own data and weights, as the mini world does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptex_common.registry import Registry, instance_of
from probes.registry import find_task

if TYPE_CHECKING:
    from backbones.base import Backbone
    from benchmark.stages.graph import Stage


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


@dataclass(frozen=True)
class SuiteArtifacts:
    """The data and weights that a suite creates for a run, as stages: a run makes what does not
    exist yet, a dry run only looks it up.

    Attributes:
        data: dataset → folder, as by ``--data``.
        data_stages: create these folders.
        backbones: (name, seed) → stage that trains that backbone; its result is a
            ``BackboneSource``.
        architecture: builds the architecture of all of them, untrained.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    data_stages: Sequence[Stage] = ()
    backbones: Mapping[tuple[str, int], Stage] = field(default_factory=dict)
    architecture: Callable[[], Backbone] | None = None


@dataclass(frozen=True)
class SuiteTraining:
    """What a sweep trains on.

    Attributes:
        data: as in ``SuiteArtifacts``.
        init: initial weights, as by ``--init``.
        pairs: image-caption pairs, as by ``--pairs``.
        labels: the store of their pseudo-labels.
        weights: (recipe, labels or None) → file for the trained weights.
    """

    data: Mapping[str, Path]
    init: str
    pairs: str
    labels: Path
    weights: Callable[[Any, Any], Path]


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
            ``clip``, ``clip-ft``, ``cliptex``); ``--only`` leaves the baselines out. Other names
            are of no backbone: ``ablation``.
        artifacts: (experiment, backbones, seeds) → the suite's own data and weights; creates
            nothing.
        training: (experiment, seed) → stage whose result is the ``SuiteTraining`` of a sweep.
        training_settings: changes to the recipes that a sweep trains.
        skips_absent_data: leave out, and name, tasks whose dataset has no folder.
        average: title of the average, not its value: of the mean main metric of all tasks, if that
            is a published figure.
        images: of each split that are read at most, evenly spaced; None for all.
        any_dataset: accept tasks on datasets of no suite, with the probes' own settings.
    """

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, Any]]
    default_backbones: Sequence[str] = ()
    backbone_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    artifacts: Callable[[str, Sequence[str], Sequence[int]], SuiteArtifacts] = (
        lambda experiment, names, seeds: SuiteArtifacts()
    )
    training: Callable[[str, int], Stage] | None = None
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
