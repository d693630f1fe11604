"""Probes of frozen backbones."""

import sys

from probes.mmcv_ops import OperatorFinder
from probes.mmseg_heads import MaskHeadFinder

# before anything imports mmcv's operators, or mmseg
sys.meta_path.append(OperatorFinder())
sys.meta_path.insert(0, MaskHeadFinder())
