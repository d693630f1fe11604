"""Masks of COCO files: what pycocotools writes is right, whatever is damaged is not."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from common.coco_masks import mask_error


def packed(pixels: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


@pytest.mark.parametrize("seed", range(20))
def test_what_pycocotools_packs_is_right_and_cut_short_it_is_not(seed):
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 300, 2))
    pixels = random.random((height, width)) < random.random()
    code = packed(pixels)
    assert mask_error(code, height, width) == ""
    counts = np.diff(
        np.flatnonzero(np.diff(np.r_[0, pixels.T.reshape(-1), 2].astype(int))), prepend=0
    ).tolist()
    assert mask_error({**code, "counts": counts}, height, width) == ""
    for damaged in (
        code["counts"][:-1],
        code["counts"] + "1",
        "é" + code["counts"],
        "",
        "oooooooooooooooooo",
    ):
        assert mask_error({**code, "counts": damaged}, height, width), damaged


@pytest.mark.parametrize(
    "mask",
    [
        None,
        "text",
        3,
        [],
        [[]],
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, "3", 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, float("nan"), 5, 6]],
        [[0, 0, 1e9, 0, 0, 1e9]],
        [[0, 0, 9, 0, 9, 9], None],
        {},
        {"size": [5, 7]},
        {"size": [7, 5], "counts": [35]},
        {"size": [5, 7], "counts": [10, 10]},
        {"size": [5, 7], "counts": [40, -5]},
        {"size": [5, 7], "counts": [35.0]},
        {"size": [5, 7], "counts": None},
        {"size": None, "counts": [35]},
    ],
)
def test_what_is_no_mask_is_wrong(mask):
    assert mask_error(mask, 5, 7)


@pytest.mark.parametrize(
    "mask",
    [[[0, 0, 7.5, 0, 7, 5.25]], [[-1, 0, 7, 0, 7, 5, 0, 5]], {"size": [5, 7], "counts": [0, 35]}],
)
def test_what_is_a_mask_is_right(mask):
    assert mask_error(mask, 5, 7) == ""
