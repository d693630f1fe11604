"""A probe that a user's config file states, in MMEngine's format: ``--task voc/my_probe.py``."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cliptex_common.errors import UserError
from cliptex_common.registry import Plugin
from cliptex_common.settings import field_names, with_changes
from probes.datasets.base import PreparedDataset
from probes.dense.pipelines import stated_sizes
from probes.dense.probe import DenseProbe
from probes.dense.settings import DenseHead
from probes.dense.tasks import DENSE_TASKS, DenseTask
from probes.registry import PROBES
from probes.settings import OPTIMIZERS
from probes.train.config import NO_DECAY, literals, parse_config, stated_settings

# what follows from backbone, dataset and settings
DERIVED = (
    *("model.backbone.name", "model.backbone.out_indices", "model.backbone.class_token"),
    *("model.data_preprocessor", "model.decode_head.in_channels", "model.decode_head.num_classes"),
)


class ConfigProbe(DenseProbe):
    """A probe that a config file states; the defaults of its settings are what the file states.

    Attributes:
        fixed: settings that change nothing, because the file states a part in its own way.
    """

    def __init__(self, name: str, config: Config, task: DenseTask) -> None:
        super().__init__(DenseHead(name, version=2), task)
        self.is_shipped, self._config = False, config  # a user's head is tried, even if mmseg's
        self.defaults, self.fixed = stated_settings(config, self.settings_type)
        self.defaults |= stated_sizes(config)
        wrapper = config.get("optim_wrapper", {})
        if "paramwise_cfg" in wrapper:
            self.defaults["decay_all"] = wrapper["paramwise_cfg"] != NO_DECAY
        for setting, kind in OPTIMIZERS.items():
            if wrapper.get("optimizer", {}).get("type") == kind:
                self.defaults["optimizer"] = setting
        self._settings: Any = with_changes(self.settings_type(), self.defaults)

    def read_config(self) -> Config:
        return copy.deepcopy(self._config)

    def fits(self, backbone: Any, data: PreparedDataset, settings: Any) -> None:
        for name in sorted(field_names(self.settings_type)):
            value, stated = getattr(settings, name), getattr(self._settings, name)
            if value != stated and (name in self.fixed or value is None):
                raise UserError(
                    f"{name}={value}: the config file of {self.name} has its own; change it there"
                )
        super().fits(backbone, data, settings)


def register_config(plugin: Plugin) -> None:
    """Register the probe of a plugin that is a config file: one that states a ``model`` or bases.

    Raises:
        UserError: it states no evaluator of a dense task.
    """
    stated = vars(sys.modules[plugin.module])
    if "_base_" not in stated and not isinstance(stated.get("model"), dict):  # or an nn.Module
        return
    config, name = parse_config(plugin.path.name, plugin.source), Path(plugin.path).stem
    if unwanted := [path for path in DERIVED if any(literals(config, path))]:
        raise UserError(
            f"config file {plugin.path.name} states {', '.join(unwanted)}; leave it out, backbone,"
            " dataset and settings decide"
        )
    evaluator = config.get("val_evaluator", {})  # it alone says what the file is a probe of
    if (kind := evaluator.get("task")) not in DENSE_TASKS:
        raise UserError(f"val_evaluator.type={evaluator.get('type')} is of no dense task")
    probe = ConfigProbe(name, config, DENSE_TASKS[kind])
    PROBES.register(f"{kind}/{name}", probe, plugin)
