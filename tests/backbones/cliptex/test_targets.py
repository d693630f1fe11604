"""Labels as files, within their stated loss; and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torchmetrics.functional.classification import multiclass_jaccard_index

from backbones.cliptex.targets import ScalarMap, resize_nearest
from backbones.cliptex.tasks import find_task

SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def coded(task: str, label: np.ndarray) -> np.ndarray:
    return find_task(task).decode(find_task(task).encode(label))


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b, axis=0), axis=0), (a * b).sum(0)))


@FEW
@given(SIDES, st.sampled_from([np.uint8, np.uint16]), st.data())
def test_segmentation_is_lossless(side, dtype, data):
    seg = data.draw(hnp.arrays(dtype, side))
    back = coded("seg", seg)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, seg)


@FEW
@given(SIDES, st.floats(1e-3, 1e6), st.floats(-1e3, 1e3), st.integers(0, 2**32), st.booleans())
def test_depth_error_is_that_of_sixteen_bits(side, scale, shift, seed, partly_unknown):
    random = np.random.default_rng(seed)
    depth = scale * random.random(side) + shift
    valid = (random.random(side) < 0.7) | (not partly_unknown)
    valid[0, 0] = True
    back = coded("depth", np.where(valid, depth, np.nan))
    np.testing.assert_array_equal(np.isfinite(back), valid)
    low, high = depth[valid].min(), depth[valid].max()
    target = (depth[valid] - low) / (high - low) if high > low else np.zeros(valid.sum())
    assert np.abs(np.sqrt(back[valid]) - np.sqrt(target)).max() < 0.51 / 65534


class Temperature(ScalarMap):
    name = "temperature"
    value_range = (-20.0, 60.0)

    loss = score = None


@FEW
@given(SIDES, st.integers(0, 2**32))
def test_numbers_are_stored_in_even_steps_of_their_range(side, seed):
    task, random = Temperature(), np.random.default_rng(seed)
    label = random.uniform(-20, 60, side).astype(np.float32)
    label[random.random(side) < 0.3] = np.nan
    back = task.decode(task.encode(label))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, label, atol=0.51 * 80 / 65534)
    np.testing.assert_allclose(task.decode(task.encode(np.float32([[-99, 99]]))), [[-20, 60]])
    picture = task.picture(label, np.zeros((*side, 3), np.uint8))
    np.testing.assert_array_equal(picture.any(-1), np.isfinite(label))


@FEW
@given(SIDES, st.integers(0, 2**32), st.booleans())
def test_normal_error_is_bounded_in_every_direction(side, seed, partly_unknown):
    random = np.random.default_rng(seed)
    normal = random.normal(size=(3, *side))
    normal /= np.linalg.norm(normal, axis=0)
    valid = (random.random(side) < 0.7) | (not partly_unknown)
    back = coded("normal", (normal * valid).astype(np.float32))
    np.testing.assert_array_equal(np.linalg.norm(back, axis=0) > 0.5, valid)
    assert (degrees(back, normal)[valid] < 0.96).all()
    rounded = find_task("normal").to_tensor(back).numpy() / 127
    np.testing.assert_allclose(rounded, back, rtol=0, atol=0.5 / 127 + 1e-6)


def test_a_depth_that_is_nowhere_known():
    assert np.isnan(coded("depth", np.full((8, 8), np.nan, np.float32))).all()


def test_edges_are_never_averaged():
    """Between an object and its background no value appears that neither has."""
    y, x = np.mgrid[:70, :90]
    label = np.where((y - 30) ** 2 + (x - 41) ** 2 < 400, 1.0, 0.0)
    for side in (64, 40, 33, 7):
        small = resize_nearest(label, side)
        assert small.shape == (side, round(90 * side / 70)) and set(np.unique(small)) == {0.0, 1.0}
    assert resize_nearest(label, 0) is label and resize_nearest(label, 70) is label
    columns = resize_nearest(np.broadcast_to(np.arange(80.0), (3, 40, 80)), 20)
    np.testing.assert_array_equal(columns[2, 0], 2 * np.arange(40) + 1)


@pytest.mark.parametrize(
    ("task", "pixels", "expected"),
    [
        ("seg", np.uint8([[0, 7], [255, 1]]), [[0, 7], [255, 1]]),
        ("depth", np.uint16([[500, 0]]), [[2, np.nan]]),
        ("normal", np.uint8([[[128, 255, 128], [0, 0, 0]]]), [[[0, 0]], [[1, 0]], [[0, 0]]]),
    ],
)
def test_official_layouts_are_read(tmp_path, task, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "map.png")
    np.testing.assert_allclose(find_task(task).read(tmp_path / "map.png"), expected, atol=0.01)
    wrong = pixels[..., 0] if task == "normal" else np.zeros((2, 2, 3), np.uint8)
    Image.fromarray(wrong.astype(np.uint8)).save(tmp_path / "wrong.png")
    with pytest.raises(ValueError, match="this one is"):
        find_task(task).read(tmp_path / "wrong.png")


def test_segmentation_scores_agree_with_torchmetrics():
    random, seg = np.random.default_rng(0), find_task("seg")
    target, labels = (random.integers(0, 4, (5, 9, 9)).astype(np.uint8) for _ in range(2))
    target[0, 0] = 255
    scores = seg.accuracy({"seg": labels}, target, 4)
    expected = multiclass_jaccard_index(
        *map(torch.from_numpy, (labels, target.astype(int))), 4, "macro", ignore_index=255
    )
    assert scores["mIoU"] == pytest.approx(100 * float(expected))
    assert scores["aAcc"] == pytest.approx(100 * (labels == target)[target != 255].mean())
    labels[1:] = 255
    share = seg.accuracy({"seg": labels}, target, 4)["labelled"]
    assert share == pytest.approx(100 * 72 / 396)


def test_depth_scores_ignore_scale_and_shift():
    random, score = np.random.default_rng(0), find_task("depth").accuracy
    target, noise = random.uniform(0.2, 1, (2, 3, 8, 8)).astype(np.float32)
    scores = score({"depth": 7 * target + 3}, target)
    assert scores["abs_rel"] < 1e-5 and scores["delta1"] == 100
    assert score({"depth": noise}, target)["abs_rel"] > 0.2


def test_normal_scores():
    target, labels = np.zeros((2, 1, 3, 2, 2), np.float32)
    target[0, 2, 0] = 1  # the lower row is unknown
    labels[0, :, 0] = [[0, 0], [0, 1], [1, 0]]
    scores = find_task("normal").accuracy({"normal": labels}, target)
    assert scores["normal_mean"] == pytest.approx(45) and scores["normal_11.25"] == 50
