"""Keypoint matching on a tiny copy of SPair-71k in its official layout, where the right matches are
known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmark.tasks import PlannedTask
from cliptex_common.errors import NonFiniteLoss, UserError
from probes.image_level.probe import KEYPOINTS
from probes.matching.keypoints import pixel_errors
from probes.registry import DATASETS
from reports.per_image import image_scores
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


@pytest.fixture
def spair(tmp_path):
    return make.make_spair(tmp_path)


def test_points_match_where_their_features_are(spair):
    task = context(KEYPOINTS, DATASETS["spair"], spair, size=128)
    result = KEYPOINTS.run(task)
    two_thirds = dict.fromkeys(("PCK@0.1", "PCK@0.05", "PCK@0.1_point"), 200 / 3)
    assert result.metrics == pytest.approx(two_thirds)
    assert result.per_image["image"].tolist() == [
        f"JPEGImages/{category}/1_a.jpg → JPEGImages/{category}/1_b.jpg"
        for category in ("cat", "dog")
    ]
    assert result.per_image["right_0.1"].tolist() == [3, 1]
    assert result.per_image["points"].tolist() == [3, 3]
    scores = image_scores("correspondence", result.per_image)
    assert len(scores.units) == 4, "two images each of cats and dogs"
    assert scores.metrics["PCK@0.1"](np.array([[2.0, 1.0, 0.0, 1.0]]))[0] == pytest.approx(100.0)
    train = DATASETS["spair"].list_samples(spair, "train")
    assert [sample.image for sample in train] == [
        f"JPEGImages/{folder}/2_{x}.jpg" for folder in ("cat", "dog") for x in "ab"
    ]
    with pytest.raises(UserError, match="layers=3: backbone 'colours' has only its own"):
        KEYPOINTS.run(context(KEYPOINTS, DATASETS["spair"], spair, size=128, layers=3))


class Scaled(Colours):
    """Its maps are multiplied by a factor, which changes no cosine."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return tuple(self.factor * each for each in super().forward(images))


def test_large_features_match_as_small_ones_do(spair):
    small, large = (
        KEYPOINTS.run(context(KEYPOINTS, DATASETS["spair"], spair, backbone=each, size=128))
        for each in (Scaled(1.0), Scaled(1e5))
    )
    assert large.metrics == small.metrics


def test_features_that_are_not_finite_have_no_score(spair):
    options = {"backbone": Scaled(float("inf")), "size": 128}
    with pytest.raises(NonFiniteLoss, match="are not finite"):
        KEYPOINTS.run(context(KEYPOINTS, DATASETS["spair"], spair, **options))


def test_errors_are_in_pixels_of_the_target():
    source, target = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    source[0], source[1, 1, 2] = 1, 5  # one position differs
    target[0], target[1, 3, 0] = 1, 5
    # that position's centre in 80 × 80, and in 80 × 160
    views, points = ((source, (80, 80)), (target, (80, 160))), [[50.0, 30.0]]
    assert pixel_errors(*views, points, [[10.0, 140.0]])[0] < 0.1
    assert pixel_errors(*views, points, [[10.0, 100.0]])[0] == pytest.approx(40, abs=0.1)


def test_positions_at_corners_are_those_of_probe3d():
    """``evaluate_spair_correspondence.py``: the best cell's index, over the number of cells."""
    first, second = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[3.0, 70.0], [40.0, 11.0], [79.0, 79.0]])
    grid = (2 * points / 80 - 1)[None, None]
    features = F.grid_sample(first[None], grid, align_corners=True)[0, :, 0]
    best = torch.einsum("fk,fhw->khw", features, second / second.norm(dim=0)).flatten(1).argmax(1)
    expected = (10 * torch.stack([best % 8, best // 8], dim=1) - points).norm(dim=1)
    maps = (first, (80, 80)), (second, (80, 80))
    ours = pixel_errors(*maps, points.tolist(), points.tolist(), at_corners=True)
    assert ours == pytest.approx(expected.numpy(), abs=1e-4)
    assert ours != pytest.approx(pixel_errors(*maps, points.tolist(), points.tolist()), abs=1)


def test_interpolated_positions_keep_the_identity_of_numbers(spair):
    data = context(KEYPOINTS, DATASETS["spair"], spair).data
    default, corners = (
        PlannedTask("spair/keypoints", KEYPOINTS.settings_type(positions=name)).conditions(data)
        for name in ("interpolated", "corners")
    )
    assert "positions" not in default["settings"]
    assert corners["settings"]["positions"] == "corners"
