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


def cross_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
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

    The first is the room, which is seen from inside.

    Attributes:
        centre: (3, N).
        edges: (3, 3, N), their own unit vectors; ``inverse``, (3, 3, N), leads back to them.
        reach: (3, N), half the sizes of upright boxes around them.
        profile: (3, N), coefficients of the squared radius.
        slot: (N,), rows of a table of materials; ``body``, (N,): what they are parts of.
    """

    def __init__(
        self, parts: np.ndarray, matrices: np.ndarray, shifts: np.ndarray, body: np.ndarray
    ) -> None:
        """Multiply the ``parts`` (N, 12) of body b by ``matrices[b]`` (3, 3) and move them by
        ``shifts[b]`` (3,)."""
        table, self.body = parts.T, body
        self.profile, self.slot = table[8:11].astype(np.float32), table[11].astype(int)
        along = (table[3:6] - table[:3]) / 2
        flat = np.sqrt(along[0] * along[0] + along[1] * along[1])
        divisor = np.where(flat == 0, 1, flat)
        side = np.stack([along[1] / divisor + (flat == 0), -along[0] / divisor, 0 * flat])
        third = cross_product(along / np.sqrt(dot(along, along)), side) * table[7]
        matrix = np.moveaxis(matrices[body], 0, -1)
        edges = [apply(matrix, edge) for edge in (side * table[6], third, along)]
        crosses = [cross_product(edges[i - 2], edges[i - 1]) for i in range(3)]
        self.inverse = (np.stack(crosses) / dot(edges[0], crosses[0])).astype(np.float32)
        centre = apply(matrix, (table[:3] + table[3:6]) / 2) + shifts[body].T
        self.centre, self.edges = centre.astype(np.float32), np.stack(edges).astype(np.float32)
        self.reach = np.abs(self.edges).sum(axis=0)

    def first_hits(self, size: int, tangent: float) -> tuple[np.ndarray, np.ndarray]:
        """The solid that each pixel's centre shows and its z-depth in metres, (size, size) each."""
        x, y = plane(size, tangent)
        rays = np.stack(np.broadcast_arrays(x, y[:, None], np.float32(-1)))
        solid, depth = np.zeros((size, size), np.int64), np.empty((size, size), np.float32)
        starts = apply(self.inverse, -self.centre).T
        for k, window in enumerate(self._windows(size, tangent)):
            enter, leave = self._span(k, starts[k], rays[:, window[0], window[1]])
            if k == 0:
                depth[:] = leave
                continue
            is_first = (enter <= leave) & (enter > NEAREST) & (enter < depth[window])
            np.copyto(depth[window], enter, where=is_first)
            np.copyto(solid[window], k, where=is_first)
        return solid, depth

    def shaded(self, points: np.ndarray, light: np.ndarray) -> np.ndarray:
        """Whether anything but the room is between ``points`` (3, P) and ``light`` (3,)."""
        shaded, rays = np.zeros(points.shape[1], bool), points - light[:, None]
        away = self.centre - light[:, None]
        starts = apply(self.inverse, -away).T
        # only rays in the cone from the light around a ball around a solid can hit it
        along, lengths = dot(rays[:, None], away[:, :, None]), dot(rays, rays)
        cone = np.maximum(dot(away, away) - dot(self.reach, self.reach), 0)[:, None]
        may_hit = (cone == 0) | ((along > 0) & (along * along >= cone * lengths))
        for k in range(1, len(starts)):
            possible = np.flatnonzero(may_hit[k])
            enter, leave = self._span(k, starts[k], rays[:, possible])
            shaded[possible] |= (enter <= leave) & (enter < 1 - 1e-4) & (leave > 0)
        return shaded

    def _windows(self, size: int, tangent: float) -> list[tuple[slice, slice]]:
        """Rows and columns of a part of the picture around each solid."""
        low, high = self.centre - self.reach, self.centre + self.reach
        front, back = np.maximum(-high[2], NEAREST), np.maximum(-low[2], NEAREST)
        first, last = np.minimum(low / front, low / back), np.maximum(high / front, high / back)
        edges = np.stack([-last[1], -first[1], first[0], last[0]])  # rows count downwards
        edges = np.clip((edges / tangent * size + size) / 2, 0, size)
        edges[::2], edges[1::2] = np.floor(edges[::2]), np.ceil(edges[1::2])
        return [(slice(a, b), slice(c, d)) for a, b, c, d in edges.T.astype(int).tolist()]

    def _span(
        self, solid: int, start: np.ndarray, rays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The parameters between which ``start + parameter * rays`` is in a solid; the first is
        larger where it never is. ``start`` (3,) is in the solid's axes, ``rays`` (3, …) are not."""
        (constant, linear, square), (x, y, z) = self.profile[:, solid], start
        own = apply(self.inverse[:, :, solid].reshape(3, 3, *[1] * (rays.ndim - 1)), rays)
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel rays, and those that miss
            enter, leave = _between(z, own[2])
            if constant == 0:
                sides = [_between(start[axis], own[axis]) for axis in range(2)]
            else:
                i, j, k = own
                a = i * i + j * j - k * k * square
                b = i * x + j * y - k * (square * z + linear / 2)
                inner = b * b - a * (x * x + y * y - constant - (linear + square * z) * z)
                root, inverse = np.sqrt(inner), 1 / a  # not a number: it passes by
                first, last = (-b - root) * inverse, (root - b) * inverse
                if linear:  # a ray steeper than a cone crosses it once in this half of the double
                    steep, grows = a < 0, k * linear > 0
                    np.copyto(first, -np.inf, where=steep & ~grows)
                    np.copyto(last, np.inf, where=steep & grows)
                sides = [(first, last)]
        for first, last in sides:
            enter, leave = np.maximum(enter, first), np.minimum(leave, last)
        return enter, leave

    def surface(self, solid: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Surfaces at ``points`` (3, P) of ``solid`` (P,), two (3, P) float32: the points in the
        solid's own axes, in metres, and unit normals towards the viewer."""
        inverse, (constant, linear, square) = self.inverse[:, :, solid], self.profile[:, solid]
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
    """The parameters between which a coordinate is in [-1, 1]."""
    inverse = 1 / ray
    middle, reach = start * inverse, np.abs(inverse)
    return -middle - reach, reach - middle
