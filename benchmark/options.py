"""Options of runs and watches, shared by the command line, Python and option files; values are
checked when they are created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from benchmark.execution import ExecutorSpec
from common.errors import UserError
from common.files import MAX_SEED
from common.settings import settings_dataclass


@settings_dataclass
class DataOptions:
    """Where datasets are and how much of them counts.

    Attributes:
        data_root: folder that holds the datasets' own folders.
        data: dataset → its folder; takes precedence over ``data_root``.
        partial: accept incomplete datasets.
        limit: number of val images of each dataset that are scored; None for all.
    """

    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    limit: PositiveInt | None = None

    def with_folders(self, folders: Mapping[str, Path]) -> Self:
        """The same options with ``folders`` of datasets for which the user gives none."""
        return replace(self, data={**folders, **self.data})


@settings_dataclass
class RunOptions(DataOptions):
    """Options of a run; ``python -m benchmark run --help`` describes them."""

    backbones: Sequence[str] = ()
    suite: str | None = None
    tasks: Sequence[str] = ()
    weights: Path | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    seeds: PositiveInt = 1
    overrides: Sequence[str] = ()
    force: bool = False
    only: bool = False
    executor: ExecutorSpec = field(default_factory=ExecutorSpec)
    json: Path | None = None
    experiment: str | None = None

    def __post_init__(self) -> None:
        if self.seed + self.seeds - 1 > MAX_SEED:
            raise UserError(
                f"seed={self.seed} with seeds={self.seeds}: the last seed must be at most"
                f" {MAX_SEED}; use a smaller seed"
            )


@settings_dataclass
class WatchOptions:
    """Options of a watch; ``python -m benchmark watch --help`` describes them.

    Attributes:
        run: options of each checkpoint's run; its weights are the checkpoint's.
        folder: where checkpoints appear; the last number of a file's name is its step.
        every: seconds between two looks; a file counts once it is unchanged from one to the next.
        until: the step after which the watch ends; None: it ends when it is interrupted.
        once: score the checkpoints that exist and end.
    """

    run: RunOptions
    folder: Path
    every: NonNegativeFloat = 30.0
    until: NonNegativeInt | None = None
    once: bool = False
