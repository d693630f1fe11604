"""Probes of frozen backbones."""

import sys

from probes.mmcv_ops import OperatorFinder

sys.meta_path.append(OperatorFinder())  # before anything imports mmcv's operators
