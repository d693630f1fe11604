"""Propagation of masks, where the right ones are known."""

import json
import math
import zipfile

import pytest
from PIL import Image

from cliptex_common.errors import NonFiniteLoss
from probes.matching.probe import LABEL_PROPAGATION
from probes.matching.videos import resize_frame
from probes.registry import DATASETS
from reports.per_image import image_scores
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
    assert image_scores("video", result.per_image).units == ("video0", "video1")
    with zipfile.ZipFile(result.preview.with_name("gallery.zip")) as pack:
        index = json.loads(pack.read("index.json"))
    assert [image["name"] for image in index["images"]] == rows


class Broken(Patches):
    """One patch of each frame is not a number."""

    def forward(self, images):
        (features,) = super().forward(images)
        features[:, :, 0, 0] = math.nan
        return (features,)


def test_features_that_are_not_finite_have_no_score(tmp_path):
    spec, root = DATASETS["davis"], make_davis(tmp_path)
    task = context(LABEL_PROPAGATION, spec, root, backbone=Broken(), size=80)
    with pytest.raises(NonFiniteLoss, match="are not finite"):
        LABEL_PROPAGATION.run(task)


@pytest.mark.parametrize(
    ("method", "short", "divisor", "size", "expected"),
    [
        ("dino", 480, 16, (854, 480), (480, 832)),
        ("dino", 480, 14, (854, 480), (490, 840)),
        ("dino", 480, 32, (480, 854), (832, 480)),
        ("dinov3", 960, 16, (854, 480), (960, 1712)),
        ("dinov3", 960, 14, (480, 854), (1722, 966)),
    ],
)
def test_frames_are_resized_to_whole_patches(method, short, divisor, size, expected):
    assert resize_frame(Image.new("RGB", size), short, method, divisor).shape == (3, *expected)
