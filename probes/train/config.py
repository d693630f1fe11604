"""Config files of probes, in MMEngine's format: read, and completed with settings.

A file states what is trained, with the defaults as literals. A setting changes a literal that the
file states: ``TRAINING``, and ``LITERALS`` of the probes, have where, for each setting. Where that
does not say it all (another optimizer, another schedule), ``apply_training`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from cliptex_common.errors import UserError
from cliptex_common.settings import field_names
from probes.configs import FOLDER
from probes.settings import TrainingSettings, scheduler_configs

LiteralPaths = Mapping[str, Sequence[str]]
KEYS = (  # of a config file; others are names that it uses itself
    *("default_scope", "custom_imports", "model", "train_dataloader", "val_dataloader"),
    *("val_evaluator", "optim_wrapper", "param_scheduler", "train_cfg"),
)

# setting → the literals that it changes. A step of a path into a list is the ``type`` of a part.
TRAINING: LiteralPaths = {
    "max_iters": ("train_cfg.max_iters",),
    "batch_size": ("train_dataloader.batch_size",),
    "lr": ("optim_wrapper.optimizer.lr",),
    "weight_decay": ("optim_wrapper.optimizer.weight_decay",),
    "betas": ("optim_wrapper.optimizer.betas",),
    "clip_norm": ("optim_wrapper.clip_grad.max_norm",),
    "precision": ("model.backbone.precision",),
    "flip": ("train_dataloader.dataset.pipeline.RandomFlip.prob",),
}


NO_DECAY = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}  # without the setting ``decay_all``


def read_config(path: Path) -> Config:
    """The config of a file and its bases; a copy, to be completed.

    Raises:
        UserError: it lacks a key.
        Exception: what its code raises.
    """
    return copy.deepcopy(_parsed(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=64)
def _parsed(path: Path, modified: int) -> Config:
    # yapf would take a second to format it
    config = Config.fromfile(path, format_python_code=False)
    if missing := [name for name in KEYS if name not in config]:
        raise UserError(
            f"config file {path.name} states no {', '.join(missing)}; take them from this package:"
            " _base_ = ['probes::_base_/heads/head.py', 'probes::_base_/segmentation.py',"
            " 'probes::_base_/schedule_40k.py']"
        )
    config.model.pop("_scope_", None)
    return Config({name: config[name] for name in KEYS}, format_python_code=False)


def parse_config(name: str, source: bytes) -> Config:
    """The config of a file with this content, whose bases may be those of this package:
    ``probes::_base_/segmentation.py``.

    Raises as ``read_config``.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
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


def stated_settings(config: Config, literal_paths: LiteralPaths) -> dict[str, Any]:
    """Setting → its value in a config, of those that the config states."""
    values: dict[str, Any] = {}
    for name, paths in literal_paths.items():
        for part, key in (each for path in paths for each in literals(config, path)):
            values.setdefault(name, part[key])
    return values


def apply_settings(config: Config, settings: Any, literal_paths: LiteralPaths) -> None:
    """Change the literals of a config to the values of ``settings``. A setting without a literal
    changes nothing; nor does one that is None where the file states a float (``dropout``).

    Args:
        literal_paths: besides those of ``TRAINING``.
    """
    literal_paths = {**TRAINING, **literal_paths}
    for name in literal_paths.keys() & field_names(type(settings)):
        value = getattr(settings, name)
        for part, key in (each for path in literal_paths[name] for each in literals(config, path)):
            if value is not None or not isinstance(part[key], float):
                part[key] = value


def apply_training(config: Config, settings: TrainingSettings) -> None:
    """Optimizer and schedule of a config by ``settings``, after ``apply_settings``."""
    wrapper = config.optim_wrapper
    if settings.optimizer == "sgd":
        wrapper.optimizer.pop("betas", None)
        wrapper.optimizer |= {"type": "SGD", "momentum": 0.9}
    if settings.clip_norm:
        wrapper.clip_grad = {**wrapper.get("clip_grad", {}), "max_norm": settings.clip_norm}
    else:
        wrapper.pop("clip_grad", None)
    if not settings.decay_all:
        wrapper.paramwise_cfg = dict(NO_DECAY)
    elif wrapper.get("paramwise_cfg") == NO_DECAY:
        del wrapper["paramwise_cfg"]
    config.param_scheduler = scheduler_configs(settings)


def training_config(settings: TrainingSettings) -> Config:
    """``optim_wrapper`` and ``param_scheduler`` of a training with these settings."""
    config = Config.fromfile(FOLDER / "_base_" / "schedule_40k.py", format_python_code=False)
    apply_settings(config, settings, {})
    apply_training(config, settings)
    return config


def learning_rates(settings: TrainingSettings) -> np.ndarray:
    """(max_iters,) the rate of each iteration of a training with these settings."""
    config = training_config(settings)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=config.optim_wrapper.optimizer.lr, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    parts = ({**part, "optimizer": wrapper} for part in config.param_scheduler)
    schedulers = [PARAM_SCHEDULERS.build(part) for part in parts]
    rates = np.empty(settings.max_iters)
    for iteration in range(settings.max_iters):
        rates[iteration] = optimizer.param_groups[0]["lr"]
        wrapper.step()  # which schedulers expect before theirs
        for scheduler in schedulers:
            scheduler.step()
    return rates
