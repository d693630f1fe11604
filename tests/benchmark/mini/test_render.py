"""Truth: checked against another ray tracer, against itself (depth and normals), and against the
picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.mini.materials import DOMAINS
from benchmark.mini.render import IGNORE, render_ground_truth, render_image, smallest_area
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES

SIZE = 64
seeds = st.integers(0, 2**32 - 1)


def draw(seed, domain="home", size=SIZE, **wishes):
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, domain, **wishes)
    return scene, render_ground_truth(scene, size), rng


def shares(scene, ground_truth):
    """Share of the picture of each object."""
    return (
        np.bincount(ground_truth.instance.ravel(), minlength=len(scene.objects) + 1)[1:]
        / ground_truth.instance.size
    )


def points_of(scene, depth):
    """Camera-axes points (H, W, 3) of a z-depth map: the pinhole model, written anew."""
    size = depth.shape[0]
    centre = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(centre, -centre)
    return (
        np.stack([x * scene.camera.tangent, y * scene.camera.tangent, -np.ones_like(x)], -1)
        * depth[..., None]
    )


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_normals_are_those_of_the_depth(domain):
    errors = []
    for seed in range(12):
        scene, ground_truth, _ = draw(seed, domain)
        points = points_of(scene, ground_truth.depth.astype(np.float64))
        right = points[1:-1, 2:] - points[1:-1, :-2]
        up = points[:-2, 1:-1] - points[2:, 1:-1]
        normals = np.cross(right, up)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        # smooth pixels: the neighbours that the differences use lie on about the same plane
        middle, instance = ground_truth.normals[1:-1, 1:-1], ground_truth.instance
        smooth = np.ones(middle.shape[:2], bool)
        for window in np.s_[1:-1, 2:], np.s_[1:-1, :-2], np.s_[2:, 1:-1], np.s_[:-2, 1:-1]:
            smooth &= (middle * ground_truth.normals[window]).sum(axis=-1) > 0.995
            smooth &= instance[window] == instance[1:-1, 1:-1]
        angle = np.degrees(np.arccos(np.clip((normals * middle).sum(axis=-1), -1, 1)))
        assert smooth.mean() > 0.3
        errors.append(angle[smooth])
    angle = np.concatenate(errors)
    assert np.median(angle) < 0.1
    # parallel planes at different depths (steps, shelves) pass for smooth
    assert np.percentile(angle, 90) < 3


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds)
def test_truth_is_valid_everywhere(seed):
    scene, ground_truth, _ = draw(seed)
    assert np.linalg.norm(ground_truth.normals, axis=-1) == pytest.approx(1, abs=1e-5)
    towards_viewer = -points_of(scene, ground_truth.depth)
    assert ((towards_viewer * ground_truth.normals).sum(axis=-1) > -1e-6).all(), (
        "no surface is seen from behind"
    )
    assert ground_truth.depth.min() > 0.01
    assert ground_truth.depth.max() < 10
    names = [0] + [1 + CLASSES.index(placed.name) for placed in scene.objects]
    for number in np.unique(ground_truth.instance):
        expected = IGNORE if number in ground_truth.too_small else names[number]
        assert (ground_truth.semantic[ground_truth.instance == number] == expected).all()
        if number:
            few = (ground_truth.instance == number).sum() < smallest_area(SIZE)
            assert few == (number in ground_truth.too_small)


def nearest_hit(origin, direction, corner):
    """Möller and Trumbore's intersection of a ray with all triangles (F, 3, 3): parameter and
    triangle of the first."""
    first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    across = np.cross(direction, second)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.einsum("ij,ij->i", first, across)
        away = origin - corner[:, 0]
        u = np.einsum("ij,ij->i", away, across) * scale
        turned = np.cross(away, first)
        v = (turned @ direction) * scale
        distance = np.einsum("ij,ij->i", second, turned) * scale
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 1e-9)
    distance = np.where(hit, distance, np.inf)
    return distance.min(), int(distance.argmin())


@pytest.mark.parametrize("seed", range(4))
def test_first_hits_are_those_of_brute_force(seed):
    scene, ground_truth, _ = draw(seed)
    corner = scene.vertices[scene.faces]
    rays = points_of(scene, np.ones((SIZE, SIZE))) @ scene.camera.axes
    agree = 0
    pixels = np.random.default_rng(0).integers(0, SIZE, (60, 2))
    for row, column in pixels:
        depth, triangle = nearest_hit(scene.camera.position, rays[row, column], corner)
        same = scene.owner[triangle] == ground_truth.instance[row, column]
        agree += same and abs(depth - ground_truth.depth[row, column]) < 1e-4 * depth
    assert agree >= len(pixels) - 1  # a ray along an edge may go either way


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_agrees_with_the_truth_pixel_by_pixel(seed):
    scene, ground_truth, rng = draw(seed, dominant=CLASSES[seed])
    scene.materials[:, 0] = 0  # plain
    scene.materials[:, 14] = 0  # no highlights
    scene.materials[:, 1:4] = (0.05, 0.05, 0.8)
    mine = np.unique(scene.material[scene.owner == 1])
    scene.materials[mine, 1:4] = (0.8, 0.05, 0.05)
    for light in scene.lights:
        light.colour[:] = 1.0
    scene.ambient = 0.5
    picture = render_image(scene, SIZE, rng).astype(int)
    red, mask = picture[..., 0] > picture[..., 2], ground_truth.instance == 1
    inner = mask.copy()
    outer = ~mask
    for shift in [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]:
        inner &= np.roll(mask, shift, (0, 1))
        outer &= np.roll(~mask, shift, (0, 1))
    frame = np.zeros_like(mask)
    frame[1:-1, 1:-1] = True
    assert red[inner & frame].mean() > 0.99
    assert (~red)[outer & frame].mean() > 0.99
    assert (red == mask).mean() > 0.95


def test_same_seed_same_picture_and_another_seed_another():
    first, second, third = (draw(seed) for seed in (1, 1, 2))
    a, b, c = (render_image(scene, SIZE, rng) for scene, _, rng in (first, second, third))
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize("size", [32, 80, 96])
def test_other_sizes_show_the_same_scene(size):
    scene, ground_truth, rng = draw(5, size=size)
    assert render_image(scene, size, rng).shape == (size, size, 3)
    assert ground_truth.depth.shape == (size, size)
    small = render_ground_truth(scene, 64)
    share, share_at_64 = shares(scene, ground_truth), shares(scene, small)
    assert np.abs(share - share_at_64).max() < 0.03
