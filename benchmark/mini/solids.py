"""Convex solids, and exact intersections of rays with them.

A solid is a box, a ball or a frustum (cylinder, cone) that fills [-1, 1]³ in its own coordinates. A
ray is inside a convex solid between two parameters, which have closed forms. All arithmetic is
elementwise, without matrix products or transcendental functions, whose last bits differ between
machines. Vectors are (3, …), units are metres, z is up.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

Vector = tuple[float, float, float]
BOX, BALL, FRUSTUM = range(3)
# rows of ``edges`` are the solid's own unit vectors in the world, those of ``inverse`` lead back;
# ``radii`` are of a frustum's bottom and top; ``body`` numbers what the solid is a part of
VECTORS = {"centre": (3,), "edges": (3, 3), "inverse": (3, 3), "radii": (2,)}
SOLID = np.dtype(
    [("kind", int)]
    + [(name, float, shape) for name, shape in VECTORS.items()]
    + [("slot", int), ("body", int)]
)
Solid = tuple  # a row of SOLID
UPRIGHT = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
NEAREST = 0.02  # metres in front of the camera where nothing is seen


def box(size: Vector, at: Vector, slot: int = 0, lean: float = 0.0) -> Solid:
    """A box standing on ``at``, leaning towards +y by ``lean`` metres a metre."""
    cosine = 1 / sqrt(1 + lean * lean)
    sine, half = lean * cosine, (size[0] / 2, size[1] / 2, size[2] / 2)
    centre = (at[0], at[1] + sine * half[2], at[2] + cosine * half[2])
    axes = (1.0, 0.0, 0.0), (0.0, cosine, -sine), (0.0, sine, cosine)
    return _solid(BOX, centre, axes, half, slot)


def ball(radii: Vector, centre: Vector, slot: int = 0) -> Solid:
    """An ellipsoid."""
    return _solid(BALL, centre, UPRIGHT, radii, slot)


def frustum(bottom: float, top: float, height: float, at: Vector, slot: int = 0) -> Solid:
    """A cylinder or cone with radii ``bottom`` and ``top``, standing on ``at``."""
    wide, centre = max(bottom, top), (at[0], at[1], at[2] + height / 2)
    half, radii = (wide, wide, height / 2), (bottom / wide, top / wide)
    return _solid(FRUSTUM, centre, UPRIGHT, half, slot, radii)


def rod(start: Vector, end: Vector, radius: float, slot: int = 0, kind: int = FRUSTUM) -> Solid:
    """A cylinder, or an ellipsoid, from ``start`` to ``end``."""
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length, flat = sqrt(x * x + y * y + z * z), sqrt(x * x + y * y)
    side = (y / flat, -x / flat, 0.0) if flat else (1.0, 0.0, 0.0)
    along = x / length, y / length, z / length
    third = -along[2] * side[1], along[2] * side[0], along[0] * side[1] - along[1] * side[0]
    centre = start[0] + x / 2, start[1] + y / 2, start[2] + z / 2
    return _solid(kind, centre, (side, third, along), (radius, radius, length / 2), slot)


def _solid(
    kind: int,
    centre: Vector,
    axes: tuple[Vector, Vector, Vector],
    half: Vector,
    slot: int,
    radii: tuple[float, float] = (1.0, 1.0),
) -> Solid:
    edges = [tuple(value * size for value in axis) for axis, size in zip(axes, half, strict=True)]
    inverse = [tuple(value / size for value in axis) for axis, size in zip(axes, half, strict=True)]
    return kind, centre, edges, inverse, radii, slot, 0


def stretch(solids: np.ndarray, factors: tuple[float, ...] | float) -> None:
    """Scale solids in place along the world's axes."""
    solids["centre"] *= factors
    solids["edges"] *= factors
    solids["inverse"] /= factors


def rotate(solids: np.ndarray, cosine: float, sine: float) -> None:
    """Turn solids in place about the z axis."""
    for vectors in solids["centre"], solids["edges"], solids["inverse"]:
        x, y = vectors[..., 0].copy(), vectors[..., 1].copy()
        vectors[..., 0], vectors[..., 1] = x * cosine - y * sine, x * sine + y * cosine


def bounds(solids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,) of an upright box around ``solids``."""
    reach = np.abs(solids["edges"]).sum(axis=1)
    return (solids["centre"] - reach).min(axis=0), (solids["centre"] + reach).max(axis=0)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products of (3, …) vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def apply(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Matrices (3, 3, …), row by row, times (3, …) vectors."""
    return rows[:, 0] * vectors[0] + rows[:, 1] * vectors[1] + rows[:, 2] * vectors[2]


def inside(
    kind: int, radii: np.ndarray, origin: np.ndarray, ray: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The parameters between which ``origin + parameter * ray`` is in a solid that fills [-1, 1]³.

    A ray that misses the solid enters it after it leaves it.
    """
    if kind == BALL:
        return _roots(dot(ray, ray), dot(origin, ray), dot(origin, origin) - 1)
    if kind == BOX:
        enter, leave = _between(origin, ray)
        return enter.max(axis=0), leave.min(axis=0)
    slope = (radii[1] - radii[0]) / 2
    radius, growth = (radii[1] + radii[0]) / 2 + slope * origin[2], slope * ray[2]
    square = ray[0] * ray[0] + ray[1] * ray[1] - growth * growth
    square = np.where(np.abs(square) < 1e-12, 1e-12, square)
    half = origin[0] * ray[0] + origin[1] * ray[1] - radius * growth
    enter, leave = _roots(square, half, origin[0] ** 2 + origin[1] ** 2 - radius**2)
    steep = square < 0
    if steep.any():  # a ray steeper than the side crosses it once in this half of the double cone
        leave = np.where(steep & (growth > 0), np.inf, leave)
        enter = np.where(steep & (growth <= 0), -np.inf, enter)
    bottom, top = _between(origin[2], ray[2])
    return np.maximum(enter, bottom), np.minimum(leave, top)


def _between(origin: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where coordinates are in [-1, 1]."""
    inverse = 1 / ray
    middle, reach = -origin * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _roots(
    square: np.ndarray, half: np.ndarray, constant: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Roots of ``square * t² + 2 * half * t + constant``; if there are none, inf and a number."""
    inner = half * half - square * constant
    root, inverse = np.sqrt(np.maximum(inner, 0)), 1 / square
    enter, leave = (-half - root) * inverse, (root - half) * inverse
    return np.where(inner < 0, np.inf, enter), leave


class Camera(NamedTuple):
    """A pinhole camera; rows of ``axes`` (3, 3) are right, up and backwards in the world.

    ``position`` is (3,), ``tangent`` that of half the field of view.
    """

    position: np.ndarray
    axes: np.ndarray
    tangent: float

    def plane(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Camera coordinates of pixel centres at a depth of one metre: x of columns, y of rows."""
        centres = (2 * np.arange(size) + 1 - size) / size * self.tangent
        return centres, -centres

    def rays(self, size: int) -> np.ndarray:
        """World directions (3, size²) of all pixels, with a z-depth of one metre each."""
        x, y = self.plane(size)
        right, up, back = self.axes[:, :, None, None]
        return (right * x + (up * y[:, None] - back)).reshape(3, -1)


class Bodies:
    """Solids ready for ray casting; the first is the room, which is seen from inside.

    The fields of ``SOLID``, with the solids as the last axis. First hits are float64; what only
    colours need is float32.
    """

    def __init__(self, solids: np.ndarray) -> None:
        self.kind, self.slot, self.body = solids["kind"], solids["slot"], solids["body"]
        self.centre, self.edges, self.inverse, self.radii = (
            np.moveaxis(solids[name], 0, -1).copy() for name in VECTORS
        )

    def first_hits(self, camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The solid that each pixel's centre shows and its z-depth in metres, (size, size) each."""
        x, y = camera.plane(size)
        right, up, back = (own[:, None] for own in camera.axes)
        origin = apply(self.inverse, camera.position[:, None] - self.centre)
        across, upward, forward = (apply(self.inverse, own) for own in (right, up, -back))
        solid, depth = np.zeros((size, size), np.int64), np.full((size, size), np.inf)
        for k, (top, bottom, first_column, end) in enumerate(self._windows(camera, size)):
            rows = upward[:, k, None] * y[top:bottom] + forward[:, k, None]
            ray = across[:, k, None, None] * x[first_column:end] + rows[:, :, None]
            start = origin[:, k, None, None]
            enter, leave = inside(self.kind[k], self.radii[:, k], start, ray)
            nearest = depth[top:bottom, first_column:end]
            seen = (enter <= leave) & (enter > NEAREST) & (enter < nearest) if k else leave > 0
            np.copyto(nearest, enter if k else leave, where=seen)
            np.copyto(solid[top:bottom, first_column:end], k, where=seen)
        return solid, depth

    def _windows(self, camera: Camera, size: int) -> list[list[int]]:
        """First and end row, first and end column of each solid's part of the picture."""
        axes = camera.axes[:, :, None]
        corners = apply(axes, self.centre - camera.position[:, None])[:, None]
        for edge in self.edges:
            step = apply(axes, edge)[:, None]
            corners = np.concatenate([corners - step, corners + step], axis=1)
        depth = -corners[2]
        plane = corners[1::-1] / (np.maximum(depth, NEAREST) * camera.tangent) * (size / 2)
        plane[0] *= -1  # rows count downwards
        plane += (size - 1) / 2
        is_behind = depth.min(axis=0) < NEAREST
        first = np.where(is_behind, 0, np.ceil(np.clip(plane.min(axis=1), 0, size)))
        end = np.where(is_behind, size, np.floor(np.clip(plane.max(axis=1), -1, size - 1)) + 1)
        windows: list[list[int]] = np.stack([first, end], 1).reshape(4, -1).astype(int).T.tolist()
        return windows

    def surface(
        self, solid: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World ``points`` (3, N) on the surfaces of ``solid`` (N,): three (3, N) float32.

        They are the points in the solid's own coordinates, in metres, and unit normals towards the
        viewer, in its own coordinates and in the world.
        """
        inverse = self.inverse.astype(np.float32)[:, :, solid]
        own = apply(inverse, (points - self.centre[:, solid]).astype(np.float32))
        metres = np.sqrt(dot(self.edges.swapaxes(0, 1), self.edges.swapaxes(0, 1)))
        metres = metres.astype(np.float32)[:, solid]
        position, kind = own * metres, self.kind[solid]
        slope = ((self.radii[1] - self.radii[0]) / 2).astype(np.float32)[solid]
        radius = ((self.radii[1] + self.radii[0]) / 2).astype(np.float32)[solid] + slope * own[2]
        size, is_box, is_frustum = np.abs(own), kind == BOX, kind == FRUSTUM
        flat = is_box | (is_frustum & (size[2] > 1 - 1e-5))
        face = np.where(is_box, size.argmax(axis=0), 2)
        own *= ~flat | (face == np.arange(3)[:, None])
        own[2] = np.where(is_frustum & ~flat, -slope * radius, own[2])
        own *= np.where(solid == 0, np.float32(-1), np.float32(1))
        normals = dot(own[:, None], inverse)  # the gradient of what is constant on the surface
        own /= metres
        return position, own / np.sqrt(dot(own, own)), normals / np.sqrt(dot(normals, normals))

    def shaded(self, points: np.ndarray, light: np.ndarray) -> np.ndarray:
        """Whether anything but the room is between world points (3, N) and ``light`` (3,)."""
        shaded = np.zeros(points.shape[1], bool)
        ray = (points - light[:, None]).astype(np.float32)
        squared = dot(ray, ray)
        reach = np.abs(self.edges).sum(axis=0)
        low, high = self.centre - reach, self.centre + reach
        source = apply(self.inverse, light[:, None] - self.centre).astype(np.float32)
        inverse, radii = self.inverse.astype(np.float32), self.radii.astype(np.float32)
        for body in range(1, int(self.body.max()) + 1):
            members = np.flatnonzero(self.body == body)
            first, last = low[:, members].min(axis=1), high[:, members].max(axis=1)
            away, span = (first + last) / 2 - light, (last - first) / 2
            # the cone from the light around a ball around the body
            cone = np.float32(max(dot(away, away) - dot(span, span), 0))
            along = dot(ray, away.astype(np.float32))
            maybe = np.flatnonzero((along > 0) & (along * along >= squared * cone))
            rays = ray[:, maybe]
            for k in members if len(maybe) else ():
                own = apply(inverse[:, :, k, None], rays)
                enter, leave = inside(self.kind[k], radii[:, k], source[:, k, None], own)
                shaded[maybe] |= (enter <= leave) & (enter < 1 - 1e-4) & (leave > 0)
        return shaded
