"""The dense probes: semantic segmentation, depth and surface normals, each with a linear, a
DeepLabv3, a PSPNet and a DPT head, depth and normals with probe3d's simplified DPT head too.

One config is generated for all of them: mmseg's encoder-decoder over the frozen backbone, whose
maps are brought to one stride and concatenated. Kinds differ in objective, ground truth and scores,
probes in the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from probes.base import Context, Probe, TaskResult
from probes.datasets.base import Kind, Split
from probes.dense.settings import METRICS, SETTINGS
from probes.registry import register_probe
from reports.metrics import Metric

PROBES = ("linear", "deeplabv3", "pspnet", "dpt", "dpt-probe3d")


@dataclass
class DenseProbe:
    """A dense probe; see ``probes.base.Probe``."""

    name: str
    kind: Kind
    settings_type: type
    metrics: Mapping[str, Metric]
    version: int
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine. With ``lr_grid`` that of the
        first rate."""
        from probes.dense.config import dense_config
        from probes.dense.lr_grid import with_rate
        from probes.runner.training import resolved

        context = replace(context, data=context.data.without_unused)
        if rates := context.settings.lr_grid:
            context = with_rate(context, rates[0])
        return resolved(dense_config(self, context), context).pretty_text

    def group_key(self, context: Context) -> str:
        """See ``probes.dense.group.group_key``."""
        from probes.dense.group import group_key

        return group_key(self, context)

    def run_group(self, tasks: Sequence[tuple[Probe, Context]]) -> list[TaskResult | Exception]:
        """See ``probes.dense.group.run_group``."""
        from probes.dense.group import run_group

        return run_group(tasks)

    def run(self, context: Context) -> TaskResult:
        """A group of one.

        Raises:
            UserError: the dataset or the settings do not fit the probe.
            NonFiniteLoss: training diverged.
        """
        (result,) = self.run_group([(self, context)])
        if isinstance(result, Exception):
            raise result
        return result


for _kind, _settings in SETTINGS.items():
    for _name in PROBES:
        if (_kind, _name) != ("segmentation", "dpt-probe3d"):
            # dpt 4 was probe3d's head; linear 4 rounded otherwise on a CPU
            _version = 5 if _name in ("dpt", "linear") else 4
            register_probe(DenseProbe(_name, _kind, _settings, METRICS[_kind], _version))
