"""Ours beside theirs: run the tasks of a protocol, and judge each difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import backbones
from backbones.backbone import Backbone
from benchmark.planning.options import RunOptions
from benchmark.planning.plan import make_plan
from benchmark.probing.data import find_folders, prepare_data
from benchmark.reproduce.causes import BLOCKING, Evidence, find_causes
from benchmark.reproduce.targets import Target
from probes.datasets.base import PreparedDataset
from reports.analysis import Analysis
from reports.artifacts import PER_IMAGE
from reports.mlflow.query import Store
from reports.published.table import protocol_difference


@dataclass(frozen=True)
class Reproduction:
    """A published number and ours.

    Attributes:
        ours: NaN where the run has none.
        tolerance: how far ours may be from theirs by noise of our images and seeds and by the
            rounding of theirs. Theirs has noise of its own, which nobody published.
        verdict: ``reproduced``, ``differs``, or ``not comparable``.
        causes: name → what was seen.
    """

    target: Target
    ours: float = math.nan
    tolerance: float = math.nan
    verdict: str = "not comparable"
    causes: Mapping[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        return self.ours - self.target.number.value


def judge_evidence(evidence: Evidence) -> Reproduction:
    """The verdict on one number; causes are listed where it is not reproduced."""
    target, ours, tolerance = evidence.target, evidence.ours, evidence.tolerance
    causes = find_causes(evidence)
    if causes.keys() & BLOCKING:
        return Reproduction(target, ours, tolerance, "not comparable", causes)
    if abs(ours - target.number.value) <= tolerance:
        return Reproduction(target, ours, tolerance, "reproduced")
    return Reproduction(target, ours, tolerance, "differs", causes)


def judge_targets(
    targets: Sequence[Target], options: RunOptions, analysis: Analysis, store: Store
) -> Iterator[Reproduction]:
    """Judge the numbers of a finished run.

    Args:
        targets: of one protocol and one backbone.
        options: of the run.
        analysis: of the runs in ``store``.
    """
    plan = make_plan(options)
    data = prepare_data(plan.tasks, find_folders(plan.tasks, options), options, num_workers=0)
    backbone = backbones.create(plan.backbones[0], seed=options.seed)
    for target in targets:
        evidence = _evidence(target, data[target.task.name], backbone, analysis, store)
        yield Reproduction(target) if evidence is None else judge_evidence(evidence)


def _evidence(
    target: Target, data: PreparedDataset, backbone: Backbone, analysis: Analysis, store: Store
) -> Evidence | None:
    """What the run left behind of a task; None if it failed."""
    for (name, column), cells in analysis.selection.cells.items():
        if name == backbone.name and column.task == target.task.name and cells:
            estimate = analysis.estimates[name, column, target.number.metric]
            cell = cells[0]
            return Evidence(
                target,
                ours=estimate.value,
                tolerance=(estimate.reach() if estimate.has_interval else 0.0) + target.half_digit,
                data=data,
                backbone=backbone,
                differs=protocol_difference(cell, target.number.preset),
                rates=list(zip(*store.history(cell.run_id, "train/lr"), strict=True)),
                per_image=store.arrays(cell, PER_IMAGE),
            )
    return None
