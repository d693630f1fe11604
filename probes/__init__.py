"""Probes of frozen backbones."""

import sys

from cliptex_common.registry import keep_importable
from probes.mmlab import MaskHeadFinder, OperatorFinder

# before anything imports mmcv's operators, or mmseg. The first is asked where mmcv has none, the
# second before Python's own finders, which would find the modules of mmseg
sys.meta_path.append(OperatorFinder())
sys.meta_path.insert(0, MaskHeadFinder())
keep_importable(
    {
        "probes.datasets.layouts": "probes.datasets.base",
        "probes.dense.tasks.base": "probes.dense.task",
        "probes.dense.transforms": "probes.dense.pipelines",
        "probes.protocols.base": "probes.registry",
    }
)
