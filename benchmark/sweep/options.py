"""Options of ``sweep launch``."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from benchmark.options import (
    Changes,
    DataOptions,
    ExecutionOptions,
    PluginOptions,
    TaskChanges,
    TaskNames,
)
from cliptex_common.settings import Names, options_dataclass
from sweeps.space import SearchRequest

ValidationMetric = Literal[
    "",
    "val/i2t_R@1",
    "val/i2t_R@5",
    "val/i2t_R@10",
    "val/t2i_R@1",
    "val/t2i_R@5",
    "val/t2i_R@10",
]


@options_dataclass
class StudyOptions(PluginOptions):
    """Which study."""

    study: str | None = None
    """name of the study (default: the only one; of a new one SUITE-SEARCH)"""
    storage: str | None = None
    """sqlite:///FILE.db, postgresql://… or journal:///FILE.log (default: sqlite:///sweeps.db
    here)"""


@options_dataclass
class SweepOptions(StudyOptions, DataOptions, ExecutionOptions, SearchRequest):
    """Options of a sweep."""

    suite: str = "sweep"
    """tasks to choose λs by; see `list suites`"""
    tasks: TaskNames = ()
    """only these tasks; see `list tasks`"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the recipe, for all trials (repeatable)"""
    task_overrides: TaskChanges = field(default_factory=dict)
    """change a setting of the tasks (repeatable)"""
    recipe: str = "cliptex"
    """cliptex, or a .json or .toml file"""
    init: str = ""
    """initial weights, as for `train`; none for suites that make their own"""
    pairs: str = ""
    """image-caption pairs, as for `train`; none for suites that make their own"""
    labels: str = ""
    """pseudo-labels of the pairs; none for suites that make their own"""
    confirm: NonNegativeInt = 3
    """fresh seeds that compare the winner with the base cell; 0: no test"""
    objective: Names = ()
    """dense: interquartile mean of relative gains over clip-ft on dense tasks (default, or gain if
    there are none); zero-shot, gain: of those, of all; TASK/METRIC. Several: Pareto"""
    zero_shot_loss: NonNegativeFloat = 5.0
    """largest loss in zero-shot, in percent, against clip-ft of a chosen trial, unless zero-shot is
    an objective"""
    prune: ValidationMetric = ""
    """stop bad trials by successive halving on a metric, such as val/i2t_R@1"""
    experiment: str = ""
    """MLflow experiment (default: sweep, or sweep-SUITE)"""
    out: Path | None = None
    """recipe file of the best trial (default: STUDY-best.json)"""

    @property
    def name(self) -> str:
        return self.study or f"{self.suite}-{self.search}"

    @property
    def experiment_name(self) -> str:
        return self.experiment or (self.suite if self.suite == "sweep" else f"sweep-{self.suite}")

    @property
    def recipe_file(self) -> Path:
        """File of the best trial's recipe."""
        return self.out or Path(f"{self.name.replace('/', '_')}-best.json")
