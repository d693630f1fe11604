"""Object classes: solid, standing, of plausible size, and different every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.mini.shapes import FLOOR, SLOTS, TABLETOP, make_object
from benchmark.mini.solids import box, ellipsoid, frustum, lathe, tube

CLASS_AND_SIZE = [(name, False) for name in FLOOR] + [(name, True) for name in TABLETOP]


@pytest.mark.parametrize(("name", "small"), CLASS_AND_SIZE)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_object_stands_on_the_ground_and_has_a_plausible_size(name, small, seed):
    parts = make_object(name, np.random.default_rng(seed), small)
    assert len(parts) >= 2, "composite"
    assert {part.slot for part in parts} <= set(range(SLOTS))
    for part in parts:
        assert np.isfinite(part.vertices).all()
        assert part.faces.min() >= 0
        assert part.faces.max() < len(part.vertices)
    vertices = np.concatenate([part.vertices for part in parts])
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    tall = (high - low).max()
    assert -0.06 * tall < low[2] < 0.12 * tall, "stands on z = 0"
    assert (0.05 < tall < 0.8) if small else (0.3 < tall < 2.6)


@pytest.mark.parametrize(("name", "small"), CLASS_AND_SIZE)
def test_shapes_vary(name, small):
    built = [make_object(name, np.random.default_rng(seed), small) for seed in range(6)]
    sizes = {
        np.concatenate([part.vertices for part in parts]).round(6).tobytes() for parts in built
    }
    assert len(sizes) == 6
    again = make_object(name, np.random.default_rng(0), small)
    assert all((a.vertices == b.vertices).all() for a, b in zip(again, built[0], strict=True))


def volume(part):
    """Signed volume of a closed mesh, by the divergence theorem."""
    corner = part.vertices[part.faces]
    return np.einsum("ij,ij->i", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6


def test_blocks_have_the_size_and_place_asked_for():
    assert volume(box((1, 2, 3), (5, 5, 5))) == pytest.approx(6)
    assert volume(frustum(2, 1, 3, (0, 0, 0))) == pytest.approx(
        np.pi * 3 / 3 * (4 + 2 + 1), rel=0.02
    )
    assert abs(volume(ellipsoid((1, 2, 3), (1, 1, 1)))) == pytest.approx(
        4 / 3 * np.pi * 6, rel=0.06
    )
    closed = lathe([(0, 0), (1, 0), (1, 2), (0, 2)])
    assert abs(volume(closed)) == pytest.approx(2 * np.pi, rel=0.02)
    part = box((1, 1, 2), (3, 4, 5))
    assert part.vertices.min(axis=0) == pytest.approx((2.5, 3.5, 5))
    assert part.vertices.max(axis=0) == pytest.approx((3.5, 4.5, 7))


@pytest.mark.parametrize("end", [(0, 0, 2), (2, 0, 0), (0, 2, 0), (1, 1, 1)])
def test_a_tube_keeps_its_radius_along_any_direction(end):
    part = tube([(0, 0, 0), end], 0.1)
    axis = np.array(end) / np.linalg.norm(end)
    across = part.vertices - (part.vertices @ axis)[:, None] * axis
    assert np.linalg.norm(across, axis=1) == pytest.approx(0.1)
