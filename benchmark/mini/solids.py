"""Convex solids, and exact intersections of rays with them.

A solid is a box, a ball or a frustum (cylinder, cone) that fills [-1, 1]³ in its own coordinates. A
ray is inside a convex solid between two parameters, which have closed forms. All arithmetic is
elementwise, without matrix products or transcendental functions, whose last bits differ between
machines. Vectors are (3, …), units are metres.
"""

from itertools import pairwise

import numpy as np

Vector = tuple[float, float, float]
Part = tuple[float, ...]  # start, end, half width and depth, profile, slot
# the squared radius as a polynomial of the height; a box has none
BOX, BALL, CYLINDER = (0.0, 0.0, 0.0), (1.0, 0.0, -1.0), (1.0, 0.0, 0.0)
NEAREST = 0.02  # metres in front of the camera where nothing is seen
BLOCK = 2048  # rays at a time: what they need stays in a processor's cache


def box(size: Vector, at: Vector, slot: int = 0, lean: float = 0.0) -> Part:
    """A box standing on ``at``, its top ``lean`` metres further in y than its bottom."""
    return (*at, at[0], at[1] + lean, at[2] + size[2], size[0] / 2, size[1] / 2, *BOX, slot)


def rod(start: Vector, end: Vector, radius: float, slot: int = 0, kind: Vector = CYLINDER) -> Part:
    """A cylinder, or an ellipsoid (``BALL``), from ``start`` to ``end``."""
    return (*start, *end, radius, radius, *kind, slot)


def ball(radii: Vector, centre: Vector, slot: int = 0) -> Part:
    """An ellipsoid."""
    x, y, z = centre
    return (x, y, z - radii[2], x, y, z + radii[2], *radii[:2], *BALL, slot)


def turned(*outline: tuple[float, float], slot: int = 0) -> list[Part]:
    """A solid of revolution: frusta on the z axis between heights and radii of its ``outline``."""
    parts: list[Part] = []
    for (low, bottom), (high, top) in pairwise(outline):
        if low == high:  # a step
            continue
        wide = max(bottom, top)
        middle, slope = (bottom + top) / 2 / wide, (top - bottom) / 2 / wide
        profile = middle * middle, 2 * middle * slope, slope * slope
        parts.append((0.0, 0.0, low, 0.0, 0.0, high, wide, wide, *profile, slot))
    return parts


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products of (3, …) vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Vector products of (3, …) vectors."""
    pairs = ((1, 2), (2, 0), (0, 1))
    return np.stack([a[i] * b[j] - a[j] * b[i] for i, j in pairs])


def apply(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Matrices (3, 3, …), row by row, times (3, …) vectors."""
    return rows[:, 0] * vectors[0] + rows[:, 1] * vectors[1] + rows[:, 2] * vectors[2]


def extent(table: np.ndarray) -> np.ndarray:
    """Width, depth and height (3,) of parts (N, 12) that stand on the origin."""
    across = np.maximum(np.abs(table[:, :2]), np.abs(table[:, 3:5])) + table[:, 6:8]
    return np.array([*2 * across.max(axis=0), table[:, 5].max()])


def plane(size: int, tangent: float) -> tuple[np.ndarray, np.ndarray]:
    """x of columns and y of rows of pixel centres, at a depth of one metre."""
    centres = ((2 * np.arange(size) + 1 - size) / size * tangent).astype(np.float32)
    return centres, -centres


class Solids:
    """N solids before a camera at the origin; x is right, y up, z backwards.

    Boxes come first, and the first of them is the room, which is seen from inside.

    Attributes:
        centre: (3, N).
        edges: (3, 3, N), their own unit vectors; ``inverse``, (3, 3, N), leads back to them.
        profile: (3, N), coefficients of the squared radius.
        slot: (N,), rows of a table of materials; ``body``, (N,): what they are parts of.
    """

    def __init__(
        self, parts: np.ndarray, matrices: np.ndarray, shifts: np.ndarray, body: np.ndarray
    ) -> None:
        """Multiply the ``parts`` (N, 12) of body b by ``matrices[b]`` (3, 3) and move them by
        ``shifts[b]`` (3,)."""
        order = np.argsort(parts[:, 8] > 0, kind="stable")
        table, self.body = parts[order].T, body[order]
        self.profile, self.slot = table[8:11, :, None].astype(np.float32), table[11].astype(int)
        self.boxes = int((self.profile[0] == 0).sum())
        along = (table[3:6] - table[:3]) / 2
        flat = np.sqrt(along[0] * along[0] + along[1] * along[1])
        divisor = np.where(flat == 0, 1, flat)
        side = np.stack([along[1] / divisor + (flat == 0), -along[0] / divisor, 0 * flat])
        third = cross(along / np.sqrt(dot(along, along)), side) * table[7]
        matrix = np.moveaxis(matrices[self.body], 0, -1)
        edges = [apply(matrix, edge) for edge in (side * table[6], third, along)]
        crosses = [cross(edges[i - 2], edges[i - 1]) for i in range(3)]
        self.inverse = (np.stack(crosses) / dot(edges[0], crosses[0])).astype(np.float32)
        centre = apply(matrix, (table[:3] + table[3:6]) / 2) + shifts[self.body].T
        self.centre, self.edges = centre.astype(np.float32), np.stack(edges).astype(np.float32)

    def spans(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parameters (N, P) between which ``origin + parameter * rays``, (3,) and (3, P), is in
        each solid; the first is larger where it never is."""
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel rays, and those that miss
            return self._spans(origin, rays)

    def _spans(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = apply(self.inverse, origin[:, None] - self.centre)[:, :, None]
        ray = apply(self.inverse[:, :, :, None], rays[:, None])
        enter, leave = _between(start[2], ray[2])
        boxes, rounds = np.s_[: self.boxes], np.s_[:, self.boxes :]
        for axis in range(2):
            first, last = _between(start[axis, boxes], ray[axis, boxes])
            np.maximum(enter[boxes], first, out=enter[boxes])
            np.minimum(leave[boxes], last, out=leave[boxes])
        (x, y, z), (i, j, k), (constant, linear, square) = (
            values[rounds] for values in (start, ray, self.profile)
        )
        a = i * i + j * j - k * k * square
        b = i * x + j * y - k * (square * z + linear / 2)
        inner = b * b - a * (x * x + y * y - constant - (linear + square * z) * z)
        root, inverse = np.sqrt(inner), 1 / a  # not a number: it passes by
        first, last = (-b - root) * inverse, (root - b) * inverse
        # a ray steeper than a cone's side crosses it once in this half of the double cone
        steep, grows = a < 0, k * linear > 0
        np.copyto(first, -np.inf, where=steep & ~grows)
        np.copyto(last, np.inf, where=steep & grows)
        np.maximum(enter[self.boxes :], first, out=enter[self.boxes :])
        np.minimum(leave[self.boxes :], last, out=leave[self.boxes :])
        return enter, leave

    def first_hits(self, size: int, tangent: float) -> tuple[np.ndarray, np.ndarray]:
        """The solid that each pixel's centre shows and its z-depth in metres, (size, size) each."""
        x, y = np.meshgrid(*plane(size, tangent))
        rays = np.stack([x, y, np.full_like(x, -1)]).reshape(3, -1)
        solid, depth = np.zeros(size * size, np.int64), np.zeros(size * size, np.float32)
        for start in range(0, len(solid), BLOCK):
            block = np.s_[start : start + BLOCK]
            enter, leave = self.spans(np.zeros(3, np.float32), rays[:, block])
            np.copyto(enter, np.inf, where=~((enter <= leave) & (enter > NEAREST)))
            enter[0] = leave[0]
            solid[block], depth[block] = enter.argmin(axis=0), enter.min(axis=0)
        return solid.reshape(size, size), depth.reshape(size, size)

    def shaded(self, points: np.ndarray, light: np.ndarray) -> np.ndarray:
        """Whether anything but the room is between ``points`` (3, P) and ``light`` (3,)."""
        rays, shaded = points - light[:, None], np.zeros(points.shape[1], bool)
        for start in range(0, len(shaded), BLOCK):
            block = np.s_[start : start + BLOCK]
            enter, leave = self.spans(light, rays[:, block])
            is_between = (enter <= leave) & (enter < 1 - 1e-4) & (leave > 0)
            shaded[block] = is_between[1:].any(axis=0)
        return shaded

    def surface(self, solid: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Surfaces at ``points`` (3, P) of ``solid`` (P,), two (3, P) float32: the points in the
        solid's own axes, in metres, and unit normals towards the viewer."""
        inverse, (constant, linear, square) = self.inverse[:, :, solid], self.profile[:, solid, 0]
        own = apply(inverse, points - self.centre[:, solid])
        metres = np.sqrt(dot(self.edges.swapaxes(0, 1), self.edges.swapaxes(0, 1)))
        position, size = own * metres[:, solid], np.abs(own)
        side = own[0] * own[0] + own[1] * own[1] - constant - (linear + square * own[2]) * own[2]
        is_box = constant == 0
        is_flat = is_box | (1 - size[2] < np.abs(side))
        face = np.where(is_box, size.argmax(axis=0), 2)
        own *= ~is_flat | (face == np.arange(3)[:, None])
        own[2] = np.where(is_flat, own[2], -linear / 2 - square * own[2])
        own *= np.where(solid == 0, np.float32(-1), np.float32(1))
        normals = dot(own[:, None], inverse)  # the gradient of what is constant on the surface
        return position, normals / np.sqrt(dot(normals, normals))


def _between(start: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where coordinates are in [-1, 1]."""
    inverse = 1 / ray
    middle, reach = start * inverse, np.abs(inverse)
    return -middle - reach, reach - middle
