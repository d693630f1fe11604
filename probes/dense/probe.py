"""The dense probes: each dense task (``probes.dense.tasks``) with each of the heads.

Its config is that of the head and of the data (``probes.configs``): mmseg's encoder-decoder over
the frozen backbone, whose maps are brought to one stride and concatenated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

from backbones.cliptex.tasks import TASKS
from cliptex_common.errors import UserError
from probes.base import Context, Probe, Reuse, TaskResult, requested_layer
from probes.datasets.base import PreparedDataset
from probes.dense.settings import SHIPPED, DenseHead
from probes.dense.tasks import DENSE_TASKS, DenseTask
from probes.registry import HEADS, PROBES, register_probe
from reports.per_image import SCORERS
from reports.records import KIND_LEVELS


class DenseProbe(Probe):
    """A head on datasets of one dense task; see ``probes.base.Probe``.

    Attributes:
        is_shipped: whether its head is one of this package's, which need not be tried: it has no
            setting ``head`` (``DenseHead.config`` is None), but a config file.
    """

    reuse: Reuse = "head"

    def __init__(self, head: DenseHead, task: DenseTask) -> None:
        self.head, self.task = head, task
        self.name, self.version = head.name, head.version + task.version
        self.kind, self.metrics = task.name, task.metrics
        self.is_shipped = head.config is None
        self.defaults = {} if self.is_shipped else {"head": head.config}

    @cached_property
    def settings_type(self) -> type:  # type: ignore[override]
        task = self.task
        return task.shipped_settings if self.head.config is None else task.head_settings

    def read_config(self) -> Any:
        """The config of its files, to be completed."""
        from probes.train.config import config_files, read_config

        return read_config(*config_files(self.kind, self.name if self.is_shipped else "head"))

    def fits(self, backbone: Any, data: PreparedDataset, settings: Any) -> None:
        """See ``Probe``; a head that this package does not know is run on maps without data."""
        if self.head.maps and settings.layers != "all":
            raise UserError(
                f"layers={settings.layers}: {self.name} fuses {self.head.maps} feature maps, not"
                " one; leave layers out, or choose another probe"
            )
        if self.head.config is not None:
            self._check_head(settings.head)
        super().fits(backbone, data, settings)
        is_known = requested_layer(settings) is None
        if not is_known:  # it is one map, as the last; those of a plain ViT are alike
            settings = replace(settings, layers="last")
            is_known = len({*zip(backbone.channels, backbone.strides, strict=True)}) == 1
        if self.is_shipped:
            self.head.check(settings, backbone)
            self.task.check_dataset(data)
        if self.is_shipped or not is_known:  # only the unit that reads the layer knows its map
            return
        from probes.dense.trial import try_model

        try_model(self, settings, data, backbone)

    def _check_head(self, requested: Mapping[str, Any]) -> None:
        """Raise ``UserError`` where the setting ``head`` fits no backbone and no dataset."""
        name, own = requested.get("type"), self.defaults["head"].get("type")
        if not name:
            raise UserError(
                "head.type is missing: name a head of mmseg's registry, such as --set"
                " head.type=UPerHead"
            )
        if own and name != own:
            raise UserError(f"head.type={name}: probe {self.name} is {own}; use probe head")
        if not own and name in HEADS:
            raise UserError(f"head.type={name}: {name} is a probe of its own, DATASET/{name}")
        from probes.dense.heads import check_settings

        check_settings(requested, self.task)

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine. With ``lr_grid`` that of the
        first rate."""
        from probes.dense.config import dense_config
        from probes.select import rates_of, with_rate
        from probes.train.loop import config_text

        if rates := rates_of(context.settings):
            context = with_rate(context, rates[0])
        return config_text(None, context, lambda used: dense_config(self, used))

    def join_group(self, context: Context) -> tuple[str | None, Context]:
        """See ``probes.dense.group.join_group``."""
        from probes.dense.group import join_group

        return join_group(self, context)

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


def register_head(
    name: str,
    module: str | type,
    *,
    kinds: Sequence[str] = (),
    version: int = 1,
    **options: Any,
) -> DenseHead:
    """Add a head: the probe ``name`` on every dataset of some dense tasks, whose options are the
    setting ``head``.

    Args:
        module: a head of mmseg's registry, by its name; or a module. It is created with
            ``in_channels``, a list with the channels of each map of the backbone;
            ``out_channels``, the number of outputs of a pixel (classes of segmentation; 1, or the
            bins, of depth; 3 or 4 of normals); ``strides``, a list, if it has a parameter of this
            name; and the options. It is called with the list of maps (N, in_channels[i], H /
            strides[i], W / strides[i]), and returns (N, out_channels, h, w) of any resolution.
        kinds: names of dense tasks; empty for all.
        version: raise it when the same options give other numbers.
        options: defaults of its other options.

    Raises:
        ValueError: there is a head or a probe of this name.
    """
    config = {"type": module if isinstance(module, str) else name, **options}
    declared_in = sys._getframe(1).f_globals["__name__"]
    own = None if isinstance(module, str) else module
    head = DenseHead(name, own, version, kinds, config=config, declared_in=declared_in)
    return _register(head)


def _register(head: DenseHead) -> DenseHead:
    HEADS.register(head.name, head)
    _register_probes([head], DENSE_TASKS.values())
    return head


def _register_probes(heads: Iterable[DenseHead], tasks: Iterable[DenseTask]) -> None:
    for head, task in product(heads, tasks):
        if task.name in (head.kinds or DENSE_TASKS):
            register_probe(DenseProbe(head, task))


def register_dense_task(task: DenseTask) -> DenseTask:
    """Add a family of dense tasks: each head is a probe of its datasets, and reports resample its
    scores. A ``Task`` of CLIPTeX is registered as one, too.

    Raises:
        UserError: its name is taken, or it lacks something.
        Exception: what its own methods raise when they are tried on zeros.
    """
    from backbones.cliptex.targets import Task
    from probes.dense.trial import try_task

    if task.name in {probe.kind for probe in PROBES.values()}:
        raise UserError(f"there are datasets of kind {task.name!r} already; choose another name")
    try_task(task)
    DENSE_TASKS.register(task.name, task)
    SCORERS.register(task.name, task.image_scores)
    KIND_LEVELS[task.name] = task.level
    if isinstance(task, Task):
        TASKS.register(task.name, task)
    _register_probes(HEADS.values(), [task])
    return task


for _head in (*SHIPPED, DenseHead("head", version=2, config={})):
    _register(_head)
