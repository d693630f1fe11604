"""Keypoint matching on a tiny copy of SPair-71k in its official layout, where the right matches are
known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level.correspondence import pixel_errors
from probes.image_level.probe import KEYPOINTS
from probes.registry import DATASETS
from reports.stats.per_image import image_scores
from tests.probes.whole_images import context

COLOURS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 20)]


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
    assert made.cost.metrics()["encode_images_per_second"] > 0
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
    # that position's centre in 80 × 80, and in 80 × 160
    source, target = [[50.0, 30.0]], [[10.0, 140.0]]
    views = (maps, (80, 80)), (other, (80, 160))
    assert pixel_errors(*views, source, target)[0] < 0.1
    assert pixel_errors(*views, source, [[10.0, 100.0]])[0] == pytest.approx(40, abs=0.1)
