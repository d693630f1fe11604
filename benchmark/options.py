"""Options of commands, shared by the command line, ``--config`` files and Python. They are checked
when they are created; the text below an option is its help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveInt

from benchmark.executor import ExecutionOptions
from cliptex_common import registry as plugins
from cliptex_common.errors import UserError
from cliptex_common.files import MAX_SEED
from cliptex_common.settings import (
    Folder,
    Label,
    Names,
    Seed,
    SeedCount,
    Text,
    as_list,
    field_names,
    one_line_errors,
    options_dataclass,
    parse_pairs,
)

BackboneNames = Annotated[Names, Field(alias="backbone")]


def _with_absolute_files(sources: Sequence[str]) -> list[str]:
    """Ids of runs, and files of heads, whose paths workers elsewhere read, too."""
    return [str(Path(each).absolute()) if Path(each).is_file() else each for each in sources]


def _load_config_files(names: Sequence[str]) -> list[str]:
    """Names of tasks. ``DATASET/FILE.py`` loads a config file as the plugin that registers its
    probe, and becomes ``DATASET/FILE``."""
    result = []
    for name in names:
        dataset, _, file = name.partition("/")
        if file.endswith(".py"):
            plugins.load(file)
            name = f"{dataset}/{Path(file).stem}"
        result.append(name)
    return result


HeadSources = Annotated[Names, AfterValidator(_with_absolute_files), Field(alias="head")]


def _read_folders(data: Any) -> Any:
    """``["voc=DIR", …]`` and ``"voc=DIR"`` as ``{"voc": DIR}``."""
    return parse_pairs(map(str, as_list(data)), "data") if isinstance(data, Sequence) else data


TaskNames = Annotated[Names, AfterValidator(_load_config_files), Field(alias="task")]
TaskName = Annotated[
    str, {"nargs": None}, AfterValidator(lambda name: _load_config_files([name])[0])
]
Changes = Annotated[Mapping[str, str], Field(alias="set")]
TaskChanges = Annotated[Mapping[str, str], Field(alias="set-task")]


@options_dataclass
class PluginOptions:
    """Where names come from."""

    plugins: Annotated[Sequence[Path], BeforeValidator(as_list), Field(alias="plugin")] = ()
    """a Python file that registers your own backbones, datasets, probes … (repeatable; those of
    $CLIPTEX_PLUGINS too); see `new`"""


@options_dataclass
class FolderOptions(PluginOptions):
    """Where datasets are."""

    data_root: Folder | None = None
    """folder of datasets in OpenMMLab's layout (VOCdevkit/VOC2012, coco, nyu …)"""
    data: Annotated[Mapping[str, Folder], BeforeValidator(_read_folders)] = field(
        default_factory=dict
    )
    """folder of one dataset, as NAME=DIR (repeatable; overrides --data-root)"""

    def __post_init__(self) -> None:
        if not self.data_root and not self.data:
            return
        import benchmark.catalog  # noqa: F401 – registers every dataset
        from probes.datasets.check import check_names

        if self.data_root:
            from probes.datasets.webdataset import register_folders

            register_folders(self.data_root)  # each ``wds_NAME`` in it is a dataset, too
        check_names(self.data)

    def check_root(self) -> None:
        """Raise ``UserError`` if ``data_root`` is given and there is no such folder."""
        if self.data_root and not self.data_root.is_dir():
            raise UserError(f"no folder {self.data_root}; `data get` downloads datasets")


@options_dataclass
class DataOptions(FolderOptions):
    """Where datasets are and how much of them counts."""

    partial: bool = False
    """accept incomplete datasets; results are not comparable with those on all images"""
    limit: PositiveInt | None = None
    """score only so many val images of each dataset, evenly spaced; not comparable with runs on all
    images"""


@options_dataclass
class TrackingOptions:
    """Where results are logged."""

    tracking_uri: str | None = None
    """MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here)"""


@options_dataclass
class DryRunOptions:
    """Whether anything is done."""

    dry_run: bool = False
    """show what would be done, and do nothing"""


@options_dataclass
class PairsOptions:
    """Image-caption pairs."""

    pairs: str
    """webdataset tars ('cc3m/{00000..00331}.tar', also on https:// or s3://), CSV or TSV of images
    and captions"""


@options_dataclass
class ProbeOptions(DataOptions, ExecutionOptions):
    """What is probed, and where."""

    backbones: BackboneNames = ()
    """NAME of a backbone, or LABEL=SOURCE of your own (a checkpoint, a folder of them, run:ID of a
    training, hf:REPO[/FILE], hub:REPO:ENTRY, or a name); LABEL names its column. See `list
    backbones`"""
    suite: Text | None = None
    """a named list of tasks; see `list suites` (default: mini, or those that have the tasks)"""
    tasks: TaskNames = ()
    """only these tasks; see `list tasks`. DATASET/FILE.py is a dense probe by a config file"""
    overrides: Changes = field(default_factory=dict)
    """change a setting of the tasks, or of one as TASK.KEY=VALUE (repeatable)"""
    seed: Seed = 0
    """random seed"""
    experiment: str | None = None
    """MLflow experiment (default: the suite's name)"""


@options_dataclass
class RunOptions(ProbeOptions):
    """Options of a run."""

    weights: Path | None = None
    """checkpoint of the backbone (safetensors, or a torch file loaded weights-only)"""
    architecture: Text | None = None
    """NAME of the architecture of checkpoints that do not say theirs"""
    name: Annotated[Label, Field(min_length=1)] | None = None
    """label of the single backbone"""
    tags: Annotated[Mapping[str, str], Field(alias="tag")] = field(default_factory=dict)
    """a tag of the runs in MLflow, which `results list` shows (repeatable)"""
    heads: HeadSources = ()
    """ids of MLflow runs of finished tasks, or files head.safetensors of them: other test sets are
    scored with these heads, and the images that they were trained on are not needed"""
    seeds: SeedCount = 1
    """number of seeds, starting at --seed"""
    only: bool = False
    """without the baselines that a suite adds to a single backbone"""
    force: bool = False
    """run finished tasks again"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.seeds - 1 > MAX_SEED:
            raise UserError(
                f"seed={self.seed} with seeds={self.seeds}: the last seed must be at most"
                f" {MAX_SEED}; use a smaller seed"
            )


def run_options(options: Any, **changes: Any) -> RunOptions:
    """Options of a run: ``changes``, and what the options of another command have in common with
    it.

    Raises:
        UserError: a change is not allowed.
    """
    shared = field_names(RunOptions) & field_names(type(options))
    values = {name: getattr(options, name) for name in shared}
    with one_line_errors():
        return RunOptions(**{**values, **changes})


@options_dataclass
class WatchOptions(ProbeOptions):
    """Options of a watch."""

    backbones: BackboneNames
    """backbone of the checkpoints: cliptex, open_clip/ARCH …"""
    dir: Path
    """folder of checkpoints; the last number in a file's name is its step"""
    suite: Text | None = None
    """a named list of tasks; see `list suites` (default: companion, or those with the tasks)"""
    every: NonNegativeFloat = 30.0
    """seconds between two looks at the folder"""
    until: PositiveInt | None = None
    """end after this step (default: on Ctrl-C)"""
    once: bool = False
    """probe the present checkpoints and end"""
