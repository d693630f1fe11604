"""Suites: named lists of tasks with their settings. A suite may make its own data and weights (the mini world does)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.plugins import Registry, of_type

if TYPE_CHECKING:
    from benchmark.execution import Executor


@dataclass(frozen=True)
class Stages:
    """With what a suite makes its own data and weights.

    Attributes:
        suite: its name; experiment: where its stages go in MLflow.
        executor: runs the units; device, num_workers: of each.
    """

    suite: str
    experiment: str
    executor: Executor
    device: str = "auto"
    num_workers: int = 2


@dataclass(frozen=True)
class MadeBackbone:
    """Weights that a suite made.

    Attributes:
        config: keyword arguments of ``backbones.create``.
        run: MLflow id of the run that trained them, '' when it is not known.
        cost: measured cost of making them (``train_seconds``, ``label_seconds`` …).
    """

    config: Mapping[str, Any]
    run: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteArtifacts:
    """What a suite makes for a run.

    Attributes:
        data: dataset name → folder, as if given with ``--data``.
        makes: (name, seed) → makes, or finds, that backbone's weights. Called once for each, all at the same time.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    makes: Mapping[tuple[str, int], Callable[[], Awaitable[MadeBackbone]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PreviewStage:
    """A stage before probing, looked at without making anything: ``kind`` is that of its units (see ``needs``)."""

    name: str
    kind: str
    units: int
    available: bool


@dataclass(frozen=True)
class SuitePreview:
    """What of a suite's own things is there.

    Attributes:
        stages: in the order of the work.
        data: as ``SuiteArtifacts.data``; None while it is not there.
        backbones: (name, seed) → keyword arguments of ``backbones.create``, None while its weights are not there.
    """

    stages: Sequence[PreviewStage] = ()
    data: Mapping[str, Path] | None = field(default_factory=dict)
    backbones: Mapping[tuple[str, int], Mapping[str, Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteTraining:
    """What trainings on a suite's own pairs start from; a sweep trains on it again and again.

    Attributes:
        data: dataset name → folder, as if given with ``--data``.
        init: initial weights, as ``--init`` takes them.
        pairs, labels: image-caption pairs and the store of their pseudo-labels.
        weights: (recipe, labels or None) → where its weights go.
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
        tasks: task name → changes to its probe's settings, in the order of the report.
        default_backbones: what runs when no ``--backbone`` is given.
        groups: what a single name after ``--backbone`` stands for: a backbone with its baselines beside it, or several.
        artifacts: (stages, backbones, seeds) → the suite's own data and weights; ``None`` when the user brings them.
        preview: (suite, backbones, seeds) → what of them is there; makes nothing.
        training: (stages, seed) → what a sweep trains on; ``None`` when the user brings it.
        training_settings: changes to the recipes that a sweep trains.
    """

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, Any]]
    default_backbones: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    artifacts: Callable[[Stages, Sequence[str], Sequence[int]], Awaitable[SuiteArtifacts]] | None = None
    preview: Callable[[str, Sequence[str], Sequence[int]], SuitePreview] | None = None
    training: Callable[[Stages, int], Awaitable[SuiteTraining]] | None = None
    training_settings: Mapping[str, Any] = field(default_factory=dict)


SUITES: Registry[Suite] = Registry("suite", "suites", of_type(Suite))


def register_suite(suite: Suite) -> Suite:
    """Add a suite. Raises ``ValueError`` when its name is taken."""
    return SUITES.register(suite.name, suite)


def find_suite(name: str) -> Suite:
    """The suite called ``name``; raises ``UserError`` naming the nearest."""
    return SUITES.find(name)


def cross(datasets: Sequence[str], probes: Sequence[str], **settings: Any) -> dict[str, dict[str, Any]]:
    """Every dataset with every probe: ``{"voc/linear": settings, …}``."""
    return {f"{dataset}/{probe}": settings for dataset in datasets for probe in probes}
