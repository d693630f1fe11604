"""Maps are read from the official layouts as they are stored."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.images import read_depth, read_labels, read_normals, read_scalars


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, -1]))
def test_labels_are_shifted_and_ignored(tmp_path_factory, seed, offset):
    random, path = np.random.default_rng(seed), tmp_path_factory.mktemp("labels") / "label.png"
    values = random.choice([*range(5), 255], (6, 7))
    Image.fromarray(values.astype(np.uint8)).save(path)
    expected = np.where((values == 255) | (values + offset < 0), 255, values + offset)
    assert (read_labels(str(path), offset, 255, 5) == expected).all()


def test_palette_label_maps_are_read_by_index(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(values, mode="P")
    image.putpalette([value % 256 for value in range(3, 771)])
    image.save(path := tmp_path / "label.png")
    assert (read_labels(str(path), 0, 255, 12) == values).all()


def test_bad_label_maps_are_named(tmp_path):
    path = tmp_path / "label.png"
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"label\.png holds 7, which is none of the 7 classes"):
        read_labels(str(path), 0, 255, 7)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"one number a pixel.* this one is RGB"):
        read_labels(str(path), 0, 255, 7)
    path.write_bytes(b"nothing")
    for read in (lambda p: read_labels(p, 0, 255, 7), lambda p: read_depth(p, 1e-3), read_normals):
        with pytest.raises(UserError, match=r"cannot read .*label\.png"):
            read(str(path))


def test_numbers_are_between_black_and_white(tmp_path):
    path = tmp_path / "map.png"
    for stored in (np.array([[0, 51, 255]], np.uint8), np.array([[0, 13107, 65535]], np.uint16)):
        Image.fromarray(stored).save(path)
        numbers = read_scalars(path, -1.0, 4.0)
        assert numbers.dtype == np.float32 and numbers.tolist() == [[-1, 0, 4]]
    Image.fromarray(np.array([[False, True]])).save(path)
    assert read_scalars(path, -1.0, 4.0).tolist() == [[-1, 4]]


def test_depth_is_in_metres_and_normals_are_unit(tmp_path):
    path = str(tmp_path / "map.png")
    cv2.imwrite(path, np.uint16([[0, 1234, 9999]]))
    np.testing.assert_allclose(read_depth(path, 1e-3), [[0, 1.234, 9.999]])
    axes = [[255, 128, 128], [128, 255, 128], [128, 128, 255]]
    cv2.imwrite(path, np.uint8([[*axes, [0, 0, 0], [127, 128, 128]]])[..., ::-1])
    normals = read_normals(path)[0]
    assert normals[:3] == pytest.approx(np.eye(3), abs=0.01) and not normals[3:].any()
    assert np.linalg.norm(normals[:3], axis=1) == pytest.approx(1)
