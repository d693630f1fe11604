"""Targets that are computed, boundaries and objects, against scikit-image, NumPy, scikit-learn and
the benchmark of BSDS500."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage import feature, morphology
from sklearn.metrics import jaccard_score

from cliptex_common.errors import UserError
from probes.datasets.check import prepare
from probes.datasets.levels import list_unlabelled
from probes.dense.boundaries import (
    PEOPLE,
    Boundaries,
    agreement,
    matches,
    suppress,
    thin,
)
from probes.dense.computed import Corners, OcclusionEdges, Orientation, nearest_on_grid
from probes.dense.foreground import Foreground
from probes.registry import DATASETS
from tests.probes.datasets import make


def grey_file(folder, seed=0, shape=(60, 80)):
    """A smooth grey image, as written and in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    grey = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    path = folder / "grey.png"
    Image.fromarray(grey).save(path)
    return str(path), grey / 255


def test_corners_are_scikit_images(tmp_path):
    path, grey = grey_file(tmp_path)
    inside = np.s_[12:-12, 12:-12]  # scikit-image has zeros around an image
    expected = feature.corner_shi_tomasi(grey, sigma=2) / 64  # its Sobel is eight times as large
    computed = Corners().read(path, side=0, sigma=2.0)
    np.testing.assert_allclose(np.expm1(computed[inside]) / 1e4, expected[inside], atol=1e-6)
    assert np.corrcoef(computed.ravel(), Corners().read(path, 48, 2.0).ravel())[0, 1] > 0.5


def test_orientation_is_that_of_scikit_images_structure_tensor(tmp_path):
    path, grey = grey_file(tmp_path)
    yy, xy, xx = feature.structure_tensor(grey, 2, mode="nearest", order="rc")
    computed = Orientation().read(path, side=0, sigma=2.0)
    expected = np.stack([xx - yy, 2 * xy], axis=-1) / (xx + yy)[..., None]
    np.testing.assert_allclose(computed, expected, atol=1e-3)
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    mirrored = Orientation().read(path, side=0, sigma=2.0)
    factors = Orientation().factors(True, (1, 1))
    np.testing.assert_allclose(mirrored, computed[:, ::-1] * factors, atol=1e-4)


def test_errors_of_orientation_are_halves_of_doubled_angles():
    turn = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 179.0]))
    target = torch.stack([torch.ones(4), torch.zeros(4)])[:, None].double()
    prediction = torch.stack([(2 * turn).cos(), (2 * turn).sin()])[:, None]
    scores = Orientation().score(prediction, target)
    assert scores["angle"] == pytest.approx((0 + 10 + 90 + 1) / 4, abs=1e-3)
    assert scores["within_11.25"] == 75


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 110, 155])
def test_of_a_ridge_its_crest_stays(degrees):
    y, x = np.mgrid[:80, :80] - 40.0
    across = x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))
    kept = suppress(0.8 * np.exp(-((across / 3) ** 2) / 2))[10:70, 10:70] > 0.1
    distance = np.abs(across[10:70, 10:70])
    assert kept[distance < 0.25].all() and not kept[distance > 1].any()


def test_occlusion_edges_are_jumps_of_depth(tmp_path):
    depth = np.random.default_rng(0).integers(500, 4000, (40, 50)).astype(np.uint16)
    depth[:4] = 0
    path = tmp_path / "depth.png"
    Image.fromarray(depth).save(path)
    window = np.ones((5, 5), bool)
    jump = np.log(morphology.dilation(depth, window) / morphology.erosion(depth, window))
    read = partial(OcclusionEdges().read, str(path), side=0, sigma=4.0, depth_scale=1e-3)
    computed = read(least_step=0.5)
    expected = np.log1p(10 * np.maximum(jump - 0.5, 0))
    np.testing.assert_allclose(computed[8:-2, 2:-2], expected[8:-2, 2:-2], rtol=1e-5)
    assert (computed[:4] == -1).all() and (computed[4:] >= 0).all()
    floor = 1.2 * 500 / np.arange(200, 40, -1)  # metres, each row of a floor seen from 1.2 m
    steps = (1000 * floor / 40).round().astype(np.uint16)[:, None].repeat(200, 1) * 40
    Image.fromarray(steps).save(path)
    assert read(least_step=0.0).any() and not read(least_step=0.1)[4:-4].any()


def test_an_image_without_known_pixels_does_not_count():
    scores = Corners().score(torch.rand(1, 4, 4), torch.full((1, 4, 4), -1.0))
    assert all(bool(value.isnan()) for value in scores.values())


def test_correlation_is_numpys_and_no_map_of_the_grid_has_more():
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.random((32, 48)), 2)
    target[:3, :5] = -1
    known = target >= 0
    prediction = rng.random((32, 48)) + target
    maps = [torch.from_numpy(each)[None] for each in (prediction, target)]
    task = Corners().bound(grid=(8, 32))
    scores = task.score(*maps)
    expected = np.corrcoef(prediction[known], target[known])[0, 1]
    assert scores["pearson"] == pytest.approx(expected)
    assert scores["mae"] == pytest.approx(np.abs(prediction - target)[known].mean())
    patches = torch.eye(24).reshape(24, 1, 4, 6)
    basis = torch.nn.functional.interpolate(patches, (32, 48), mode="bilinear").reshape(24, -1).T
    fit = np.linalg.lstsq(basis.numpy(), target.ravel(), rcond=None)[0]
    nearest = nearest_on_grid(maps[1], 8, 32)
    np.testing.assert_allclose(nearest.ravel(), basis.numpy() @ fit, atol=1e-4)


def test_foreground_is_scored_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    target = rng.integers(-1, 2, (1, 20, 30)).astype(float)
    prediction = rng.random(target.shape)
    scores = Foreground().compare(*map(torch.from_numpy, (prediction, target)))
    known = target >= 0
    expected = 100 * jaccard_score(target[known], prediction[known] >= 0.5)
    assert scores["object_IoU"] == pytest.approx(expected)
    assert Foreground().compare(*2 * [torch.from_numpy(target)])["boundary_F"] == 100


def test_the_outline_of_void_is_no_contour_of_the_foreground():
    """Void around an object, as VOC has it, hides where its contour is: what is predicted there
    does not count, and elsewhere the number is about that of the object without void."""
    distance = np.hypot(*np.mgrid[-100:100, -130:130]) - 60  # from the contour, inside below 0
    is_object, is_void = distance < 0, np.abs(distance) <= 2.5
    noise = np.random.default_rng(0).random(distance.shape) < 0.5

    def f(prediction, target):
        maps = [torch.from_numpy(each.astype(float))[None] for each in (prediction, target)]
        return Foreground().score(*maps)["boundary_F"]

    ringed = np.where(is_void, -1, is_object)
    assert f(np.ones_like(is_object), ringed) == f(np.zeros_like(is_object), ringed) == 0
    assert f(np.where(is_void, noise, is_object), ringed) == 100
    for shift in (3, 9):
        moved = np.roll(is_object, shift, axis=1)
        assert f(moved, ringed) == pytest.approx(f(moved, is_object), abs=5)
    assert f(noise, np.full_like(ringed, -1)) == 100  # there is nothing to be right about


def test_lines_are_thinned_as_scikit_image_does():
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal((50, 70))
        mask = ndimage.gaussian_filter(noise, 2) > 0
        np.testing.assert_array_equal(thin(mask), morphology.thin(mask))


def coded(people):
    marks = sum(each.astype(np.int64) << person for person, each in enumerate(people))
    return marks + (len(people) << PEOPLE)


# of scenes at thresholds 0.1, 0.3, 0.5, 0.7, thinned, by BSDS's ``correspondPixels`` as
# github.com/Britefury/py-bsds500 compiles it: right, predicted, recalled, marked
OFFICIAL = (
    ((595, 1681, 1123, 1158), (517, 586, 1147, 1158), (369, 369, 1057, 1158), (79, 79, 234, 1158)),
    ((539, 1770, 1071, 1103), (501, 576, 1081, 1103), (208, 208, 589, 1103), (17, 17, 51, 1103)),
)


@pytest.mark.parametrize("seed", [0, 1])
def test_boundaries_are_matched_as_bsds_matches_them(seed):
    edges, people = make.boundary_scene(seed)
    trees = [KDTree(np.argwhere(each)) for each in people]
    counts = [matches(edges >= threshold, trees, 5.0) for threshold in (0.1, 0.3, 0.5, 0.7)]
    right, *others = np.abs(np.subtract(counts, OFFICIAL[seed])).T
    assert right.max() <= 3 and np.max(others) <= 1


def test_figures_of_merit_are_those_of_a_port_of_bsds():
    rng = np.random.default_rng(0)
    marked = rng.integers(300, 600, 5)
    predicted = -np.sort(-rng.integers(0, 2000, (5, 99)), axis=1)
    right = (predicted * np.linspace(0.3, 0.9, 99)).astype(int)
    recalled = np.minimum(marked[:, None], (right * 0.8).astype(int))
    everything = np.broadcast_to(marked[:, None], right.shape)
    counts = np.stack([right, predicted, recalled, everything], axis=-1)
    scores = Boundaries().summary({"counts": counts}, np.ones((1, 5)))
    # py-bsds500's ``pr_evaluation`` of these counts
    official = {"ODS": 77.73683553595038, "OIS": 79.28246536009111, "AP": 74.23061994628681}
    for name, value in official.items():
        assert scores[name][0] == pytest.approx(value)


def test_a_gallery_marks_hits_false_alarms_and_what_is_missed():
    """Two people agree on a column; predicted are its upper half, three pixels beside it, and a
    row that nobody marked."""
    task, target = Boundaries(), np.full((1, 300, 400), 2 << PEOPLE, np.float32)
    target[0, :, 200] += 3
    prediction = np.zeros((1, 300, 400), np.float32)
    prediction[0, :150, 203] = prediction[0, 250, 50:120] = 1.0
    prediction = 2.4 * ndimage.gaussian_filter(prediction, (0, 1, 1))  # 0.96 on the lines
    draw, legend = task.drawing([], [target])
    picture = task.outcome(draw, target, prediction)
    colours = {name: tuple(picture[at]) for name, at in MARKED.items()}
    assert colours == task.outcomes and legend is not None
    counts = [int((picture == colour).all(axis=2).sum()) for colour in task.outcomes.values()]
    assert np.allclose(counts, [3 * 150, 3 * 70, 3 * 150], rtol=0.1)


MARKED = {"hit": (75, 203), "false alarm": (250, 80), "missed": (225, 200)}


def test_people_score_full_marks_against_themselves():
    lines = np.zeros((60, 80), bool)
    people = make.boundary_scene(0)[1]
    lines[6:-6, 6:-6] = thin(people[0])[6:-6, 6:-6]  # what is near the frame fades
    target = torch.from_numpy(coded([lines] * 3))[None].double()
    prediction = torch.from_numpy(ndimage.gaussian_filter(lines.astype(float), 1))[None]
    scores = Boundaries().score(prediction, target)
    arrays = {name: np.array([each]) for name, each in scores.items()} | {"image": np.array(["a"])}
    notes: list[str] = []
    assert Boundaries().metrics_of(arrays, notes)["ODS"] > 90
    assert notes == ["people, each scored by the others, have F 100.0"]


def test_bsds_is_read_in_its_official_layout(tmp_path):
    make.make_bsds(tmp_path)
    data = prepare(DATASETS["bsds500"], tmp_path, partial=True)
    assert [len(data.samples[split]) for split in ("train", "val")] == [4, 2]
    path = str(tmp_path / data.samples["val"][0].target)
    people = make.boundary_scene(4)[1]
    np.testing.assert_allclose(
        agreement(Boundaries().read(path).astype(np.int64)), np.mean(people, axis=0)
    )
    (tmp_path / "groundTruth/test/5.mat").write_bytes(b"cut off")
    damaged = prepare(DATASETS["bsds500"], tmp_path, partial=True)
    assert [path for path, _ in damaged.skipped] == ["images/test/5.jpg"]


def test_images_without_folders_of_train_and_val_are_an_error(tmp_path):
    with pytest.raises(UserError, match="train and val"):
        list_unlabelled(tmp_path, "train")
