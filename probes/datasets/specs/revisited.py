"""Revisited Oxford and Paris (Radenović et al., CVPR 2018): photographs of landmarks, 70 queries
each.

``jpg/NAME.jpg`` and ``gnd_roxford5k.mat`` or ``gnd_rparis6k.mat``, the official lists and ground
truth. Those in a ``.pkl`` are not read: it could run any code.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import require_file, require_folder
from probes.registry import register_dataset


def samples_of(name: str, root: Path, split: Split) -> list[Sample]:
    """The gallery and, after it, the queries, which are no part of it."""
    from scipy.io import loadmat

    if split == "train":
        return []
    require_folder(root, "jpg")
    path = require_file(root, f"gnd_{name}.mat")
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:
        raise UserError(f"cannot read {path} ({error}); get the file again") from error
    with report_malformed(f"{path} is not the ground truth of {name}"):
        gallery, queries = (
            [f"jpg/{Path(str(image)).stem}.jpg" for image in np.atleast_1d(content[key])]
            for key in ("imlist", "qimlist")
        )
        targets = [_target(entry, gallery) for entry in np.atleast_1d(content["gnd"])]
        samples = [Sample(image, {"gallery": name}) for image in gallery]
        return samples + [
            Sample(image, {"searches": name, **target})
            for image, target in zip(queries, targets, strict=True)
        ]


def _target(entry: dict[str, Any], gallery: list[str]) -> dict[str, Any]:
    """The ground truth of a query; see ``Sample``. Of each level the others' images are junk."""
    easy, hard, junk = (
        [gallery[number - 1] for number in np.atleast_1d(entry[key]).astype(int) if number > 0]
        for key in ("easy", "hard", "junk")
    )
    return {
        "box": np.asarray(entry["bbx"], np.float64).reshape(4).tolist(),
        "positives": {"hard": hard, "medium": easy + hard, "easy": easy},
        "junk": {"hard": junk + easy, "medium": junk, "easy": junk + hard},
    }


for _name, _images, _about in (
    (
        "roxford5k",
        4993,
        "Revisited Oxford: oxbuild_images-v1.tgz of www.robots.ox.ac.uk/~vgg/data/oxbuildings",
    ),
    (
        "rparis6k",
        6322,
        "Revisited Paris: paris_{1,2}-v1.tgz of www.robots.ox.ac.uk/~vgg/data/parisbuildings",
    ),
):
    register_dataset(
        DatasetSpec(
            name=_name,
            kind="instance-retrieval",
            folder=_name,
            list_samples=partial(samples_of, _name),
            expected={"train": 0, "val": _images + 70},
            extra={"average_precision": "trapezoids"},
            about=(
                f"{_about} unpacked to jpg/NAME.jpg without folders, and"
                f" cmp.felk.cvut.cz/revisitop/data/datasets/{_name}/gnd_{_name}.mat"
            ),
        )
    )
