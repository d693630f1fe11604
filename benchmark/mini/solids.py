"""From solids to pictures: the geometry, objects, scenes and rendering of the mini world.

The ten classes of objects are told apart by their shapes, not by colours. All arithmetic is
elementwise, without matrix products or transcendental functions, whose last bits
differ between machines. Vectors are (3, …), units are metres.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from random import Random
from typing import NamedTuple

import numpy as np

Vector = tuple[float, float, float]
# A solid: a box, a ball or a frustum (cylinder, cone), which fills [-1, 1]³ in its own coordinates,
# as 12 numbers: start (3) and end (3) of its axis, half width, half depth, profile (3), slot.
Part = tuple[float, ...]
# profiles: the squared radius as a polynomial of the height; a box has none
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

    The first is the room, which is seen from inside. A ray is inside a convex solid between two
    parameters, which have closed forms.

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


SLOTS = 4  # materials of an object


def legs(x: float, y: float, height: float) -> list[Part]:
    corners = (x, y), (x, -y), (-x, y), (-x, -y)
    return [rod((1.1 * a, 1.1 * b, 0), (a, b, height), 0.032, slot=1) for a, b in corners]


def pedestal(foot: float, height: float) -> list[Part]:
    return turned((0, foot), (0.06, foot / 2), (0.06, 0.05), (height, 0.05), slot=1)


def bookshelf(rng: Random) -> list[Part]:
    shelves = rng.randrange(3, 5)
    gap = 1.3 / shelves
    parts = [box((0.04, 0.3, 1.33), (x, 0, 0)) for x in (-0.42, 0.42)]
    parts.append(box((0.84, 0.02, 1.34), (0, 0.145, 0), slot=rng.randrange(2)))
    parts += [box((0.84, 0.3, 0.03), (0, 0, level * gap)) for level in range(shelves + 1)]
    for books in range(2 * shelves):
        size = rng.uniform(0.2, 0.36), 0.2, gap * rng.uniform(0.55, 0.85)
        at = 0.4 * (books % 2) - 0.2, 0, books // 2 * gap + 0.03
        parts.append(box(size, at, slot=rng.randrange(1, SLOTS)))
    return parts


def bottle(rng: Random) -> list[Part]:
    body, neck = rng.uniform(0.4, 0.55), rng.uniform(0.04, 0.06)
    glass = turned((0, 0.13), (body, 0.13), (body + 0.15, neck), (0.84, neck))
    label = turned((0.1, 0.134), (0.3, 0.134), slot=rng.randrange(2))
    return [*glass, *label, *turned((0.82, neck * 1.3), (0.9, neck * 1.2), slot=2)]


def chair(rng: Random) -> list[Part]:
    seat, lean = box((0.46, 0.46, 0.07), (0, 0, 0.42)), rng.uniform(0, 0.12)
    support = rng.choice((legs(0.19, 0.19, 0.42), pedestal(0.25, 0.42)))
    if rng.random() < 0.5:
        return [seat, *support, box((0.44, 0.05, 0.52), (0, 0.2, 0.46), lean=lean)]
    posts = [box((0.04, 0.04, 0.52), (x, 0.2, 0.45), 1, lean) for x in (-0.2, 0.2)]
    slats = [box((0.46, 0.04, 0.12), (0, 0.2 + lean * (z - 0.45), z)) for z in (0.65, 0.86)]
    return [seat, *support, *posts, *slats]


def lamp(rng: Random) -> list[Part]:
    foot = rng.choice((turned((0, 0.18), (0.05, 0.13)), [ball((0.16, 0.16, 0.2), (0, 0, 0.2))]))
    shade = turned((1.0, 0.26), (1.36, rng.uniform(0.1, 0.22)))
    head = rng.choice((shade, shade, [ball((0.2, 0.2, 0.2), (0, 0, 1.2))]))
    return [*turned((0, 0.025), (1.15, 0.025), slot=1), *foot, *head]


def monitor(rng: Random) -> list[Part]:
    window = rng.uniform(0.2, 0.6), 0.02, rng.uniform(0.15, 0.3)
    frame, screen = (
        box((1.0, 0.06, 0.62), (0, 0, 0.18)),
        box((0.92, 0.02, 0.54), (0, -0.03, 0.22), 1),
    )
    content = box(window, (rng.uniform(-0.15, 0.15), -0.035, rng.uniform(0.25, 0.42)), slot=2)
    foot = rng.choice((turned((0, 0.22), (0.03, 0.2)), [box((0.45, 0.28, 0.03), (0, 0, 0))]))
    return [frame, screen, content, box((0.1, 0.06, 0.45), (0, 0.05, 0)), *foot]


def mug(rng: Random) -> list[Part]:
    side, out = rng.choice((-1, 1)), rng.uniform(0.29, 0.34)
    low, high = (side * out, -0.05, 0.08), (side * out, -0.05, 0.32)
    handle = [rod((side * 0.1, 0, z), (x, y, z), 0.025) for x, y, z in (low, high)]
    drink = turned((0.42, 0.175), (0.424, 0.175), slot=1)
    return [
        *turned((0, rng.uniform(0.14, 0.2)), (0.42, 0.2)),
        *drink,
        *handle,
        rod(low, high, 0.025),
    ]


def plant(rng: Random) -> list[Part]:
    parts = turned((0, rng.uniform(0.1, 0.16)), (0.3, 0.18), slot=1)
    if rng.random() < 0.4:  # a bush on a trunk
        parts += turned((0.3, 0.03), (0.7, 0.02), slot=2)
        crown = [[rng.uniform(low, low + 0.3) for low in (-0.15, -0.15, 0.6)] for _ in range(6)]
        return parts + [ball((rng.uniform(0.13, 0.2),) * 3, (x, y, z)) for x, y, z in crown]
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)) * 2:  # long leaves
        tip = x * rng.uniform(0.05, 0.45), y * rng.uniform(0.05, 0.45), rng.uniform(0.6, 1.0)
        parts.append(rod((0, 0, 0.25), tip, rng.uniform(0.05, 0.07), kind=BALL))
    return parts


def sofa(rng: Random) -> list[Part]:
    seats, slot = rng.randrange(1, 4), rng.randrange(2)
    arm = seats * 0.275 + 0.08
    parts = [box((2 * arm, 0.8, 0.24), (0, 0, 0))]
    parts.append(box((2 * arm + 0.16, 0.2, 0.74), (0, 0.3, 0), lean=0.05))
    for x in (-arm, arm):
        parts.append(box((0.16, 0.8, 0.5), (x, 0, 0)))
        parts.append(rod((x, -0.41, 0.53), (x, 0.4, 0.53), 0.1))
    for x in [(i - (seats - 1) / 2) * 0.55 for i in range(seats)]:  # cushions
        parts.append(box((0.53, 0.6, 0.14), (x, -0.08, 0.28), slot))
        parts.append(box((0.5, 0.14, 0.34), (x, 0.14, 0.4), slot, lean=0.07))
    return parts


def table(rng: Random) -> list[Part]:
    disc, board = turned((0.67, 0.5), (0.72, 0.5)), [box((1.1, 0.75, 0.05), (0, 0, 0.67))]
    panels = [box((0.05, 0.65, 0.67), (x, 0, 0), slot=1) for x in (-0.45, 0.45)]
    round_table = disc + rng.choice((pedestal(0.3, 0.67), legs(0.3, 0.3, 0.67)))
    return rng.choice((round_table, board + rng.choice((panels, legs(0.46, 0.3, 0.67)))))


def teddy(rng: Random) -> list[Part]:
    sits, lift = rng.random() < 0.6, rng.uniform(-0.1, 0.15)
    waist = 0.24 if sits else 0.44
    top = waist + 0.42
    parts = [ball((0.24, 0.2, 0.28), (0, 0, waist)), ball((0.22, 0.2, 0.2), (0, 0, top))]
    parts.append(ball((0.17, 0.09, 0.2), (0, -0.15, waist), slot=1))
    parts.append(ball((0.1, 0.09, 0.08), (0, -0.18, top - 0.04), slot=1))  # muzzle
    for x in (-1, 1):  # ears, eyes, arms and legs
        parts.append(ball((0.09, 0.05, 0.09), (x * 0.16, 0, top + 0.16)))
        parts.append(ball((0.026, 0.026, 0.026), (x * 0.08, -0.18, top + 0.06), slot=2))
        shoulder, hand = (x * 0.16, 0, waist + 0.18), (x * 0.38, -0.14, waist + lift)
        parts.append(rod(shoulder, hand, 0.08, kind=BALL))
        toe = (x * 0.2, -0.36, 0.09) if sits else (x * 0.13, -0.04, 0)
        parts.append(rod((x * 0.12, 0, waist - 0.15), toe, 0.09, kind=BALL))
    return parts


def clutter(rng: Random) -> list[Part]:
    """A crate, a ball, a drum or a cone, which are of no class."""
    crate, sphere = [box((0.4, 0.35, 0.4), (0, 0, 0))], [ball((0.2, 0.2, 0.2), (0, 0, 0.2))]
    drum, cone = turned((0, 0.18), (0.45, 0.18)), turned((0, 0.2), (0.4, 0))
    return rng.choice((crate, sphere, drum, cone))


# Each draws the parts of an object, which stands on z = 0 and faces -y. Classes are told apart by
# shape, not by colour; captions name the colour of slot 0.
_BUILDERS = bookshelf, bottle, chair, lamp, monitor, mug, plant, sofa, table, teddy
BUILDERS = {build.__name__: build for build in _BUILDERS}
CLASSES = tuple(BUILDERS)
# where each class is found, and the scale of things there
SETTINGS = {
    "floor": (1.0, ("bookshelf", "chair", "lamp", "monitor", "plant", "sofa", "table", "teddy")),
    "counter": (0.45, ("bottle", "lamp", "monitor", "mug", "plant", "teddy")),
}


COLOURS = {
    "red": (0.8, 0.12, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.95, 0.85, 0.2),
    "green": (0.2, 0.6, 0.2),
    "blue": (0.15, 0.3, 0.8),
    "purple": (0.5, 0.2, 0.7),
    "pink": (0.95, 0.6, 0.75),
    "brown": (0.4, 0.24, 0.12),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.5, 0.5, 0.5),
    "black": (0.08, 0.08, 0.08),
}
COLOUR_NAMES = tuple(COLOURS)
TEXTURES = ("plain", "striped", "checkered", "dotted", "speckled")
CLOSE_UPS = 0.6  # share of pictures with a large subject
Range = tuple[float, float]


class Domain(NamedTuple):
    """A distribution of materials, lights and cameras."""

    textures: tuple[float, ...]  # weights of TEXTURES
    saturation: Range  # share of a colour's difference from grey
    ambient: Range  # light that comes from everywhere
    warmth: Range  # of the light, -1 (blue) to 1 (orange)
    tangent: Range  # of half the field of view
    elevation: Range  # sine of the camera's above the subject
    noise: Range  # its standard deviation in 8-bit grey levels


HOME = Domain(
    (5, 1, 1, 1, 3), (0.75, 1), (0.3, 0.5), (-0.1, 0.35), (0.38, 0.6), (0.07, 0.64), (0.5, 3)
)
# what the experts learn from: more pattern, paler, darker shadows, colder, from above, noisier
EXPERT = Domain(
    (4, 1, 3, 2, 1), (0.4, 0.85), (0.2, 0.4), (-0.45, 0.1), (0.47, 0.73), (0.17, 0.77), (2, 6)
)
DOMAINS = {"home": HOME, "expert": EXPERT}


class Item(NamedTuple):
    """An object in a scene; ``colour`` and ``texture`` are those of its main part."""

    name: str
    colour: str
    texture: str


class Scene:
    """A room or a counter with one to five objects, a camera and a light.

    The subject, which the camera is aimed at, stands at the origin, z is up; the camera is on its
    -y side, the room is turned around both. On a counter everything is smaller.

    Attributes:
        solids: in the camera's axes; ``body`` (N,) is 0 for the room, k for ``objects[k - 1]``,
            more for clutter, which is of no class.
        materials: texture, two linear colours, 1 / grain in metres, origin (3); walls, floor and
            ceiling are the first rows.
        axes: (3, 3) right, up and back of the camera, which is at ``position``, (3,), and sees
            ``tangent`` of half its field of view.
        light: (3,) in the camera's axes; ``light_colour``: (3,) linear RGB.
        setting: name in ``SETTINGS``; ``floor`` and ``wall``: names of colours.
    """

    def __init__(self, rng: Random, domain: str, subject: str | None = None) -> None:
        """Draw a scene of ``domain``, a name in ``DOMAINS``, with a large ``subject`` if given."""
        self.rng, self.domain = rng, DOMAINS[domain]
        is_close = subject is not None or rng.random() < CLOSE_UPS
        subject = subject or rng.choice(CLASSES)
        self.setting = rng.choice([key for key, (_, names) in SETTINGS.items() if subject in names])
        self.scale, names = SETTINGS[self.setting]
        self.wall, self.floor = rng.choice(COLOUR_NAMES), rng.choice(COLOUR_NAMES)
        self.objects: list[Item] = []
        self.materials: list[list[float]] = []
        self.bodies: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # parts, matrix, shift
        self.spots: list[tuple[float, ...]] = []  # of bodies: x, y, radius, height
        for colour in self.wall, self.floor, "white":
            self._add_material(colour, rng.uniform(0.25, 0.5) * self.scale)
        size = self._add_body(subject)
        self._place_camera(size, is_close)
        placed = rng.choices(names, k=rng.randrange(0 if is_close else 1, 5))
        for name in (*placed, *[""] * rng.randrange(3)):  # '' is clutter
            self._add_body(name)
        self._add_room()
        warmth, self.ambient = rng.uniform(*self.domain.warmth), rng.uniform(*self.domain.ambient)
        self.light_colour = np.array([0.9 + 0.3 * warmth, 0.9, 0.9 - 0.5 * warmth], np.float32)

        tables, matrices, shifts = zip(*self.bodies, strict=True)
        body = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        matrix = np.stack([apply(self.axes[:, :, None], matrix) for matrix in matrices])
        shift = np.stack([apply(self.axes, shift - self.position) for shift in shifts])
        self.solids = Solids(np.concatenate(tables), matrix, shift, body)

    def _add_material(self, colour: str, grain: float) -> str:
        """Add a material; returns the name of its texture."""
        rng, grey = self.rng, sum(COLOURS[colour]) / 3
        texture = rng.choices(TEXTURES, self.domain.textures)[0]
        saturation = rng.uniform(*self.domain.saturation)
        mixed = [grey + (c - grey) * saturation + rng.uniform(-0.06, 0.06) for c in COLOURS[colour]]
        first = [min(max(channel, 0.02), 1.0) ** 2 for channel in mixed]
        factor = rng.choice((rng.uniform(0.3, 0.6), rng.uniform(1.5, 2)))  # darker or lighter
        second = [min(channel * factor + 0.02, 1.0) for channel in first]
        # a face on the border of a texture's cells would flicker
        origin = [rng.uniform(0.13, 0.87) for _ in range(3)]
        self.materials.append([TEXTURES.index(texture), *first, *second, 1 / grain, *origin])
        return texture

    def _add_body(self, name: str) -> np.ndarray:
        """Put down an object, or clutter of no name, if it fits; returns its size (3,)."""
        rng, table = self.rng, np.array(BUILDERS[name](self.rng) if name else clutter(self.rng))
        scale = np.array([rng.uniform(0.82, 1.2) * self.scale for _ in range(3)])
        size = extent(table) * scale
        spot = self._find_spot(sqrt(size[0] * size[0] + size[1] * size[1]) / 2)
        if spot is None:
            return size
        self.spots.append((*spot, size[2]))
        table[:, -1] += len(self.materials)
        self.bodies.append((table, rotation(rng, 1.6) * scale, np.array([*spot[:2], 0])))
        colours = [rng.choice(COLOUR_NAMES) for _ in range(SLOTS)]
        grain = float(size.max()) * rng.uniform(0.08, 0.2)
        textures = [self._add_material(colour, grain) for colour in colours]
        if name:
            self.objects.append(Item(name, colours[0], textures[0]))
        return size

    def _find_spot(self, radius: float) -> tuple[float, float, float] | None:
        """The origin, or where the camera may see a body and nothing else stands."""
        if not self.spots:
            return 0.0, 0.0, radius
        distance = -float(self.position[1])
        for _ in range(6):
            y = self.rng.uniform(-0.35, 0.8) * min(distance, 3 * self.scale)
            x = self.rng.uniform(-1, 1) * self.tangent * (distance + y)
            gaps = [(x - a) ** 2 + (y - b) ** 2 - (radius + r) ** 2 for a, b, r, _ in self.spots]
            if min(gaps) > 0 and y - radius > -0.6 * distance:
                return x, y, radius
        return None

    def _place_camera(self, size: np.ndarray, is_close: bool) -> None:
        """Aim the camera at the subject, of ``size`` (3,)."""
        rng, radius = self.rng, sqrt(float(dot(size, size))) / 2
        self.tangent = rng.uniform(*self.domain.tangent)
        distance = radius / self.tangent * rng.uniform(*((0.85, 1.4) if is_close else (1.6, 3)))
        x, y, z = (rng.uniform(-0.2, 0.2) * radius for _ in range(3))
        z += float(size[2]) / 2
        sine = max(rng.uniform(*self.domain.elevation), (0.1 * self.scale - z) / distance)
        cosine = sqrt(1 - sine * sine)
        self.axes = np.array([[1, 0, 0], [0, sine, cosine], [0, -cosine, sine]])
        self.position = np.array([x, y - cosine * distance, z + sine * distance])

    def _add_room(self) -> None:
        """Build the room around all bodies and the camera, with a light in it."""
        rng, (x, y, z), matrix = self.rng, self.position.tolist(), rotation(self.rng, 1.0)
        spots = np.array([*self.spots, (x, y, 0.15 * self.scale, z)]).T
        along = matrix[0, :2, None] * spots[0] + matrix[1, :2, None] * spots[1]  # the room's axes
        gaps = np.array([rng.uniform(0.02, 0.8) * self.scale for _ in range(4)])
        low = (along - spots[2]).min(axis=1) - gaps[:2]
        high = (along + spots[2]).max(axis=1) + gaps[2:]
        height = spots[3].max() + rng.uniform(0.2, 1.2) * self.scale
        room = box((*(high - low), height), (*(low + high) / 2, 0.0))
        self.bodies.insert(0, (np.array([room]), matrix, np.zeros(3)))
        share = np.array([rng.uniform(0.1, 0.9) for _ in range(2)])
        light = (along[:, -1] + low + share * (high - low)) / 2  # between camera and any spot
        light = apply(matrix, np.array([*light, height * rng.uniform(0.75, 0.95)]))
        self.light = apply(self.axes, light - self.position).astype(np.float32)


def rotation(rng: Random, steepest: float) -> np.ndarray:
    """A random rotation (3, 3) about the z axis, seldom to the back."""
    slope = rng.uniform(-steepest, steepest)
    cosine = (1 if rng.random() < 0.85 else -1) / sqrt(1 + slope * slope)
    return np.array([[cosine, -slope * cosine, 0], [slope * cosine, cosine, 0], [0, 0, 1]])


IGNORE = 255
NOISE_DEVIATION = 104.5  # of the sum of two uniform bytes


class GroundTruth(NamedTuple):
    """Labels of pixel centres."""

    instance: np.ndarray  # (H, W) uint8; 0 is the background, k ``scene.objects[k - 1]``
    semantic: np.ndarray  # (H, W) uint8; 0, 1 + index in CLASSES, or IGNORE if too small to name
    depth: np.ndarray  # (H, W) float32, z-depth in metres
    normals: np.ndarray  # (H, W, 3) float32, unit; x right, y up, z towards the camera


def draw_picture(
    rng: Random, domain: str, size: int, subject: str | None = None
) -> tuple[Scene, np.ndarray, GroundTruth]:
    """Draw scenes until one shows its subject; returns it, its picture and its ground truth."""
    while True:
        scene = Scene(rng, domain, subject)
        solid, depth = scene.solids.first_hits(size, scene.tangent)
        pixels = np.bincount(scene.solids.body[solid].ravel(), minlength=2) / solid.size
        share, largest = pixels[1], pixels[2 : len(scene.objects) + 1].max(initial=0.0)
        is_shown = share > max(0.1, 2 * largest) if subject else 0.03 < max(share, largest) < 0.7
        if is_shown:
            return scene, *render_scene(scene, solid, depth, rng)


def smallest_area(size: int) -> int:
    """Pixels below which an object cannot be named: 12 in a picture of 64 × 64."""
    return max(1, round(12 * (size / 64) ** 2))


def render_scene(
    scene: Scene, solid: np.ndarray, depth: np.ndarray, rng: Random
) -> tuple[np.ndarray, GroundTruth]:
    """The picture (H, W, 3) uint8 and the ground truth of what ``first_hits`` gave."""
    size, shown = len(solid), solid.ravel()
    x, y = plane(size, scene.tangent)
    points = np.stack(np.broadcast_arrays(x * depth, y[:, None] * depth, -depth)).reshape(3, -1)
    position, normals = scene.solids.surface(shown, points)
    upwards, slot = dot(scene.axes[:, 2].astype(np.float32), normals), scene.solids.slot[shown]
    slot = np.where((shown == 0) & (np.abs(upwards) > 0.5), np.where(upwards > 0, 1, 2), slot)

    towards = scene.light[:, None] - points
    lit = dot(towards, normals) / np.sqrt(dot(towards, towards))
    lit[lit <= 0] = 0
    candidates = np.flatnonzero(lit)
    lit[candidates[scene.solids.shaded(points[:, candidates], scene.light)]] = 0
    light = (
        lit * scene.light_colour[:, None]
        + scene.ambient * (0.8 + 0.2 * upwards)
        + 0.15 * normals[2]
    )
    picture = albedo(np.array(scene.materials, np.float32), slot, position) * light
    picture = picture / (1 + 0.25 * picture)  # highlights roll off instead of clipping
    picture = np.sqrt(np.minimum(picture * 1.15, 1)).T.reshape(size, size, 3) * 255
    noise = np.frombuffer(rng.randbytes(2 * picture.size), np.uint8).astype(np.float32)
    noise = noise.reshape(2, *picture.shape)
    picture += (noise[0] + noise[1] - 255) * (rng.uniform(*scene.domain.noise) / NOISE_DEVIATION)
    picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    body = scene.solids.body[solid]
    instance = np.where(body > len(scene.objects), 0, body).astype(np.uint8)
    ids = np.array([0] + [1 + CLASSES.index(placed.name) for placed in scene.objects], np.uint8)
    few = np.bincount(instance.ravel(), minlength=len(ids)) < smallest_area(size)
    ids[1:][few[1:]] = IGNORE
    normals = normals.T.reshape(size, size, 3)
    return picture, GroundTruth(instance, ids[instance], depth, normals)


def albedo(materials: np.ndarray, row: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Linear RGB (3, P) of surfaces of materials ``row`` (P,) at ``position`` (3, P), which is in
    metres, in the axes of each solid."""
    texture, first, second, grain, origin = np.split(materials.T, (1, 4, 7, 8))
    mix = np.zeros(len(row), np.float32)  # how much of the second colour shows
    kind = texture[0, row]
    for number, name in enumerate(TEXTURES):
        where = np.flatnonzero(kind == number)
        if name == "plain" or not len(where):
            continue
        point = position[:, where] * grain[:, row[where]] + origin[:, row[where]]
        cell = np.floor(point)
        within = point - cell - 0.5
        if name == "striped":
            mix[where] = (point[0] + point[1] + point[2]) % 1 < 0.5
        elif name == "checkered":
            mix[where] = (cell[0] + cell[1] + cell[2]) % 2
        elif name == "dotted":
            mix[where] = dot(within, within) < 0.16
        else:  # cells of various tones
            mix[where] = (cell[0] * 0.37 + cell[1] * 0.21 + cell[2] * 0.59) % 1
    return first[:, row] + mix * (second - first)[:, row]
