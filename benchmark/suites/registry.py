"""Suites: named lists of tasks with their settings. A suite may make its own data and weights (the
mini world does)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.registry import Registry, instance_of
from probes.registry import find_task

if TYPE_CHECKING:
    from benchmark.execution import Executor


@dataclass(frozen=True)
class Stages:
    """With what a suite makes its own data and weights."""

    suite: str
    experiment: str  # where its stages go in MLflow
    executor: Executor  # runs the units


@dataclass(frozen=True)
class MadeBackbone:
    """Weights that a suite made."""

    config: Mapping[str, Any]  # keyword arguments of ``backbones.create``
    run: str = ""  # MLflow id of the run that trained them, '' when it is not known
    cost: Mapping[str, float] = field(
        default_factory=dict
    )  # of making them (``train_seconds``, ``label_seconds`` …)


@dataclass(frozen=True)
class SuiteArtifacts:
    """What a suite makes for a run."""

    data: Mapping[str, Path] = field(
        default_factory=dict
    )  # dataset name → folder, as if given with ``--data``
    # (name, seed) → makes, or finds, that backbone's weights; called once for each, all at the same
    # time
    makes: Mapping[tuple[str, int], Callable[[], Awaitable[MadeBackbone]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class PreviewStage:
    """A stage before probing, looked at without making anything: ``kind`` is that of its units (see
    ``needs``), ``seed`` the one that it is for, if it is for one."""

    name: str
    kind: str
    units: int
    available: bool
    seed: int | None = None


@dataclass(frozen=True)
class SuitePreview:
    """What of a suite's own things is there."""

    stages: Sequence[PreviewStage] = ()  # in the order of the work
    data: Mapping[str, Path] | None = field(
        default_factory=dict
    )  # as in ``SuiteArtifacts``; None while it is not there
    # (name, seed) → keyword arguments of ``backbones.create``, None while its weights are not there
    backbones: Mapping[tuple[str, int], Mapping[str, Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteTraining:
    """What trainings on a suite's own pairs start from; a sweep trains on it again and again."""

    data: Mapping[str, Path]  # as in ``SuiteArtifacts``
    init: str  # initial weights, as ``--init`` takes them
    pairs: str  # image-caption pairs
    labels: Path  # the store of their pseudo-labels
    weights: Callable[[Any, Any], Path]  # (recipe, labels or None) → where its weights go


@dataclass(frozen=True)
class Suite:
    """A named list of tasks."""

    name: str  # also the MLflow experiment
    about: str  # one line for ``list suites``
    takes: str = field(
        default="", kw_only=True
    )  # how long it is until the first numbers and the last, where that is known
    tasks: Mapping[
        str, Mapping[str, Any]
    ]  # task name → changes to its probe's settings, in the order of the report
    default_backbones: Sequence[str] = ()  # what runs when no ``--backbone`` is given
    # what a single name after ``--backbone`` stands for: a backbone with its baselines beside it,
    # or several
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # (stages, backbones, seeds) → the suite's own data and weights; None when the user brings them
    artifacts: (
        Callable[[Stages, Sequence[str], Sequence[int]], Awaitable[SuiteArtifacts]] | None
    ) = None
    # (suite, backbones, seeds) → what of them is there; makes nothing
    preview: Callable[[str, Sequence[str], Sequence[int]], SuitePreview] | None = None
    # (stages, seed) → what a sweep trains on; None when the user brings it
    training: Callable[[Stages, int], Awaitable[SuiteTraining]] | None = None
    training_settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # changes to the recipes that a sweep trains
    what_is_there: bool = False  # tasks whose data have no folder are left out, and named
    # what the mean of the main metrics of all its tasks is called, where that is a figure of its
    # own
    average: str = ""
    any_dataset: bool = (
        False  # it takes tasks on datasets that no suite names, with the probes' own settings
    )


SUITES: Registry[Suite] = Registry("suite", "suites", instance_of(Suite))


def register_suite(suite: Suite) -> Suite:
    """Add a suite. Raises ``ValueError`` when its name is taken."""
    return SUITES.register(suite.name, suite)


def find_suite(name: str) -> Suite:
    """The suite called ``name``; raises ``UserError`` naming the nearest."""
    return SUITES.find(name)


def settings_in(suite: Suite, task: str) -> Mapping[str, Any] | None:
    """What a suite changes in the settings of a task, None where it does not take it.

    A task need not be listed: of another probe on a dataset that the suite has, it is what its
    tasks on that dataset share (``nyu-depth/dpt-probe3d`` in ``paper``), those with the same kind
    of settings where there are some. A variant is like the task that it is of.
    """
    task, _, _ = task.partition(":")
    if task in suite.tasks:
        return suite.tasks[task]
    dataset = _dataset(task)
    names = [name for name in suite.tasks if _dataset(name) == dataset]
    alike = (
        [
            name
            for name in names
            if find_task(name)[1].settings_type is find_task(task)[1].settings_type
        ]
        if names
        else []
    )
    beside = [suite.tasks[name] for name in alike or names]
    if beside:
        return {
            key: value
            for key, value in beside[0].items()
            if all(key in o and o[key] == value for o in beside)
        }
    listed = {
        _dataset(name) for other in SUITES.load_entry_points().values() for name in other.tasks
    }
    return {} if suite.any_dataset and dataset not in listed else None


def _dataset(task: str) -> str:
    return task.partition("/")[0]


def cross(
    datasets: Sequence[str], probes: Sequence[str], **settings: Any
) -> dict[str, dict[str, Any]]:
    """Every dataset with every probe: ``{"voc/linear": settings, …}``."""
    return {f"{dataset}/{probe}": settings for dataset in datasets for probe in probes}
