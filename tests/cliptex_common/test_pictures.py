"""Maps as pictures have the right colours."""

from __future__ import annotations

import numpy as np
import pytest

from cliptex_common.images import (
    IGNORED_COLOUR,
    depth_picture,
    label_picture,
    normal_picture,
    palette,
)
from cliptex_common.images import UNKNOWN_COLOUR as UNKNOWN


def test_depth_gets_brighter_with_distance_and_grey_where_unknown():
    picture = depth_picture(np.array([[0.0, 1.0, 2.0, 3.0, 99.0]]), 1.0, 3.0)[0].astype(int)
    brightness = picture @ (0.3, 0.59, 0.11)
    assert tuple(picture[0]) == UNKNOWN and picture[3].tolist() == picture[4].tolist()
    assert brightness[1] < brightness[2] < brightness[3]
    assert picture[1].tolist() == pytest.approx([68, 1, 84], abs=2)  # viridis begins there
    assert depth_picture(np.ones((2, 2)), 1.0, 1.0).shape == (2, 2, 3)


def test_normals_are_rgb_and_black_where_unknown():
    normals = np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]], float).T[:, None]
    colours = [[255, 127, 127], [127, 0, 127], [127, 127, 255], [0, 0, 0]]
    assert normal_picture(normals)[0].tolist() == colours


def test_labels_have_pascal_vocs_colours():
    colours = palette(255)
    voc = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 20: (0, 64, 128)}
    assert {index: tuple(colours[index].tolist()) for index in voc} == voc
    assert len(np.unique(colours, axis=0)) == 255 and list(IGNORED_COLOUR) not in colours.tolist()
    picture = label_picture(np.array([[0, 1], [2, 255]]), palette(3))
    assert picture.tolist() == [[[0, 0, 0], [128, 0, 0]], [[0, 128, 0], list(IGNORED_COLOUR)]]
