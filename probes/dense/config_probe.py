"""A probe that a user's config file states, in MMEngine's format: ``--task voc/my_probe.py``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cliptex_common.errors import UserError
from cliptex_common.plugins import Plugin
from cliptex_common.settings import with_changes
from probes.configs import config_file
from probes.datasets.base import PreparedDataset
from probes.dense.config import LITERALS
from probes.dense.head_table import DenseHead
from probes.dense.probe import DenseProbe
from probes.dense.tasks import DENSE_TASKS, DenseTask
from probes.registry import PROBES
from probes.settings import scheduler_configs
from probes.train.config import NO_DECAY, TRAINING, parse_config, read_config, stated_settings

OF_SCHEDULE = ("max_iters", "epochs", "warmup", "warmup_start", "schedule", "steps", "power")
OF_LOSS = ("loss_mean", "silog_lambda", "bins", "bins_loss", "sig_warmup", "uncertainty")


class ConfigProbe(DenseProbe):
    """A probe that a config file states; the defaults of its settings are the file's literals.

    A setting that would change what the file states in its own way is refused.
    """

    def __init__(self, name: str, config: Config, task: DenseTask) -> None:
        super().__init__(DenseHead(name), task)
        self.is_shipped, self._config = False, config
        self.defaults = stated_settings(config, {**TRAINING, **LITERALS})
        self.defaults |= _sizes(config)
        self.defaults["decay_all"] = config.optim_wrapper.get("paramwise_cfg") != NO_DECAY
        loss = config.model.decode_head.get("loss_decode")
        shipped = read_config(config_file(task.name, "linear")).model.decode_head.loss_decode
        self.loss_is_fixed = loss not in (None, shipped)
        self._settings: Any = with_changes(self.settings_type(), self.defaults)
        self.schedule_is_fixed = config.param_scheduler != scheduler_configs(self._settings)

    def read_config(self) -> Config:
        return copy.deepcopy(self._config)

    def fits(self, backbone: Any, data: PreparedDataset, settings: Any) -> None:
        fixed = {*TRAINING, *LITERALS} - self.defaults.keys()
        fixed |= set(OF_SCHEDULE) if self.schedule_is_fixed else set()
        fixed |= set(OF_LOSS) if self.loss_is_fixed else set()
        for name in sorted(fixed):
            if getattr(settings, name, None) != getattr(self._settings, name, None):
                raise UserError(
                    f"{name}={getattr(settings, name)}: the config file of {self.name} has its own;"
                    " change it there"
                )
        super().fits(backbone, data, settings)


def _sizes(config: Config) -> dict[str, Any]:
    """The settings ``size`` and ``crop`` by the literals of the pipelines."""
    test, train = config.val_dataloader.dataset.pipeline, config.train_dataloader.dataset.pipeline
    size = next((part["scale"][-1] for part in test if "scale" in part), 0)
    crop = next((tuple(part["crop_size"]) for part in train if "crop_size" in part), ())
    return {"size": size, "crop": () if crop == (size, size) else crop}


def register_config(plugin: Plugin) -> None:
    """Register the probe of a plugin that is a config file: one that states a ``model`` or bases.

    Raises:
        UserError: it states no evaluator of a dense task.
    """
    if not {"model", "_base_"} & vars(sys.modules[plugin.module]).keys():
        return
    config, name = parse_config(plugin.path.name, plugin.source), Path(plugin.path).stem
    for kind, task in DENSE_TASKS.items():
        shipped = read_config(config_file(kind, "linear")).val_evaluator
        if (
            config.val_evaluator.type == shipped.type
            and config.val_evaluator.get("task", kind) == kind
        ):
            PROBES.register(f"{kind}/{name}", ConfigProbe(name, config, task), plugin)
            return
    raise UserError(f"val_evaluator.type={config.val_evaluator.type} is of no dense task")
