"""SPair-71k (Min et al. 2019): 70,958 pairs of photographs of 18 categories with the keypoints that
both show; tested on 12,234.

``JPEGImages/CATEGORY/NAME.jpg``, ``PairAnnotation/test/*.json`` and the list
``Layout/large/test.txt``, as its archive unpacks. An image is a sample with the pairs that it is
the source of.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_annotations, read_lines, require_file, require_folder
from probes.registry import register_dataset

PARTS = {"train": "trn", "val": "test"}


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The images of a split's pairs, in the order of their names."""
    root, part = Path(root), PARTS[split]
    annotations = require_folder(root, f"PairAnnotation/{part}")
    pairs_of_image: dict[str, list[dict[str, Any]]] = {}
    for name in read_lines(require_file(root, f"Layout/large/{part}.txt")):
        # some file systems allow no colon in names, and copies there have an underscore for it
        path = require_file(annotations, f"{name}.json", f"{name.replace(':', '_')}.json")
        annotation = read_annotations(path)
        with report_malformed(f"{path} is no pair of SPair-71k"):
            source, target = (
                f"JPEGImages/{annotation['category']}/{annotation[f'{side}_imname']}"
                for side in ("src", "trg")
            )
            pair = {
                "image": target,
                "source": annotation["src_kps"],
                "target": annotation["trg_kps"],
                "box": annotation["trg_bndbox"],
            }
            for points in (pair["source"], pair["target"]):
                np.asarray(points, np.float64).reshape(len(points), 2)
            np.asarray(pair["box"], np.float64).reshape(4)
        if not pair["source"] or len(pair["source"]) != len(pair["target"]):
            raise UserError(
                f"{path} has {len(pair['source'])} and {len(pair['target'])} keypoints; get the"
                " file again"
            )
        pairs_of_image.setdefault(source, []).append(pair)
        pairs_of_image.setdefault(target, [])  # an image that is a target only is a sample, too
    return [Sample(image, pairs) for image, pairs in sorted(pairs_of_image.items())]


register_dataset(
    DatasetSpec(
        name="spair",
        kind="correspondence",
        folder="SPair-71k",
        list_samples=list_samples,
        about="SPair-71k keypoints (cvlab.postech.ac.kr/research/SPair-71k)",
    )
)
