"""Detections as columns: what a COCO result list says, in a few arrays that are read a hundred
times as quickly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FILE = "detections.npz"
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
    """A COCO result list (``image_id``, ``category_id``, ``bbox``, ``score``, perhaps
    ``segmentation`` as a compressed run-length code, and what each matched, see
    ``probes.detection.matches``) → arrays over its N detections: each field; ``bbox`` (N, 4)
    float32; of masks ``mask_size`` (N, 2), the bytes of their codes in one row, ``mask_codes``, and
    where each ends, ``mask_ends`` (N,). A field that a detection lacks is 0."""
    found = {
        name: np.array([one.get(name, 0) for one in detections], kind)
        for name, kind in TYPES.items()
        if any(name in one for one in detections) or not (detections or name.startswith("segm"))
    }
    found["bbox"] = np.array(
        [one.get("bbox", (0, 0, 0, 0)) for one in detections], np.float32
    ).reshape(-1, 4)
    masks = [one["segmentation"] for one in detections if "segmentation" in one]
    if masks and len(masks) == len(detections):
        codes = [mask["counts"].encode() for mask in masks]
        found["mask_size"] = np.array([mask["size"] for mask in masks], np.int32)
        found["mask_codes"] = np.frombuffer(b"".join(codes), np.uint8)
        found["mask_ends"] = np.cumsum([len(code) for code in codes])
    return found


def to_results(columns: Columns) -> list[dict[str, Any]]:
    """The inverse of ``to_columns``: a COCO result list, as pycocotools reads it."""
    plain = {name: columns[name].tolist() for name in (*TYPES, "bbox") if name in columns}
    results = [
        dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)
    ]
    if "mask_ends" in columns:
        codes, ends = columns["mask_codes"].tobytes(), columns["mask_ends"].tolist()
        for one, size, start, end in zip(
            results, columns["mask_size"].tolist(), [0, *ends], ends, strict=False
        ):
            one["segmentation"] = {"size": size, "counts": codes[start:end].decode()}
    return results
