"""Config files of probes, in MMEngine's format (``probes/configs``): found, read, and completed
with settings.

Where a setting stands is in the annotation of its field (``probes.settings.At``). What a file
states stays as it is, and is the default of the setting that stands there; what it leaves out is
made of the settings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config

from cliptex_common.errors import UserError
from probes.settings import OPTIMIZERS, TrainingSettings, places, scheduler_configs

FOLDER = Path(__file__).parents[1] / "configs"


def config_files(kind: str, name: str) -> tuple[Path, ...]:
    """The config files of a probe; a plugin's dense tasks have the data of ``dense``."""
    path = FOLDER / kind / f"{name}.py"
    if path.is_file():
        return (path,)
    base = FOLDER / "_base_"
    data = base / f"{kind}.py"
    return base / "heads" / f"{name}.py", data if data.is_file() else base / "dense.py"


# of a config; other names of a file are those that it uses itself
NEEDED = ("default_scope", "custom_imports", "model", "train_dataloader", "val_dataloader")
KEYS = (*NEEDED, "val_evaluator", "optim_wrapper", "param_scheduler", "train_cfg")
NO_DECAY = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}  # without the setting ``decay_all``


def read_config(*paths: Path) -> Config:
    """The config of files with their bases, none of which states what another does; a copy, to be
    completed.

    Raises:
        UserError: they lack a key.
        Exception: what their code raises.
    """
    content: dict[str, Any] = {}
    for path in paths:
        content |= copy.deepcopy(_parsed(path, path.stat().st_mtime_ns))
    if missing := [name for name in NEEDED if name not in content]:
        raise UserError(
            f"config file {paths[0].name} states no {', '.join(missing)}; take them from this"
            " package: _base_ = ['probes::_base_/heads/head.py', 'probes::_base_/segmentation.py']"
        )
    return Config(content, format_python_code=False)


@lru_cache(maxsize=64)
def _parsed(path: Path, modified: int) -> dict[str, Any]:
    # yapf would take a second to format it. What our files import registers what they name: that
    # of a file which is only read takes seconds, and who builds it has imported it
    is_own = path.is_relative_to(FOLDER)
    config = Config.fromfile(
        path, import_custom_modules=not is_own, format_python_code=False
    ).to_dict()
    config.get("model", {}).pop("_scope_", None)
    return {name: config[name] for name in KEYS if name in config}


def parse_config(name: str, source: bytes) -> Config:
    """The config of a file with this content, whose bases may be those of this package:
    ``probes::_base_/segmentation.py``.

    Raises as ``read_config``.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        # mmengine itself looks for ``PACKAGE::FILE`` in the folder ``.mim`` of an installed package
        path.write_bytes(source.replace(b"probes::", f"{FOLDER}/".encode()))
        return read_config(path)


def literals(config: Any, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(dictionary of the config, key of the literal in it) of each literal at ``path``."""
    *steps, key = path.split(".")
    parts = [config]
    for step in steps:
        parts = [each for part in parts for each in _children(part, step)]
    return ((part, key) for part in parts if key in part)


def _children(part: Any, step: str) -> list[Any]:
    if isinstance(part, list | tuple):
        return [each for each in part if each["type"] == step]
    return [part[step]] if isinstance(part.get(step), dict | list | tuple) else []


def stated_settings(config: Config, settings_type: type) -> tuple[dict[str, Any], set[str]]:
    """Setting → its value in the config of a file, of those that stand there; and the settings that
    cannot change the config, because the file states a part in its own way or lacks it."""
    values: dict[str, Any] = {}
    fixed: set[str] = set()
    for name, at in places(settings_type).items():
        stated = [part[key] for path in at.literals for part, key in literals(config, path)]
        if stated:
            values[name] = stated[0]
        elif at.absent is not None:
            values[name] = at.absent
        is_open = bool(stated or at.added or at.part)
        if at.part and any(literals(config, at.part)):
            is_open = bool(stated) and at.literals[0].startswith(at.part)
        if not is_open:
            fixed.add(name)
    return values, fixed


def apply_settings(config: Config, settings: Any) -> None:
    """Change the literals of a config to the values of ``settings``. A setting without a literal
    changes nothing; nor does one that is None (``dropout``)."""
    for name, at in places(type(settings)).items():
        value = getattr(settings, name)
        if value is None:
            continue
        for path in at.literals:
            if at.added:
                *steps, key = path.split(".")
                _part(config, *steps)[key] = value
            for part, key in literals(config, path):
                part[key] = value


def _part(config: Any, *steps: str) -> Any:
    """The dictionary of a config at a path, empty where there was none."""
    for step in steps:
        if step not in config:
            config[step] = {}
        config = config[step]
    return config


def apply_training(config: Config, settings: TrainingSettings) -> None:
    """Make of the settings what a config does not state of optimizer and schedule."""
    optimizer = _part(config, "optim_wrapper", "optimizer")
    wrapper = config["optim_wrapper"]
    wrapper.setdefault("type", "OptimWrapper")
    if "type" not in optimizer:
        optimizer["type"] = OPTIMIZERS[settings.optimizer]
        own = {"betas": settings.betas} if settings.optimizer == "adamw" else {"momentum": 0.9}
        optimizer.update(own)
    if settings.clip_norm and "clip_grad" not in wrapper:
        wrapper["clip_grad"] = {"max_norm": settings.clip_norm}
    elif not settings.clip_norm and "max_norm" in wrapper.get("clip_grad", {}):
        del wrapper["clip_grad"]
    if not settings.decay_all:
        wrapper.setdefault("paramwise_cfg", NO_DECAY)
    if "param_scheduler" not in config:
        config["param_scheduler"] = scheduler_configs(settings)
    apply_settings(config, settings)


def training_config(settings: TrainingSettings) -> Config:
    """``optim_wrapper`` and ``param_scheduler`` of a training with these settings."""
    config = Config({}, format_python_code=False)
    apply_training(config, settings)
    return config
