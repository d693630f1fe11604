"""Probes of frozen backbones."""

import sys

from cliptex_common.registry import keep_importable
from probes.mmlab import OperatorFinder, OptionalFinder

# before anything imports mmcv's operators, mmseg or timm. The first is asked where mmcv has none,
# the second before Python's own finders, which would find the modules
sys.meta_path.append(OperatorFinder())
sys.meta_path.insert(0, OptionalFinder())
keep_importable(
    {
        "probes.datasets.layouts": "probes.datasets.base",
        "probes.dense.tasks.base": "probes.dense.task",
        "probes.dense.transforms": "probes.dense.pipelines",
        "probes.protocols.base": "probes.registry",
    }
)
