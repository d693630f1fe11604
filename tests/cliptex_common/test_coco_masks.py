"""Masks that pycocotools writes are valid; damaged ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cliptex_common.images import mask_error


@pytest.mark.parametrize("seed", range(5))
def test_packed_masks_are_valid_until_damaged(seed):
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 300, 2))
    pixels = (random.random((height, width)) < random.random()).astype(np.uint8)
    code = coco_mask.encode(np.asfortranarray(pixels))
    packed = code["counts"].decode()
    size = list(code["size"])
    assert mask_error({"size": size, "counts": packed}, height, width) == ""
    for damaged in (packed[:-1], packed + "1", "é" + packed, ""):
        assert mask_error({"size": size, "counts": damaged}, height, width), damaged


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, "3", 4, 5, 6]],
        [[0, 0, 1e9, 0, 0, 1e9]],
        {"size": [7, 5], "counts": [35]},
        {"size": [5, 7], "counts": [10, 10]},
        {"size": [5, 7], "counts": [40, -5]},
        {"size": [5, 7]},
    ],
)
def test_invalid_masks(mask):
    assert mask_error(mask, 5, 7)


@pytest.mark.parametrize(
    "mask",
    [[[0, 0, 7.5, 0, 7, 5.25]], [[-1, 0, 7, 0, 7, 5, 0, 5]], {"size": [5, 7], "counts": [0, 35]}],
)
def test_valid_masks(mask):
    assert mask_error(mask, 5, 7) == ""
