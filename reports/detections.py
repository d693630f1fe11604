"""Detections as columns: a COCO result list in a few arrays, which load a hundred times as fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]
TYPES = {
    "image_id": np.int64,
    "category_id": np.int32,
    "score": np.float32,
    "class": np.int16,
    "bbox_hits": np.uint16,
    "bbox_ignored": np.uint16,
    "segm_hits": np.uint16,
    "segm_ignored": np.uint16,
}


def to_columns(detections: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """A COCO result list as arrays over its N detections.

    Args:
        detections: with ``image_id``, ``category_id``, ``bbox``, ``score``, perhaps
            ``segmentation`` as a compressed run-length code, and their matches (see
            ``probes.detection.coco``). A missing field is 0.

    Returns:
        Each field; ``bbox`` (N, 4) float32; of masks ``mask_size`` (N, 2), the bytes of all codes,
        ``mask_codes``, and where each ends, ``mask_ends`` (N,).
    """
    columns = {
        name: np.array([detection.get(name, 0) for detection in detections], kind)
        for name, kind in TYPES.items()
        if any(name in detection for detection in detections)
        or not (detections or name.startswith("segm"))
    }
    boxes = [detection.get("bbox", (0, 0, 0, 0)) for detection in detections]
    columns["bbox"] = np.array(boxes, np.float32).reshape(-1, 4)
    masks = [detection["segmentation"] for detection in detections if "segmentation" in detection]
    if masks and len(masks) == len(detections):
        codes = [mask["counts"].encode() for mask in masks]
        columns["mask_size"] = np.array([mask["size"] for mask in masks], np.int32)
        columns["mask_codes"] = np.frombuffer(b"".join(codes), np.uint8)
        columns["mask_ends"] = np.cumsum([len(code) for code in codes])
    return columns
