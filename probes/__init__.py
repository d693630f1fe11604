"""Probes of frozen backbones."""

import sys

from cliptex_common.registry import keep_importable
from probes.mmlab import MaskHeadFinder, OperatorFinder

# before anything imports mmcv's operators, or mmseg
sys.meta_path.append(OperatorFinder())
sys.meta_path.insert(0, MaskHeadFinder())
keep_importable({"probes.dense.tasks.base": "probes.dense.task"})
