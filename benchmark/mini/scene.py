"""Scenes: a room or a counter with one to five objects, a camera and a light.

The subject, which the camera is aimed at, stands at the origin, z is up; the camera is on its -y
side, the room is turned around both. On a counter everything is smaller.
"""

from math import sqrt
from random import Random
from typing import NamedTuple

import numpy as np

from benchmark.mini.shapes import BUILDERS, CLASSES, SETTINGS, SLOTS, clutter
from benchmark.mini.solids import Solids, apply, box, dot, extent

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
    """All that rendering and captions need.

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
        self._place_camera(self._add_body(subject), is_close)
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
