"""Detection and instance segmentation on a frozen backbone: Mask R-CNN and SSD through MMDetection."""

from probes.detection.probe import DetectionProbe
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.registry import register_probe

_SIZES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
BOXES = {f"bbox_{name}": 1 for name in _SIZES}
MASKS = {f"segm_{name}": 1 for name in _SIZES}

register_probe(DetectionProbe("mask-rcnn", MaskRCNNSettings, {**BOXES, **MASKS}))
register_probe(DetectionProbe("ssd", SSDSettings, BOXES))
