"""Keypoint matching on tiny copies of SPair-71k and NAVI in their official layouts, where what is
right is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.datasets import navi
from probes.image_level.correspondence import pixel_errors
from probes.image_level.probe import KEYPOINTS
from probes.registry import DATASETS
from reports.stats.per_image import image_scores
from tests.probes.whole_images import Colours, context

COLOURS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20)]


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


def picture(path, places, size, spot=8):
    """Spots of different colours at (x, y) on grey."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for (x, y), colour in zip(places, COLOURS, strict=False):
        pixels[y - spot : y + spot, x - spot : x + spot] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=98)


@pytest.fixture
def spair(tmp_path):
    """Two categories: in the first the spots moved and the image has another shape, in the second
    two colours changed places."""
    root = tmp_path / "SPair-71k"
    for split, number in (("test", 1), ("trn", 2)):
        (root / f"PairAnnotation/{split}").mkdir(parents=True)
        names = []
        for category, moved, size in (
            ("cat", [(24, 24), (120, 40), (40, 104)], (160, 128)),
            ("dog", [(96, 32), (32, 32), (32, 96)], (128, 128)),
        ):
            shown = [(32, 32), (96, 32), (32, 96)]
            one, two = f"{number}_a.jpg", f"{number}_b.jpg"
            drawn = moved if category == "cat" else shown
            picture(root / f"JPEGImages/{category}/{one}", shown, (128, 128))
            picture(root / f"JPEGImages/{category}/{two}", drawn, size)
            name = f"00000{number}-{number}_a-{number}_b:{category}"
            told = {
                "category": category,
                "src_imname": one,
                "trg_imname": two,
                "src_kps": [list(each) for each in shown],
                "trg_kps": [list(each) for each in moved],
                "trg_bndbox": [16, 16, 116, 96],
            }
            (root / f"PairAnnotation/{split}/{name}.json").write_text(json.dumps(told))
            names.append(name)
        (root / "Layout/large").mkdir(parents=True, exist_ok=True)
        (root / f"Layout/large/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def test_points_are_found_where_their_features_are(spair):
    made = context(KEYPOINTS, DATASETS["spair"], spair, size=128)
    result = KEYPOINTS.run(made)
    assert result.metrics == pytest.approx(
        {"PCK@0.1": 200 / 3, "PCK@0.05": 200 / 3, "PCK@0.1_point": 200 / 3}
    )
    assert result.per_image["image"].tolist() == [
        f"JPEGImages/{c}/1_a.jpg → JPEGImages/{c}/1_b.jpg" for c in ("cat", "dog")
    ]
    assert result.per_image["right_0.1"].tolist() == [3, 1] and result.per_image[
        "points"
    ].tolist() == [3, 3]
    assert result.cost["eval_flops"] > 0 and result.cost["encode_images_per_second"] > 0
    scores = image_scores("correspondence", result.per_image)
    ones = np.ones((1, 2))
    assert {name: metric(ones)[0] for name, metric in scores.metrics.items()} == pytest.approx(
        result.metrics
    )
    assert scores.metrics["PCK@0.1"](np.array([[2.0, 0.0]]))[0] == pytest.approx(100.0)
    trained = DATASETS["spair"].list_samples(spair, "train")
    assert [sample.image for sample in trained] == [
        f"JPEGImages/{c}/2_{x}.jpg" for c in ("cat", "dog") for x in "ab"
    ]
    with pytest.raises(UserError, match="has 1 feature maps, no layer 3"):
        KEYPOINTS.run(context(KEYPOINTS, DATASETS["spair"], spair, size=128, layer=3))


def test_broken_pairs_are_said(spair):
    path = next((spair / "PairAnnotation/test").glob("*cat.json"))
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "trg_kps": []}))
    with pytest.raises(UserError, match="has 3 and 0 keypoints"):
        DATASETS["spair"].list_samples(spair, "val")
    for wrong in (
        {"category": "cat"},
        {**told, "src_kps": 5},
        {**told, "trg_kps": [1, 2]},
        {**told, "trg_bndbox": [1]},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="no pair of SPair-71k"):
            DATASETS["spair"].list_samples(spair, "val")


def test_errors_are_in_pixels_of_the_target():
    maps = torch.zeros(2, 4, 4)
    maps[0], maps[1, 1, 2] = 1, 5  # one place differs
    other = torch.zeros(2, 4, 4)
    other[0], other[1, 3, 0] = 1, 5
    told = {
        "source": [[50.0, 30.0]],
        "target": [[10.0, 140.0]],
    }  # that place's centre in 80 × 80, and in 80 × 160
    assert pixel_errors((maps, (80, 80)), (other, (80, 160)), told)[0] < 0.1
    told["target"] = [[10.0, 100.0]]
    assert pixel_errors((maps, (80, 80)), (other, (80, 160)), told)[0] == pytest.approx(40, abs=0.1)


@pytest.fixture
def scene(tmp_path):
    """A plane 500 mm before two cameras, of which the second is turned by 20° about it; and one
    that sees its back."""
    root, told, focal, size = tmp_path / "navi", [], 100.0, (96, 96)
    rows, columns = np.mgrid[:96, :96] + 0.5
    for number, degrees in enumerate((0.0, 20.0, 170.0)):
        angle = math.radians(degrees)
        normal = np.array(
            [-math.sin(angle), 0.0, math.cos(angle)]
        )  # of the plane, in the camera's frame
        rays = np.stack([(columns - 48) / focal, (rows - 48) / focal, np.ones((96, 96))])
        depth = 500 * normal[2] / np.einsum("i,ihw->hw", normal, rays)
        points = rays * depth - np.array([0, 0, 500.0])[:, None, None]
        turn = np.array(
            [
                [math.cos(angle), 0, -math.sin(angle)],
                [0, 1, 0],
                [math.sin(angle), 0, math.cos(angle)],
            ]
        )
        on_plane = np.einsum("ji,jhw->ihw", turn, points)  # back to the object's frame
        inside = (np.abs(on_plane[:2]) < 120).all(axis=0) & (depth > 0) & (degrees < 90)
        value = np.where(inside, 65535 * 10.0 / np.maximum(depth, 1), 0).round()
        folder = root / "toy/wild_set"
        for part in ("images", "depth"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        colour = np.where(inside, 128 + on_plane, 0).clip(0, 255).astype(np.uint8)
        Image.fromarray(colour.transpose(1, 2, 0)).save(
            folder / f"images/{number:03d}.jpg", quality=98
        )
        Image.fromarray(value.astype(np.uint16)).save(folder / f"depth/{number:03d}.png")
        half = -angle / 2
        told.append(
            {
                "filename": f"{number:03d}.jpg",
                "image_size": list(size),
                "camera": {
                    "q": [math.cos(half), 0.0, math.sin(half), 0.0],
                    "t": [0.0, 0.0, 500.0],
                    "focal_length": focal,
                },
            }
        )
    (root / "toy/wild_set/annotations.json").write_text(json.dumps(told))
    return root


def test_navi_matches_the_same_place_of_the_object(scene):
    first, second, back = DATASETS["navi"].list_samples(scene, "val")
    assert [sample.image for sample in (first, second, back)] == [
        f"toy/wild_set/images/{n:03d}.jpg" for n in range(3)
    ]
    assert first.target[0]["image"] == second.image and second.target[0]["image"] == first.image
    assert back.target == []  # turned by 150° and more from both
    told = navi.keypoints(scene, first.target[0])
    assert len(told["source"]) > 80
    pictures = [
        np.asarray(Image.open(scene / each.image)).astype(float) for each in (first, second)
    ]
    for (x, y), (u, v) in zip(told["source"], told["target"], strict=True):
        if min(u, v) > 2 and max(u, v) < 94:  # the colour of a place is where it lies on the object
            assert np.abs(pictures[0][int(y), int(x)] - pictures[1][int(v), int(u)]).max() < 20
    assert told["box"][2] - told["box"][0] > 30


@pytest.mark.parametrize(
    "wrong", [{"image_size": [0, 0]}, {"camera": {"q": [1, 0, 0, 0], "t": 5, "focal_length": 1}}]
)
def test_broken_cameras_are_said(scene, wrong):
    path = scene / "toy/wild_set/annotations.json"
    path.write_text(json.dumps([{**told, **wrong} for told in json.loads(path.read_text())]))
    with pytest.raises(UserError, match="no annotation file of NAVI"):
        DATASETS["navi"].list_samples(scene, "val")


def test_navi_end_to_end(scene):
    result = KEYPOINTS.run(context(KEYPOINTS, DATASETS["navi"], scene, backbone=Colours(), size=96))
    assert result.metrics["PCK@0.1"] > 50 and "2 pairs" in result.notes[0]
