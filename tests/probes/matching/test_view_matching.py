"""Matching of views, where the points that belong together are known."""

import json
import math
import zipfile

import numpy as np
import pytest
import torch

from cliptex_common.errors import UserError
from probes.datasets.check import survey
from probes.matching.probe import OBJECT_VIEWS, SCENE_VIEWS
from probes.matching.views import PosedImage, in_space, match_views, sampled_pairs
from probes.registry import DATASETS, check_required
from reports.per_image import image_scores
from tests.probes.datasets import make
from tests.probes.matching.layouts import Patches, make_navi, make_scannet
from tests.probes.whole_images import context

CAMERA = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])
TURN = math.radians(40)
# from the first camera to the second, which looks at the plane from the side
POSE = torch.tensor(
    [
        [math.cos(TURN), 0, math.sin(TURN), -0.5 * math.sin(TURN)],
        [0, 1, 0, 0],
        [-math.sin(TURN), 0, math.cos(TURN), 0.5 - 0.5 * math.cos(TURN)],
    ],
    dtype=torch.float64,
)


def views_of_a_plane() -> list[tuple[torch.Tensor, PosedImage]]:
    """A plane half a metre before the first camera, and features that follow from its points."""
    frequencies = 60 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    views = []
    for pose in (torch.eye(3, 4), POSE.float()):
        rotation, offset = pose[:, :3], pose[:, 3]
        normal = rotation[:, 2]  # the first camera's axis
        rays = in_space(torch.ones(1, 64, 64), CAMERA)
        depth = (0.5 + normal @ offset) / torch.tensordot(normal, rays, dims=1)
        points = rays * depth
        world = torch.tensordot(rotation.T, points - offset[:, None, None], dims=1)
        phases = torch.tensordot(frequencies.T, world, dims=1)
        features = torch.cat([phases.sin(), phases.cos()])
        views.append((features, PosedImage(torch.zeros(3, 1, 1), points, CAMERA)))
    return views


@pytest.mark.parametrize("kind", ["object-views", "scene-views"])
def test_features_that_are_coordinates_find_every_point(kind):
    first, second = views_of_a_plane()
    errors = match_views(first, second, POSE, 1000, kind).errors
    assert (errors["m"] < 0.01).float().mean() == 1
    assert (errors["px"] < 1).float().mean() == 1
    shuffled = second[0].flatten(1)[:, torch.randperm(64 * 64)].unflatten(1, (64, 64))
    errors = match_views(first, (shuffled, second[1]), POSE, 1000, kind).errors
    assert (errors["m"] < 0.01).float().mean() < 0.02


def test_views_of_objects_are_scored_by_pair_and_resampled_by_object(tmp_path):
    spec = DATASETS["navi"]
    options = {"backbone": Patches(), "pairs": "listed"}
    task = context(OBJECT_VIEWS, spec, make_navi(tmp_path), **options)
    result = OBJECT_VIEWS.run(task)
    assert result.per_image["unit"].tolist() == ["bottle"] * 2 + ["keyboard"] * 2
    assert result.per_image["angle"] == pytest.approx([20, 55, 20, 55], abs=1e-3)
    path = "bottle/wild_set/images"
    assert result.per_image["image"][0] == f"{path}/000.jpg → {path}/001.jpg"
    assert {"recall_2cm", "recall_2cm_0-30", "recall_25px"} < set(result.metrics)
    assert "recall_2cm_60-90" not in result.metrics, "no pair has such an angle"
    assert result.metrics["recall_2cm"] > 20
    assert image_scores("object-views", result.per_image).units == ("bottle", "keyboard")
    with zipfile.ZipFile(result.preview.with_name("gallery.zip")) as gallery:
        index = json.loads(gallery.read("index.json"))["images"]
    assert [each["name"] for each in index] == result.per_image["image"].tolist()


def test_views_of_rooms_are_scored_by_pair_and_resampled_by_image(tmp_path):
    spec = DATASETS["scannet"]
    task = context(SCENE_VIEWS, spec, make_scannet(tmp_path), backbone=Patches())
    result = SCENE_VIEWS.run(task)
    assert result.per_image["unit"].shape == (2, 2)
    assert result.per_image["angle"] == pytest.approx([5, 20], abs=1e-3)
    assert result.metrics["recall_10px_0-15"] > 20
    assert image_scores("scene-views", result.per_image).units == tuple(
        f"scene0707_00/color/{number}.jpg" for number in (0, 15, 30)
    )


@pytest.mark.parametrize(("points", "scored"), [(1, 2), (0, 1)])
def test_a_view_of_a_room_may_have_few_known_points(points, scored, tmp_path):
    root = make_scannet(tmp_path)
    depth = np.zeros((480, 640), np.uint16)
    depth[1, 1] = 1000  # between the points that are matched
    depth[240, 320] = 1000 * points
    make.save(root / "scene0707_00/depth/15.png", depth)
    result = SCENE_VIEWS.run(context(SCENE_VIEWS, DATASETS["scannet"], root, backbone=Patches()))
    recalls = result.per_image["recall_10px"]
    assert len(recalls) == 2 and np.isfinite(recalls).sum() == scored
    assert result.metrics["recall_10px"] == pytest.approx(100 * np.nanmean(recalls))
    assert any("1 of them have no score" in note for note in result.notes) == (scored < 2)
    assert result.preview.is_file()


def test_an_object_whose_depth_is_beside_the_square_has_no_score(tmp_path):
    root = make_navi(tmp_path)
    wide, depth = np.zeros((96, 200, 3), np.uint8), np.zeros((96, 200), np.uint16)
    depth[:, :20] = 1300
    for name, array in (("images/001.jpg", wide), ("depth/001.png", depth)):
        make.save(root / "bottle/wild_set" / name, array)
    spec, options = DATASETS["navi"], {"backbone": Patches(), "pairs": "listed"}
    result = OBJECT_VIEWS.run(context(OBJECT_VIEWS, spec, root, **options))
    assert np.isnan(result.per_image["recall_2cm"]).tolist() == [True, False, False, False]
    assert result.metrics["recall_2cm"] > 20


def test_a_set_without_a_scored_pair_is_one_line(tmp_path):
    root = make_scannet(tmp_path)
    depth = np.zeros((480, 640), np.uint16)
    depth[1, 1] = 1000
    for path in root.glob("*/depth/*.png"):
        make.save(path, depth)
    with pytest.raises(UserError, match="no pair of scannet has a depth in both views"):
        SCENE_VIEWS.run(context(SCENE_VIEWS, DATASETS["scannet"], root, backbone=Patches()))


def test_listed_pairs_need_the_list(tmp_path):
    spec, root = DATASETS["navi"], make_navi(tmp_path)
    check_required("navi", spec.at(root), OBJECT_VIEWS)
    next(root.glob("custom_splits/*/*.txt")).unlink()
    with pytest.raises(UserError, match="listed_pairs=wild_set"):
        check_required("navi", spec.at(root), OBJECT_VIEWS)


def test_a_complete_copy_is_reported_as_one(tmp_path):
    root = make_scannet(tmp_path)
    (row,) = survey(None, {"scannet": root}, only=["scannet"])
    assert (row.state, row.message) == ("complete", "")


def test_sampled_pairs_follow_from_the_data_alone(tmp_path):
    samples = DATASETS["navi"].list_samples(make_navi(tmp_path), "val")
    pairs = sampled_pairs(samples)
    assert [first.image for first, _ in pairs] == [sample.image for sample in samples[::4]]
    assert all(first.image[:6] == second.image[:6] and first != second for first, second in pairs)
    assert pairs == sampled_pairs(samples)
