"""Relative poses of views, where cameras are known; scipy's rotations are the oracle."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from cliptex_common.errors import UserError
from probes.datasets.base import Sample
from probes.datasets.ground_truth import CameraPose
from probes.image_level.encode import encode_split
from probes.matching.poses import errors, relative_poses, sample_pairs
from probes.matching.probe import RELATIVE_POSE, RelativePoseSettings
from probes.predictor import load_predictor
from probes.registry import DATASETS
from reports.per_image import image_scores
from reports.records import FLOOR
from tests.probes.matching.layouts import make_poses
from tests.probes.whole_images import Colours, context

SPEC = DATASETS["navi-multiview"]


def test_poses_and_their_errors_are_those_of_scipy():
    random = np.random.default_rng(0)
    turns, moves = Rotation.random(200, rng=random), random.normal(size=(200, 3))
    views = [
        Sample("a.jpg", CameraPose((2 * turn.as_quat(scalar_first=True)).tolist(), move.tolist()))
        for turn, move in zip(turns, moves, strict=True)
    ]
    poses = relative_poses(views, torch.arange(200).reshape(100, 2)).numpy()
    between = turns[1::2] * turns[::2].inv()
    # of both signs scipy's, too, takes the one with a positive largest component
    expected = Rotation.from_matrix(between.as_matrix()).as_quat(scalar_first=True)
    assert poses[:, :4] == pytest.approx(expected, abs=1e-9)
    assert poses[:, 4:] == pytest.approx(moves[1::2] - between.apply(moves[::2]), abs=1e-9)

    outputs = random.normal(size=(100, 7))  # of an MLP: no unit quaternions
    scores = errors(torch.tensor(outputs), torch.tensor(poses))
    off = Rotation.from_quat(outputs[:, :4], scalar_first=True) * between.inv()
    assert scores["rotation"] == pytest.approx(np.rad2deg(off.magnitude()))
    vectors = [cv2.Rodrigues(matrix)[0] for matrix in off.as_matrix()]
    assert scores["rotation"] == pytest.approx(np.rad2deg(np.linalg.norm(vectors, axis=(1, 2))))
    assert scores["translation"] == pytest.approx(np.linalg.norm((outputs - poses)[:, 4:], axis=1))


def test_pairs_are_of_one_scene_and_near_and_more_partners_leave_those_of_val(tmp_path):
    root = make_poses(tmp_path)
    train, val = (SPEC.list_samples(root, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (36, 12)
    views, pairs = train + val, sample_pairs(train + val, 36, RelativePoseSettings())
    assert torch.bincount(pairs[:, 0]).tolist() == [8] * 36 + [1] * 12
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    assert all(views[a].image[:6] == views[b].image[:6] and a != b for a, b in pairs.tolist())
    turns = Rotation.from_quat(relative_poses(views, pairs)[:, :4].numpy(), scalar_first=True)
    assert np.rad2deg(turns.magnitude()).max() <= 120 + 1e-6
    few = sample_pairs(views, 36, RelativePoseSettings(partners=1))
    assert torch.equal(few[few[:, 0] >= 36], pairs[pairs[:, 0] >= 36])


def test_views_are_turned_as_their_orientation_says(tmp_path):
    root = make_poses(tmp_path)
    image = root / SPEC.list_samples(root, "val")[0].image
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(image, quality=95)
    before = encode_views(root)
    exif = Image.Exif()
    exif[0x0112] = 3  # a half turn
    Image.fromarray(pixels[::-1, ::-1].copy()).save(image, quality=95, exif=exif)
    assert torch.allclose(encode_views(root), before, atol=0.05)


def encode_views(root):
    """The embedding of the first view of val, by a backbone that sees its left half alone."""

    class Left(Colours):
        def encode_image(self, images):
            return super().encode_image(images[..., : images.shape[3] // 2])

    return encode_split(context(RELATIVE_POSE, SPEC, root, backbone=Left()), "val")[0]


def test_views_of_no_other_near_are_an_error(tmp_path):
    task = context(RELATIVE_POSE, SPEC, make_poses(tmp_path), max_angle=1.0)
    with pytest.raises(UserError, match="0 pairs of train"):
        RELATIVE_POSE.run(task)


def test_a_stored_head_predicts_the_pose_that_was_scored(tmp_path):
    task = context(RELATIVE_POSE, SPEC, make_poses(tmp_path), epochs=2)
    result = RELATIVE_POSE.run(task)
    result.head.write(tmp_path / "head.safetensors")
    predict = load_predictor(tmp_path / "head.safetensors", Colours())
    samples = {each.image: each for each in SPEC.list_samples(tmp_path, "train")}
    samples |= {each.image: each for each in task.data.samples["val"]}
    pair = result.per_image["image"][3].split(" → ")
    pose = predict(*(tmp_path / name for name in pair))
    assert np.linalg.norm(pose["rotation"]) == pytest.approx(1)
    target = relative_poses([samples[name] for name in pair], torch.tensor([[0, 1]]))
    output = torch.tensor(np.concatenate([pose["rotation"], pose["translation"]]))[None]
    for name, values in errors(output, target).items():
        assert values[0] == pytest.approx(result.per_image[name][3], abs=1e-3)


@pytest.mark.slow
def test_a_feature_that_says_the_view_beats_the_floor(tmp_path):
    task = context(RELATIVE_POSE, SPEC, make_poses(tmp_path), batch_size=16)
    result = RELATIVE_POSE.run(task)
    assert result.metrics["rotation_error"] < result.bounds[FLOOR] / 2
    scores = image_scores("view-pose", result.per_image)
    assert scores.units == ("bottle", "keyboard")
    assert result.head.tensors["0.weight"].shape == (16,)
