"""Matching of images with warped copies of them, against OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from cliptex_common.errors import UserError
from probes.matching.homographies import (
    centres,
    homography_between,
    match_warped,
    random_homography,
    scores,
    warp,
)
from probes.matching.probe import HOMOGRAPHY
from probes.registry import DATASETS
from tests.probes.datasets.make import save
from tests.probes.matching.layouts import Patches, noisy_scene
from tests.probes.whole_images import Colours, context

SIDE = 224


def warp_of(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """A random homography, by this package and by OpenCV of the same corners."""
    homography = random_homography(SIDE, 0.2, seed)
    corners = np.float32([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]])
    moved = cv2.perspectiveTransform(corners[None], homography.numpy())[0]
    assert np.abs(moved - corners).max() <= 0.2 * SIDE + 1e-3
    return homography, cv2.getPerspectiveTransform(corners, moved)


def test_homographies_are_those_of_opencv():
    for seed in range(20):
        homography, expected = warp_of(seed)
        np.testing.assert_allclose(homography, expected, rtol=1e-3, atol=1e-4)
    points = torch.rand(2, 4, 2, dtype=torch.float64)
    expected = cv2.getPerspectiveTransform(*points.float().numpy())
    np.testing.assert_allclose(homography_between(*points), expected, rtol=1e-2, atol=1e-3)
    assert not torch.equal(random_homography(SIDE, 0.2, 0), random_homography(SIDE, 0.2, 1))


def test_images_are_warped_as_by_opencv():
    """Its pixels have their middle at whole numbers."""
    smooth = cv2.GaussianBlur(noisy_scene(3, (SIDE, SIDE))[0], (0, 0), 8)
    homography, _ = warp_of(5)
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(shift) @ homography.numpy() @ shift
    expected = cv2.warpPerspective(smooth, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC)
    ours = np.asarray(warp(Image.fromarray(smooth), homography))
    inside = cv2.erode((expected > 0).all(2).astype(np.uint8), np.ones((9, 9))) > 0
    assert inside.mean() > 0.5
    assert np.abs(ours.astype(int) - expected)[inside].max() <= 3


def test_matches_errors_and_ceiling_are_those_of_opencv():
    grid = torch.Size((14, 14))
    cells = centres(grid, SIDE)
    homography, _ = warp_of(2)
    maps = list(torch.randn(2, 8, *grid, generator=torch.Generator().manual_seed(0)))
    matches, nearest = match_warped(maps, cells, homography, 1000)
    unit = [normalize(each.flatten(1).T, dim=1).numpy() for each in maps]
    points = cells[:, :2].numpy()
    moved = cv2.perspectiveTransform(points[None], homography.numpy())[0]
    inside = ((moved >= 0) & (moved <= SIDE)).all(axis=1)
    errors = [
        np.linalg.norm(points[match.trainIdx] - moved[match.queryIdx])
        for match in cv2.BFMatcher(cv2.NORM_L2).match(*unit)
        if inside[match.queryIdx]
    ]
    np.testing.assert_allclose(sorted(matches.errors["px"]), sorted(errors), atol=1e-9)
    to_grid = np.linalg.norm(moved[inside][:, None] - points, axis=2).min(axis=1)
    np.testing.assert_allclose(sorted(nearest), sorted(to_grid), atol=1e-9)
    assert (nearest <= matches.errors["px"]).all()


def test_the_area_is_that_below_the_curve_of_recall():
    errors = torch.tensor([0.5, 2.0, 3.0, 20.0], dtype=torch.float64)
    steps = np.linspace(0, 10, 100_001)
    curve = (errors.numpy()[:, None] <= steps).mean(axis=0)
    assert scores(errors)["auc_10px"] == pytest.approx(np.trapezoid(curve, steps) / 10, abs=1e-4)
    assert scores(errors)["recall_2px"] == 0.5


class Positions(Colours):
    """Its features are the colours of patches of 8 pixels."""

    strides, divisor = (8,), 8


def test_each_score_stands_below_its_ceiling_and_is_resampled_by_image(tmp_path):
    ramp = np.linspace(0, 255, SIDE)
    smooth = np.stack([*np.meshgrid(ramp, ramp), np.full((SIDE, SIDE), 255)], axis=2)
    save(tmp_path / "a.png", smooth.astype(np.uint8))
    save(tmp_path / "folder/b.png", smooth[::-1].astype(np.uint8))
    task = context(HOMOGRAPHY, DATASETS["images"], tmp_path, backbone=Positions(), warp=0.05)
    result = HOMOGRAPHY.run(task)
    metrics = result.metrics
    for limit in (1, 2, 5, 10):
        for name in ("recall", "auc"):
            score = metrics[f"{name}_{limit}px"]
            assert score <= metrics[f"ceiling_{name}_{limit}px"] + 1e-9
    assert metrics["recall_10px"] > 60 and metrics["ceiling_recall_10px"] == 100
    assert "28 × 28 patches" in result.notes[0] and result.preview.is_file()


def test_a_finer_grid_raises_the_ceiling_and_limits_stay(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", noisy_scene(number)[0])
    ceilings = []
    for size in (112, 224):
        folder = DATASETS["images"], tmp_path
        task = context(HOMOGRAPHY, *folder, backbone=Patches(), size=size)
        ceilings.append(HOMOGRAPHY.run(task).metrics["ceiling_recall_5px"])
    assert ceilings[0] < 25 < ceilings[1] < 60
    with pytest.raises(UserError, match="size=16 is one patch"):
        HOMOGRAPHY.run(context(HOMOGRAPHY, *folder, backbone=Patches(), size=16))
