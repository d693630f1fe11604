"""Suites: named lists of tasks with their settings. A suite may make its own data and weights (the mini world does)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbones import UserError
from backbones.errors import nearest
from benchmark.side_by_side import Job


@dataclass(frozen=True)
class Provision:
    """What a suite made for a run.

    Attributes:
        data: dataset name → folder, as if given with ``--data``.
        backbones: (name, seed) → keyword arguments of ``backbones.create``, as if given with ``--weights``.
        runs: (name, seed) → MLflow id of the run that trained those weights, to link to.
        costs: (name, seed) → measured costs of making the weights (``train_seconds``, ``label_seconds`` …).
        left: (name, seed) → the job that still has to make those weights; it returns a ``Trained``. The rest is known, so that
            a run can probe what is there while others are trained.
    """

    data: Mapping[str, Path] = field(default_factory=dict)
    backbones: Mapping[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[tuple[str, int], str] = field(default_factory=dict)
    costs: Mapping[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    left: Mapping[tuple[str, int], Job] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """Weights, the MLflow run that trained them, and what that cost."""

    path: Path
    run: str
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Ground:
    """What trainings on a suite's own pairs start from; a sweep trains on it again and again.

    Attributes:
        data: dataset name → folder, as if given with ``--data``.
        init: initial weights, as ``--init`` takes them.
        pairs, labels: image-caption pairs and their pseudo-labels.
        weights: (recipe, labels or None) → where its weights go.
    """

    data: Mapping[str, Path]
    init: str
    pairs: Any
    labels: Any
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
        provide: makes the suite's own data and weights; ``None`` when the user brings them.
        ground: (options, seed, tracker, bar) → what a sweep trains on; ``None`` when the user brings it.
        tune: changes to the recipes that fine-tune on that ground.
    """

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, Any]]
    default_backbones: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provide: Callable[..., Provision] | None = None
    ground: Callable[..., Ground] | None = None
    tune: Mapping[str, Any] = field(default_factory=dict)


SUITES: dict[str, Suite] = {}


def register_suite(suite: Suite) -> Suite:
    """Add a suite. Raises ``ValueError`` when its name is taken."""
    if suite.name in SUITES:
        raise ValueError(f"there is a suite {suite.name!r} already")
    SUITES[suite.name] = suite
    return suite


def find_suite(name: str) -> Suite:
    """The suite called ``name``; raises ``UserError`` naming the nearest."""
    if name not in SUITES:
        raise UserError(f"no suite {name!r}; {nearest(name, SUITES)}")
    return SUITES[name]


def _each(datasets: Sequence[str], probes: Sequence[str], **settings: Any) -> dict[str, dict[str, Any]]:
    return {f"{dataset}/{probe}": settings for dataset in datasets for probe in probes}


DENSE = ("linear", "deeplabv3", "pspnet")

register_suite(
    Suite(
        name="paper",
        about="the tasks of the CLIPTeX paper on the real datasets (bring them with --data-root)",
        tasks={
            **_each(["voc", "ade20k"], DENSE),
            **_each(["coco"], ["ssd", "mask-rcnn"]),
            **_each(["nyu-depth", "nyu-normal"], DENSE),
            **_each(["imagenet", "places365"], ["linear"]),
            **_each(["imagenet"], ["zero-shot"]),
            **_each(["flickr30k"], ["retrieval"]),
        },
        default_backbones=("clip", "clip-ft", "cliptex"),
    )
)

register_suite(
    Suite(
        name="own",
        about="your own data: examples of datasets declared in one file (place each with --data NAME=DIR)",
        tasks={
            **_each(["camvid"], DENSE),
            **_each(["imagefolder"], ["linear", "zero-shot"]),
            **_each(["flickr8k"], ["retrieval"]),
        },
        default_backbones=("efficientnet-lite0", "random"),
    )
)
