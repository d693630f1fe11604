"""Ray casting against marching along the rays."""

import numpy as np

from benchmark.mini.solids import Solids, ball, box, plane, rod, turned

SIZE, TANGENT = 64, 0.5
ROOM = box((8.0, 8.0, 8.0), (0.0, 0.0, -7.0))  # from 1 metre behind the camera to 7 before it
X, Y = np.meshgrid(*plane(SIZE, TANGENT))  # of pixel centres, at a depth of one metre


def solids_of(*parts):
    """A room with ``parts``, in the camera's axes."""
    table = np.array([ROOM, *parts], float)
    return Solids(table, np.eye(3)[None], np.zeros((1, 3)), np.zeros(len(table), int))


def contains(solids, k, points):
    """Whether solid ``k`` contains points (3, N); written anew from the definition."""
    own = np.linalg.solve(solids.edges[:, :, k].T, points - solids.centre[:, k, None])
    constant, linear, square = solids.profile[:, k]
    if constant == 0:
        return (np.abs(own) <= 1).all(axis=0)
    radius = np.sqrt(np.maximum(constant + linear * own[2] + square * own[2] ** 2, 0))
    return (np.abs(own[2]) <= 1) & (np.hypot(own[0], own[1]) <= radius)


def test_first_hits_and_shadows_are_those_of_marching():
    rng, parts = np.random.default_rng(0), []
    for _ in range(6):
        at, size = rng.uniform(-0.6, 0.6, 3) - (0, 0, 3), rng.uniform(0.2, 0.9, 3)
        end = tuple(at + rng.uniform(-0.5, 0.5, 3))
        (cone,) = turned((at[2], size[0] / 2), (at[2] + size[2], rng.uniform(0, 0.5)))
        parts += [box(size, at, lean=0.3), ball(size / 2, at), cone, rod(at, end, size[0] / 4)]
    solids = solids_of(*parts)
    solid, depth = solids.first_hits(SIZE, TANGENT)
    points = np.stack([X * depth, Y * depth, -depth]).reshape(3, -1)
    light = np.array([1.5, 2.5, -1.0], np.float32)
    shaded = solids.shaded(points, light)
    steps, wrong = np.linspace(0, 1, 3000), {"first hit": 0, "shadow": 0}
    for pixel in rng.choice(SIZE * SIZE, 150, replace=False):
        point, reached = points[:, pixel, None], depth.ravel()[pixel]
        on_ray = point / reached * (steps * 8)
        to_light = point + (light[:, None] - point) * (0.002 + 0.998 * steps)
        hits = np.array([contains(solids, k, on_ray) for k in range(1, len(parts) + 1)]).any(axis=0)
        first = steps[hits.argmax()] * 8 if hits.any() else 7.0
        wrong["first hit"] += abs(first - reached) > 0.004
        dark = any(contains(solids, k, to_light).any() for k in range(1, len(parts) + 1))
        wrong["shadow"] += dark != shaded[pixel]
    assert solid.any() and 0.1 < shaded.mean() < 0.9
    assert max(wrong.values()) <= 2, f"grazing rays may pass between two steps: {wrong}"
