"""Experts that need MMDetection, which only this floor may import. Importing this registers them beside the others."""

from probes.experts.mask_rcnn import MaskRCNN

__all__ = ["MaskRCNN"]
