"""Plug-in: the datasets that ``scenes`` writes."""

from __future__ import annotations

from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, mirrored, read_annotations
from probes.datasets.ground_truth import Boxes
from probes.registry import register_dataset
from tests.benchmark.pinned.scenes import ANNOTATIONS, CLASSES


def list_boxes(root: Path, split: str) -> list[Sample]:
    images = read_annotations(root / ANNOTATIONS[split])["images"]
    return [Sample(f"images/{image['file_name']}", Boxes(image["id"])) for image in images]


for spec in (
    DatasetSpec(
        name="tiny-scenes",
        kind="segmentation",
        folder="scenes",
        list_samples=mirrored("images/{part}", "masks/{part}"),
        classes=tuple(CLASSES),
        about="three digits on a part of a photograph, segmented by their shape",
    ),
    DatasetSpec(
        name="tiny-boxes",
        kind="detection",
        folder="scenes",
        list_samples=list_boxes,
        annotations=ANNOTATIONS,
        classes=tuple(CLASSES)[1:],
        about="the same, with the boxes of the digits",
    ),
):
    register_dataset(spec)
