"""Ray casting against closed forms and against marching along the rays."""

import numpy as np
import pytest

from benchmark.mini.solids import (
    BALL,
    FRUSTUM,
    SOLID,
    Bodies,
    Camera,
    ball,
    box,
    frustum,
    rod,
    rotate,
)

SIZE = 64
ROOM = box((8.0, 8.0, 8.0), (0.0, 0.0, -4.0))
CAMERA = Camera(
    np.array([0.0, -3.0, 0.0]), np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float), 0.5
)
X, Y = np.meshgrid(*CAMERA.plane(SIZE))  # of pixel centres, at a depth of one metre


def cast(*parts):
    """Solid, depth, and camera-axes normals (3, H, W) of a room with ``parts``."""
    bodies = Bodies(np.array([ROOM, *parts], SOLID))
    bodies.body[1:] = 1
    solid, depth = bodies.first_hits(CAMERA, SIZE)
    points = CAMERA.position[:, None] + CAMERA.rays(SIZE) * depth.ravel()
    normals = bodies.surface(solid.ravel(), points)[2]
    return solid, depth, (CAMERA.axes @ normals).reshape(3, SIZE, SIZE)


def test_a_room_is_seen_from_inside():
    solid, depth, normals = cast()
    assert not solid.any()
    assert depth == pytest.approx(np.full((SIZE, SIZE), 7.0)), "the wall at y = 4"
    assert normals == pytest.approx(np.broadcast_to([[[0]], [[0]], [[1]]], (3, SIZE, SIZE)))


def test_a_balls_depth_and_normals_have_closed_forms():
    radius, x, z = 0.7, 0.3, -0.2  # centre in camera axes: x, z, 3 metres away
    solid, depth, normals = cast(ball((radius,) * 3, (x, 0.0, z)))
    square, half = X * X + Y * Y + 1, x * X + z * Y + 3
    inner = half * half - square * (x * x + z * z + 9 - radius * radius)
    assert (solid == (inner >= 0)).all()
    expected = (half - np.sqrt(np.maximum(inner, 0))) / square
    seen = solid == 1
    assert 300 < seen.sum() < SIZE * SIZE / 2
    assert depth[seen] == pytest.approx(expected[seen], rel=1e-12)
    points = np.stack([X * depth, Y * depth, -depth])
    outward = (points - np.array([x, z, -3])[:, None, None]) / radius
    assert normals[:, seen] == pytest.approx(outward[:, seen], abs=1e-5)


def test_a_boxs_silhouette_is_that_of_its_corners():
    solid, depth, normals = cast(box((1.0, 0.4, 0.6), (0.2, 0.0, -0.4)))
    front = 3 - 0.2  # its front hides the rest
    outside = np.maximum(np.abs(X * front - 0.2) - 0.5, np.abs(Y * front + 0.1) - 0.3)
    front_seen = outside <= 0
    assert (solid[front_seen] == 1).all()
    assert depth[front_seen] == pytest.approx(front)
    assert normals[:, front_seen] == pytest.approx(
        np.array([0, 0, 1.0])[:, None].repeat(front_seen.sum(), 1)
    )
    corners = np.array([[i, j, k] for i in (-0.3, 0.7) for j in (-0.4, 0.2) for k in (2.8, 3.2)])
    x, y = corners[:, 0] / corners[:, 2], corners[:, 1] / corners[:, 2]
    rows, columns = np.nonzero(solid)
    assert x.min() <= X[rows, columns].min() and X[rows, columns].max() <= x.max()
    assert y.min() <= Y[rows, columns].min() and Y[rows, columns].max() <= y.max()


def test_a_cylinder_and_a_cone_have_their_radii():
    solid, depth, normals = cast(frustum(0.5, 0.5, 1.0, (0.0, 0.0, -0.5)))
    middle = SIZE // 2
    assert depth[middle, middle] == pytest.approx(2.5, abs=1e-3)
    points = np.stack([X * depth, depth - 3])[:, solid == 1]
    assert np.hypot(*points) == pytest.approx(0.5), "all that is seen is side"
    solid, depth, normals = cast(frustum(0.5, 0.0, 1.0, (0.0, 0.0, -0.5)))
    side = (solid == 1) & (np.abs(normals[1] + 1) > 1e-3)
    radius = np.hypot(X * depth, depth - 3)[side]
    assert radius == pytest.approx((0.5 - Y * depth)[side] / 2)
    assert normals[1][side] == pytest.approx(1 / np.sqrt(5), abs=1e-4)


@pytest.mark.parametrize("kind", [FRUSTUM, BALL])
def test_a_rod_joins_its_ends(kind):
    solid, depth, _ = cast(rod((-0.5, 0.3, -0.4), (0.6, -0.2, 0.5), 0.1, kind=kind))
    points = np.stack([X * depth, depth - 3, Y * depth])[:, solid == 1]
    start, end = np.array([-0.5, 0.3, -0.4]), np.array([0.6, -0.2, 0.5])
    along = (end - start) / np.linalg.norm(end - start)
    away = points - start[:, None]
    position = along @ away
    distance = np.linalg.norm(away - along[:, None] * position, axis=0)
    assert -1e-9 < position.min() < 0.2 and position.max() < np.linalg.norm(end - start) + 1e-9
    assert distance.max() == pytest.approx(0.1, abs=2e-3)


def random_solids(rng, count):
    parts = []
    for _ in range(count):
        at, size = tuple(rng.uniform(-0.6, 0.6, 3)), rng.uniform(0.2, 0.9, 3)
        end = tuple(np.array(at) + rng.uniform(-0.5, 0.5, 3))
        parts += [
            box(tuple(size), at, lean=rng.uniform(-0.5, 0.5)),
            ball(tuple(size / 2), at),
            frustum(size[0] / 2, rng.uniform(0, 0.5), size[2], at),
            rod(at, end, size[0] / 4),
        ]
    solids = np.array(parts, SOLID)
    rotate(solids, 0.6, 0.8)
    return solids


def contains(bodies, k, points):
    """Whether solid ``k`` contains world points (3, N); written anew from the definition."""
    own = np.linalg.solve(bodies.edges[:, :, k].T, points - bodies.centre[:, k, None])
    if bodies.kind[k] == BALL:
        return (own**2).sum(axis=0) <= 1
    if bodies.kind[k] == FRUSTUM:
        low, high = bodies.radii[:, k]
        radius = low + (high - low) * (own[2] + 1) / 2
        return (np.abs(own[2]) <= 1) & (np.hypot(own[0], own[1]) <= radius)
    return (np.abs(own) <= 1).all(axis=0)


def test_first_hits_and_shadows_are_those_of_marching():
    rng = np.random.default_rng(0)
    solids = np.concatenate([np.array([ROOM], SOLID), random_solids(rng, 6)])
    solids["body"][1:] = 1 + np.arange(len(solids) - 1) // 4
    bodies = Bodies(solids)
    solid, depth = bodies.first_hits(CAMERA, SIZE)
    rays = CAMERA.rays(SIZE)
    points = CAMERA.position[:, None] + rays * depth.ravel()
    light = np.array([1.5, -2.0, 2.5])
    shaded = bodies.shaded(points, light)
    steps = np.linspace(0, 1, 3000)
    wrong = {"first hit": 0, "shadow": 0}
    pixels = rng.choice(SIZE * SIZE, 150, replace=False)
    for pixel in pixels:
        on_ray = CAMERA.position[:, None] + rays[:, pixel, None] * (steps * 8)
        to_light = points[:, pixel, None] + (light - points[:, pixel])[:, None] * (
            0.002 + 0.998 * steps
        )
        first, dark = 8.0, False
        for k in range(1, len(solids)):
            hits = contains(bodies, k, on_ray)
            first = min(first, steps[hits.argmax()] * 8) if hits.any() else first
            dark |= contains(bodies, k, to_light).any()
        reached = depth.ravel()[pixel] if solid.ravel()[pixel] else 8.0
        wrong["first hit"] += abs(first - reached) > 0.004
        wrong["shadow"] += dark != shaded[pixel]
    assert solid.any() and 0.1 < shaded.mean() < 0.9
    assert max(wrong.values()) <= 2, f"grazing rays may pass between two steps: {wrong}"
