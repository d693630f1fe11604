"""Pictures have the right colours in the right cells."""

import io
import json
import zipfile

import numpy as np
from PIL import Image

from cliptex_common.images import scale_bar, spread_indices, write_grid
from probes.pictures import write_gallery


def test_the_grid_has_each_picture_in_its_cell(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    red, green, blue = (np.full((60, 120, 3), colour, np.uint8) for colour in colours)
    rows, captions = [[red, green], [blue]], ["one", "two"]
    path = tmp_path / "preview.png"
    write_grid(path, ("a", "b"), rows, captions, scale_bar(0, 1))
    sheet = np.asarray(Image.open(path).convert("RGB"))
    for y, x, colour in zip((112, 112, 268), (136, 400, 136), colours, strict=True):
        assert sheet[y, x].tolist() == list(colour)
    assert (sheet[:28] < 100).any() and (sheet[28:48, :60] < 150).any()  # titles and captions


def test_a_gallery_stores_label_maps_without_loss(tmp_path):
    labels = np.zeros((300, 600, 3), np.uint8)
    labels[:, 300:] = (200, 30, 90)
    photo = np.random.default_rng(0).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    pictures = {"image": photo, "truth": labels, "prediction": labels[:, ::-1]}
    images = ((f"{number}.jpg", pictures) for number in range(3))
    path = write_gallery(tmp_path, images, legend=labels, flat=True)
    with zipfile.ZipFile(path) as pack:
        index = json.loads(pack.read("index.json"))
        assert [entry["name"] for entry in index["images"]] == ["0.jpg", "1.jpg", "2.jpg"]
        pixels = {
            role: np.asarray(Image.open(io.BytesIO(pack.read(file))).convert("RGB"))
            for role, file in {**index["images"][1], "legend": index["legend"]}.items()
            if role != "name"
        }
    assert pixels["legend"].shape == (300, 600, 3) and pixels["image"].shape == (88, 176, 3)
    ground_truth = pixels["truth"]
    assert (ground_truth[:, :88] == 0).all() and (ground_truth[:, 88:] == (200, 30, 90)).all()
    assert (pixels["prediction"][:, ::-1] == ground_truth).all()


def test_evenly_spaced_indices():
    assert spread_indices(100, 5) == [0, 25, 50, 74, 99]
    assert spread_indices(3, 48) == [0, 1, 2] and spread_indices(0, 48) == []
