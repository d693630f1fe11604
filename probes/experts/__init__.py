"""Experts that need MMDetection, which only this package imports; importing it registers them."""

from backbones.cliptex.experts.base import EXPERTS

EXPERTS.register_lazy(
    "mask-rcnn",
    "probes.experts.mask_rcnn:MaskRCNN",
    "semantic maps from instances, by MMDetection's CONFIG.py:CHECKPOINT or torchvision's"
    " CHECKPOINT",
)
