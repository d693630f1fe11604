"""Propagation of masks, where the right ones are known."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from cliptex_common.metrics import contour_accuracy, region_similarity
from probes.datasets.check import prepare
from probes.matching.probe import LABEL_PROPAGATION
from probes.registry import DATASETS
from reports.per_image import image_scores
from tests.probes.datasets.make import save, truncate
from tests.probes.matching.layouts import Patches, make_davis
from tests.probes.whole_images import context


def test_scores_are_of_objects_and_resampled_by_video(tmp_path):
    spec, root = DATASETS["davis"], make_davis(tmp_path)
    settings = {"size": 80, "neighbours": 1, "upsampling": "nearest"}
    task = context(LABEL_PROPAGATION, spec, root, backbone=Patches(), **settings)
    result = LABEL_PROPAGATION.run(task)
    rows = ["video0/1", "video0/2", "video1/1", "video1/2"]
    assert result.per_image["image"].tolist() == rows
    assert result.per_image["unit"].tolist() == [row[:6] for row in rows]
    assert result.metrics["J_and_F"] > 80
    both = result.metrics["J"], result.metrics["F"]
    assert result.metrics["J_and_F"] == pytest.approx(sum(both) / 2)
    scores = image_scores("video", result.per_image)
    assert scores.units == ("video0", "video1")
    assert scores.values() == pytest.approx(result.metrics)
    assert task.progress.advanced == 2
    assert Image.open(result.preview).width > 300
    with zipfile.ZipFile(result.preview.with_name("gallery.zip")) as pack:
        index = json.loads(pack.read("index.json"))
    assert [image["name"] for image in index["images"]] == rows


def test_masks_without_pixels():
    empty, square = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    square[2:5, 2:5] = True
    for measure in (region_similarity, contour_accuracy):
        assert measure(empty, empty) == measure(square, square) == 1
        assert measure(empty, square) == measure(square, empty) == 0


FRAME, MASK = "JPEGImages/480p/video1/00002.jpg", "Annotations/480p/video1/00002.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / FRAME).unlink(), f"{FRAME} is missing"),
        (lambda root: (root / MASK).unlink(), f"{MASK} is missing"),
        (lambda root: truncate(root / FRAME), f"{FRAME} "),
        (lambda root: save(root / MASK, np.zeros((80, 64), np.uint8)), "64x80 but its image is"),
        (
            lambda root: save(
                root / "Annotations/480p/video0/00000.png", np.full((80, 128), 2, np.uint8)
            ),
            "object 1 has no pixel",
        ),
        (
            lambda root: (root / "ImageSets/2017/val.txt").write_text("video0\nbear\n"),
            "folder JPEGImages/480p/bear is missing",
        ),
        (
            lambda root: (root / FRAME).rename((root / FRAME).with_name("last.jpg")),
            "last.jpg is no frame",
        ),
        (lambda root: make_davis(root / "short", frames=2), "has 2 frames"),
    ],
)
def test_a_damaged_copy_is_refused(tmp_path, change, message):
    root = make_davis(tmp_path)
    change(root)
    root = root / "short" if (root / "short").is_dir() else root
    with pytest.raises(UserError, match=message) as error:
        prepare(DATASETS["davis"], root, splits={"val": None}, partial=True)
    assert "\n" not in str(error.value)
