"""Scenes: a room or a counter with one to five objects, a camera and a light.

The subject, which the camera is aimed at, stands at the origin; the camera is on its -y side, the
room is turned around both. On a counter everything is smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from random import Random

import numpy as np

from benchmark.mini.materials import COLOUR_NAMES, DOMAINS, TEXTURES, Domain, material
from benchmark.mini.shapes import BUILDERS, CLASSES, COUNTER, FLOOR, SLOTS, clutter
from benchmark.mini.solids import SOLID, Bodies, Camera, Solid, bounds, box, rotate, stretch

COUNTER_SCALE = 0.45
CLOSE_UPS = 0.6  # share of pictures with a large subject


@dataclass(frozen=True)
class PlacedObject:
    """An object in the scene; ``colour`` and ``texture`` are those of its main part."""

    name: str
    colour: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """All that rendering and captions need.

    Attributes:
        bodies: the room, the objects as bodies 1, 2 …, then clutter, which is of no class; a
            solid's slot is its row of ``materials``; rows 0, 1 and 2 are walls, floor and ceiling.
        light: (3,) position; ``light_colour`` (3,) is its linear RGB at the distance ``reach``.
        ambient: share of light that comes from everywhere.
        floor, wall: names of their colours.
    """

    domain: Domain
    bodies: Bodies
    materials: np.ndarray
    objects: list[PlacedObject]
    camera: Camera
    light: np.ndarray
    light_colour: np.ndarray
    reach: float
    ambient: float
    on_counter: bool
    floor: str
    wall: str


def make_scene(rng: Random, domain: str = "home", subject: str | None = None) -> Scene:
    """Draw a scene of ``domain``, a name in ``DOMAINS``, with a large ``subject`` if given."""
    draft = _Draft(rng, DOMAINS[domain])
    close = subject is not None or rng.random() < CLOSE_UPS
    subject = subject or rng.choice(CLASSES)
    on_counter = rng.choice([names is COUNTER for names in (FLOOR, COUNTER) if subject in names])
    wall, floor = rng.choice(COLOUR_NAMES), rng.choice(COLOUR_NAMES)
    for colour in wall, floor, "white":
        draft.add_material(colour, draft.domain.room_textures, rng.uniform(0.25, 0.5))
    camera = draft.place_subject(subject, close)
    for _ in range(rng.randrange(0 if close else 1, 6)):
        name = rng.choice(COUNTER if on_counter else FLOOR)
        draft.scatter(BUILDERS[name](rng), camera, name)
    for _ in range(rng.randrange(3)):
        draft.scatter(clutter(rng), camera)
    light = draft.add_room(camera)

    scale = COUNTER_SCALE if on_counter else 1.0
    solids, materials = np.concatenate(draft.parts), np.array(draft.materials)
    stretch(solids, scale)
    materials[:, 7] /= scale
    warmth, exposure = rng.uniform(*draft.domain.warmth), rng.uniform(*draft.domain.exposure)
    return Scene(
        draft.domain,
        Bodies(solids),
        materials,
        draft.objects,
        camera._replace(position=camera.position * scale),
        light * scale,
        np.array([1 + 0.35 * warmth, 1.0, 1 - 0.55 * warmth]) * exposure,
        _length(light) * scale,
        rng.uniform(*draft.domain.ambient),
        on_counter,
        floor,
        wall,
    )


class _Draft:
    """A scene in the making: its parts, and the footprint (x, y, radius) of each body."""

    def __init__(self, rng: Random, domain: Domain) -> None:
        self.rng, self.domain, self.height = rng, domain, 0.0
        self.parts: list[np.ndarray] = []
        self.footprints: list[tuple[float, float, float]] = []
        self.materials: list[list[float]] = []
        self.objects: list[PlacedObject] = []

    def add_material(self, colour: str, textures: tuple[float, ...], grain: float) -> str:
        texture = self.rng.choices(TEXTURES, textures)[0]
        self.materials.append(material(self.rng, self.domain, colour, texture, grain))
        return texture

    def place_subject(self, name: str, close: bool) -> Camera:
        """Put the subject down and aim a camera at it."""
        rng, domain, solids = self.rng, self.domain, self._rotated(BUILDERS[name](self.rng))
        low, high = bounds(solids)
        self._put_down(solids, 0.0, 0.0, name)
        tangent, radius = rng.uniform(*domain.tangent), _length(high - low) / 2
        distance = radius / tangent * (rng.uniform(0.85, 1.4) if close else rng.uniform(1.6, 3))
        aim = np.array([rng.uniform(-0.2, 0.2) for _ in range(3)]) * radius
        aim[2] += high[2] / 2
        sine = max(rng.uniform(*domain.elevation), (0.1 - float(aim[2])) / distance)
        cosine, roll = sqrt(1 - sine * sine), rng.uniform(-domain.roll, domain.roll)
        right, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, sine, cosine])
        back, level = np.array([0.0, -cosine, sine]), 1 / sqrt(1 + roll * roll)
        axes = np.stack([(right + roll * up) * level, (up - roll * right) * level, back])
        return Camera(aim + back * distance, axes, tangent)

    def scatter(self, parts: list[Solid], camera: Camera, name: str = "") -> None:
        """Put a body down where the camera may see it and nothing else stands, if it fits."""
        distance, solids = -float(camera.position[1]), self._rotated(parts)
        radius = _footprint(solids)
        for _ in range(6):
            y = self.rng.uniform(-0.35, 0.8) * min(distance, 3)
            x = self.rng.uniform(-1, 1) * camera.tangent * (distance + y)
            gaps = [_length((x - a, y - b)) - radius - r for a, b, r in self.footprints]
            if min(gaps) > 0 and y - radius > -0.6 * distance:
                return self._put_down(solids, x, y, name)

    def _rotated(self, parts: list[Solid]) -> np.ndarray:
        """The parts of a body, stretched, and turned mostly with its front to the camera."""
        solids, rng = np.array(parts, SOLID), self.rng
        stretch(solids, tuple(rng.uniform(0.82, 1.2) for _ in range(3)))
        slope = rng.uniform(-1.6, 1.6)
        length = sqrt(1 + slope * slope) * (1 if rng.random() < 0.85 else -1)
        rotate(solids, 1 / length, slope / length)
        return solids

    def _put_down(self, solids: np.ndarray, x: float, y: float, name: str) -> None:
        self.footprints.append((x, y, _footprint(solids)))
        low, high = bounds(solids)
        self.height = max(self.height, float(high[2]))
        solids["slot"] += len(self.materials)
        solids["body"] = len(self.parts) + 1
        solids["centre"] += (x, y, 0.0)
        self.parts.append(solids)
        colours = [self.rng.choice(COLOUR_NAMES) for _ in range(SLOTS)]
        grain = float((high - low).max()) * self.rng.uniform(0.08, 0.2)
        weights = self.domain.object_textures
        textures = [self.add_material(colour, weights, grain) for colour in colours]
        if name:
            self.objects.append(PlacedObject(name, colours[0], textures[0]))

    def add_room(self, camera: Camera) -> np.ndarray:
        """Build the room around all bodies, with pictures on its walls; returns the light."""
        rng, (x, y, z) = self.rng, (float(value) for value in camera.position)
        slope = rng.uniform(-1, 1)
        cosine = 1 / sqrt(1 + slope * slope)
        sine = slope * cosine
        # footprints in the room's axes
        spots = [
            (a * cosine + b * sine, b * cosine - a * sine, radius)
            for a, b, radius in (*self.footprints, (x, y, 0.15))
        ]
        low = [min(s[i] - s[2] for s in spots) - rng.uniform(0.02, 0.8) for i in range(2)]
        high = [max(s[i] + s[2] for s in spots) + rng.uniform(0.02, 0.8) for i in range(2)]
        height = max(self.height, z) + rng.uniform(0.2, 1.2)
        size = high[0] - low[0], high[1] - low[1]
        middle = low[0] + size[0] / 2, low[1] + size[1] / 2
        parts = [box((*size, height), (*middle, 0.0))]
        for _ in range(rng.randrange(3)):
            at = rng.uniform(low[0], high[0]), high[1], height * 0.4
            parts.append(box((0.3 * size[0], 0.05, height * 0.3), at, len(self.materials)))
            self.add_material(rng.choice(COLOUR_NAMES), self.domain.object_textures, 0.15)
        solids = np.array(parts, SOLID)
        solids["body"][1:] = len(self.parts) + 1
        rotate(solids, cosine, sine)
        self.parts.insert(0, solids)
        a, b = (
            0.5 * spots[-1][i] + 0.5 * (low[i] + rng.uniform(0.1, 0.9) * size[i]) for i in range(2)
        )
        up = height * rng.uniform(0.75, 0.95)
        return np.array([a * cosine - b * sine, a * sine + b * cosine, up])


def _footprint(solids: np.ndarray) -> float:
    """Radius of what a body occupies on the floor; 0 of a rug."""
    low, high = bounds(solids)
    return _length((high - low)[:2]) / 2 if high[2] > 0.05 else 0.0


def _length(vector: Iterable[float]) -> float:
    return sqrt(sum(float(value) * float(value) for value in vector))
