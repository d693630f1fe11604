"""The dense probes: semantic segmentation, depth and surface normals with each of the heads.

One config is generated for all of them: mmseg's encoder-decoder over the frozen backbone, whose
maps are brought to one stride and concatenated. Kinds differ in objective, ground truth and scores,
probes in the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from probes.base import Context, Probe, TaskResult
from probes.datasets.base import Kind, Split
from probes.dense.decode_heads.base import SHIPPED, DenseHead
from probes.dense.settings import METRICS, SETTINGS
from probes.registry import register_probe
from reports.metrics import Metric


@dataclass
class DenseProbe:
    """A head on datasets of one kind; see ``probes.base.Probe``."""

    head: DenseHead
    kind: Kind
    settings_type: type
    metrics: Mapping[str, Metric]
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")
    name: str = field(init=False)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.version = self.head.name, self.head.version

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


for _head in SHIPPED:
    for _kind in _head.kinds:
        register_probe(DenseProbe(_head, _kind, SETTINGS[_kind], METRICS[_kind]))
