"""Detection and instance segmentation on a frozen backbone: Mask R-CNN and SSD through
MMDetection."""

from probes.detection.probe import DetectionProbe
from probes.detection.settings import MaskRCNNSettings, SSDSettings
from probes.registry import register_probe
from reports.metrics import Metric

_SIZES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
BOXES, MASKS = (
    {
        f"{kind}_{name}": Metric(label=f"{word} {name.replace('_', ' ')}", shown=name == "mAP")
        for name in _SIZES
    }
    for kind, word in (("bbox", "box"), ("segm", "mask"))
)

register_probe(DetectionProbe("mask-rcnn", MaskRCNNSettings, {**BOXES, **MASKS}))
register_probe(DetectionProbe("ssd", SSDSettings, BOXES))
