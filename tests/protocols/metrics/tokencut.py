"""Objects that TokenCut's own code cuts out of maps of features, their boxes, and how far these
overlap with those of VOC and COCO as it reads them."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from probes.datasets.objects import list_coco_objects, list_voc_objects
from probes.matching.grouping import Grid, cut, overlaps
from tests.probes import tiny_coco
from tests.probes.matching.layouts import make_voc_objects

SOURCE, COMMIT = "YangtaoWANG95/TokenCut", "fed52cd"
DIFFERS: dict[str, str] = {}
TOLERANCE = {"IoU": 1e-5}
PATCH, THRESHOLD = 16, 0.2
SIZES = [(75, 97), (160, 128), (96, 240)]  # height, width


def maps() -> list[torch.Tensor]:
    """(8, h, w): noise, and from one to three regions that are alike."""
    result = []
    for seed, size in enumerate(SIZES):
        random = np.random.default_rng(seed)
        grid = [-(-side // PATCH) for side in size]
        features = random.normal(size=(8, *grid))
        for _ in range(seed + 1):
            top, left = (random.integers(0, side - 2) for side in grid)
            features[:, top : top + 3, left : left + 4] += 2 * random.normal(size=(8, 1, 1))
        result.append(torch.from_numpy(features).float())
    return result


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    from object_discovery import ncut

    # the file imports what reads images
    tree = ast.parse((checkout / "datasets.py").read_text())
    wanted = {"bbox_iou", "extract_gt_VOC", "extract_gt_COCO"}
    names: dict[str, Any] = {"np": np, "torch": torch}
    tree.body = [each for each in tree.body if getattr(each, "name", "") in wanted]
    exec(compile(tree, "datasets.py", "exec"), names)
    cuts = []
    for features, size in zip(maps(), SIZES, strict=True):
        tokens = torch.cat([torch.zeros(1, 8), features.flatten(1).T])[None]
        grid = list(features.shape[1:])
        box, _, component, *_ = ncut(tokens, grid, [PATCH] * 2, (3, *size), THRESHOLD)
        cuts.append((box, component))
    with tempfile.TemporaryDirectory() as name:
        folder = make_voc_objects(Path(name) / "voc")
        voc = []
        for path in sorted(folder.glob("Annotations/*.xml")):
            objects = [
                {"name": "dog", "bndbox": {tag.tag: tag.text for tag in each}}
                for each in ElementTree.parse(path).getroot().findall("object/bndbox")
            ]
            voc.append(names["extract_gt_VOC"]({"annotation": {"object": objects}})[0])
        annotations = coco_annotations(Path(name) / "coco")
        coco = [names["extract_gt_COCO"](each)[0] for each in annotations]
    ious = [
        names["bbox_iou"](torch.from_numpy(box), torch.from_numpy(boxes))
        for (box, _), boxes in zip(cuts, voc, strict=True)
    ]
    return fields(cuts, voc, coco, ious)


def coco_annotations(folder: Path) -> list[list[dict[str, Any]]]:
    """The annotations of each image of a small copy of COCO."""
    from cliptex_common.images import read_instances

    tiny_coco.write(folder, train=2, val=4)
    images = read_instances(folder / "annotations/instances_val2017.json")[1]
    return [[{"iscrowd": 0, **each} for each in entry["annotations"]] for entry in images.values()]


def fields(cuts: Any, voc: Any, coco: Any, ious: Any) -> dict[str, dict[str, Any]]:
    return {
        "images": {
            "boxes": [np.asarray(box, float) for box, _ in cuts],
            "components": [np.asarray(mask, float) for _, mask in cuts],
            "VOC": [np.asarray(boxes, float) for boxes in voc],
            "COCO": [np.asarray(boxes, float) for boxes in coco if len(boxes)],
            "IoU": [np.asarray(values, float) for values in ious],
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    cuts = []
    for features, size in zip(maps(), SIZES, strict=True):
        cells = cut(features, THRESHOLD)
        cuts.append((Grid(cells.shape, size, size, PATCH).box(cells), cells))
    with tempfile.TemporaryDirectory() as name:
        folder = make_voc_objects(Path(name) / "voc")
        coco_annotations(Path(name) / "coco")
        listed = (
            list_voc_objects("Main/trainval", "", folder, "val"),
            list_coco_objects(Path(name) / "coco", "val"),
        )
        voc, coco = ([np.array(each.target.boxes) for each in samples] for samples in listed)
    ious = [overlaps(box[None], boxes)[0] for (box, _), boxes in zip(cuts, voc, strict=True)]
    return fields(cuts, voc, coco, ious)
