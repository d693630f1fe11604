"""Pictures have the right colours in the right cells."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from probes.pictures import (
    GAP,
    IGNORED,
    UNKNOWN,
    class_legend,
    depth_picture,
    evenly,
    label_picture,
    normal_picture,
    palette,
    scale_bar,
    write_gallery,
    write_preview,
)


def test_the_palette_is_pascal_vocs():
    colours = palette(21)
    voc = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)}
    voc |= {15: (192, 128, 128), 20: (0, 64, 128)}
    assert {index: tuple(colours[index].tolist()) for index in voc} == voc
    assert len(np.unique(palette(150), axis=0)) == 150
    assert list(IGNORED) not in palette(255).tolist()


def test_labels_have_their_colours():
    picture = label_picture(np.array([[0, 1], [2, 255]]), palette(3))
    assert picture.tolist() == [[[0, 0, 0], [128, 0, 0]], [[0, 128, 0], list(IGNORED)]]


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


def test_legends_have_ink_and_wrap():
    bar = scale_bar(0.5, 9.5, 300)
    assert bar.shape == (28, 300, 3) and len(np.unique(bar.reshape(-1, 3), axis=0)) > 100
    names = [f"class {i}" for i in range(12)]
    wide, narrow = (class_legend(names, palette(12), width) for width in (2000, 200))
    assert wide.shape[:2] == (22, 2000) and narrow.shape[1] == 200 and narrow.shape[0] > 66
    for legend in (wide, narrow):
        assert all((legend == colour).all(axis=2).any() for colour in palette(12))


def test_the_grid_has_each_picture_in_its_cell(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    red, green, blue = (np.full((60, 120, 3), colour, np.uint8) for colour in colours)
    tall = np.full((512, 256, 3), (255, 0, 255), np.uint8)
    path = write_preview(
        tmp_path / "preview.png",
        ("a", "b"),
        [[red, green], [blue, tall]],
        ["one", "two"],
        scale_bar(0, 1),
    )
    sheet = np.asarray(Image.open(path).convert("RGB"))
    assert sheet.shape[:2] == (28 + 128 + 256 + 2 * (20 + GAP) + GAP + 28 + GAP, 2 * 256 + 3 * GAP)
    second_row = 28 + 20 + 128 + GAP + 20
    for y, x, picture in (
        (28 + 20 + 64, GAP + 128, red),
        (28 + 20 + 64, 2 * GAP + 256 + 128, green),
        (second_row + 20, GAP + 128, blue),
        (second_row + 200, 2 * GAP + 256 + 64, tall),
    ):
        assert sheet[y, x].tolist() == picture[0, 0].tolist()
    assert (sheet[:28] < 100).any() and (sheet[28:48, :60] < 150).any()  # titles and captions


def test_a_gallery_keeps_label_maps_exactly_and_photographs_small(tmp_path):
    labels = np.zeros((300, 600, 3), np.uint8)
    labels[:, 300:] = (200, 30, 90)
    photo = np.random.default_rng(0).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    pictures = {"image": photo, "truth": labels, "prediction": labels[:, ::-1]}
    images = ((f"{number}.jpg", pictures) for number in range(3))
    path = write_gallery(tmp_path / "gallery.zip", images, legend=labels, flat=True)
    with zipfile.ZipFile(path) as pack:
        index = json.loads(pack.read("index.json"))
        assert [entry.pop("name") for entry in index["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
        files = {**index["images"][1], "legend": index["legend"]}
        opened = {role: Image.open(io.BytesIO(pack.read(file))) for role, file in files.items()}
    assert opened.pop("legend").size == (600, 300)
    assert {picture.size for picture in opened.values()} == {(176, 88)}
    labels, mirrored = (np.asarray(opened[role].convert("RGB")) for role in ("truth", "prediction"))
    assert (labels[:, :88] == 0).all() and (labels[:, 88:] == (200, 30, 90)).all()
    assert (mirrored[:, ::-1] == labels).all()


@pytest.mark.parametrize(
    ("count", "limit", "indices"),
    [(100, 5, [0, 25, 50, 74, 99]), (3, 48, [0, 1, 2]), (0, 48, [])],
)
def test_evenly_spaced_indices(count, limit, indices):
    assert evenly(count, limit) == indices


def test_a_preview_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_preview(tmp_path / "file" / "preview.png", ("a",), [[np.zeros((4, 4, 3), np.uint8)]])
