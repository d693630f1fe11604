"""Building blocks of objects, as bare triangle arrays: boxes, frusta, ellipsoids, tubes, leaves.

Units are metres, z is up, angles are radians. Templates come from ``trimesh.creation`` once and are
scaled, which is about a hundred times faster than a ``Trimesh`` for every part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import trimesh
from numpy.typing import ArrayLike

ROUND = 28  # segments of a circle: facets are smaller than a pixel


class Solid(NamedTuple):
    """``vertices`` (V, 3), ``faces`` (F, 3) int32, and the material ``slot`` of all or each."""

    vertices: np.ndarray
    faces: np.ndarray
    slot: int | np.ndarray


def merge(parts: Iterable[Solid]) -> Solid:
    """All ``parts`` in one, with a slot for each face."""
    vertices, faces, slots = zip(*parts, strict=True)
    starts = np.cumsum([0, *map(len, vertices[:-1])])
    return Solid(
        np.concatenate(vertices),
        np.concatenate([face + np.int32(start) for face, start in zip(faces, starts, strict=True)]),
        np.concatenate(
            [np.broadcast_to(slot, len(face)) for slot, face in zip(slots, faces, strict=True)]
        ),
    )


@cache
def _template(kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "box":
        mesh = trimesh.creation.box((1, 1, 1))
    elif kind == "cylinder":
        mesh = trimesh.creation.cylinder(1.0, 1.0, sections=ROUND)
    else:
        mesh = trimesh.creation.icosphere(subdivisions=2 if kind == "ball" else 1)
    if kind in ("box", "cylinder"):
        mesh.apply_translation((0, 0, 0.5))
    return np.array(mesh.vertices, np.float64), np.array(mesh.faces, np.int32)


def box(size: ArrayLike, at: ArrayLike, slot: int = 0, tilt: float = 0.0) -> Solid:
    """A box of ``size`` (x, y, z) standing on ``at``, leaning back by ``tilt`` about x."""
    vertices, faces = _template("box")
    vertices = vertices * np.asarray(size)
    if tilt:
        c, s = np.cos(tilt), np.sin(tilt)
        vertices = vertices @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T
    return Solid(vertices + np.asarray(at), faces, slot)


def frustum(bottom: float, top: float, height: float, at: ArrayLike, slot: int = 0) -> Solid:
    """A cylinder or cone with radii ``bottom`` and ``top``, standing on ``at``."""
    vertices, faces = _template("cylinder")
    radius = bottom + (top - bottom) * vertices[:, 2:]
    return Solid(
        np.hstack([vertices[:, :2] * radius, vertices[:, 2:] * height]) + np.asarray(at),
        faces,
        slot,
    )


def ellipsoid(radii: ArrayLike, at: ArrayLike, slot: int = 0, coarse: bool = False) -> Solid:
    """An ellipsoid centred at ``at``; ``coarse`` for small parts: 80 facets instead of 320."""
    vertices, faces = _template("coarse ball" if coarse else "ball")
    return Solid(vertices * np.asarray(radii) + np.asarray(at), faces, slot)


def lathe(profile: Sequence[Sequence[float]], at: ArrayLike = (0, 0, 0), slot: int = 0) -> Solid:
    """The surface made by turning ``profile``, a list of (radius, z), about the z axis."""
    outline = np.asarray(profile, np.float64)
    angle = np.arange(ROUND) * (2 * np.pi / ROUND)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    z = np.broadcast_to(outline[:, None, 1:], (len(outline), ROUND, 1))
    vertices = np.concatenate([outline[:, None, :1] * ring, z], axis=2).reshape(-1, 3)
    return Solid(vertices + np.asarray(at), _strip(len(outline), ROUND), slot)


def tube(path: Sequence[ArrayLike], radius: float, slot: int = 0, segments: int = 10) -> Solid:
    """A round bar along ``path`` (P, 3), open at its ends."""
    points = np.asarray(path, np.float64)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    # one reference direction for the whole bar keeps the rings from twisting; it must not be
    # parallel to the path
    side = np.cross(tangent, np.eye(3)[np.abs(points[-1] - points[0]).argmin()])
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-12
    third = np.cross(tangent, side)
    angle = (np.arange(segments) * (2 * np.pi / segments))[:, None]
    vertices = points[:, None] + radius * (
        np.cos(angle) * side[:, None] + np.sin(angle) * third[:, None]
    )
    return Solid(vertices.reshape(-1, 3), _strip(len(points), segments), slot)


def leaf(
    length: float, width: float, azimuth: float, rise: float, bend: float, at: ArrayLike
) -> Solid:
    """A pointed, flat leaf from ``at``, ``rise`` above the horizon, bending by ``bend``."""
    steps = 6
    along = np.linspace(0, 1, steps)
    pitch = rise - bend * along
    centre = np.cumsum(
        np.stack([np.cos(pitch), np.zeros(steps), np.sin(pitch)], axis=1), axis=0
    ) * (length / steps)
    half = width / 2 * np.sin(np.pi * np.clip(along * 0.85 + 0.15, 0, 1)) ** 0.8
    half[-1] = 0.002
    vertices = np.repeat(centre, 2, axis=0)
    vertices[::2, 1], vertices[1::2, 1] = half, -half  # left and right edge in turn
    first = 2 * np.arange(steps - 1, dtype=np.int32)
    faces = np.concatenate(
        [np.stack([first, first + 1, first + 3], 1), np.stack([first, first + 3, first + 2], 1)]
    )
    return Solid(vertices @ rotation_z(azimuth).T + np.asarray(at), faces, 0)


def rotation_z(angle: float) -> np.ndarray:
    """Rotation matrix about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@cache
def _strip(rows: int, columns: int) -> np.ndarray:
    """Faces that join ``rows`` closed rings of ``columns`` vertices."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a = row * columns + column
    b = row * columns + (column + 1) % columns
    c, d = a + columns, b + columns
    return (
        np.concatenate([np.stack([a, b, d], -1), np.stack([a, d, c], -1)])
        .reshape(-1, 3)
        .astype(np.int32)
    )
