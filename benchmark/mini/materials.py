"""Colours with names, procedural textures, and the two domains that pictures come from.

A material is two colours mixed by a texture of the place on the object (Perlin, *An Image
Synthesizer*, 1985: solid textures need no texture coordinates).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Range = tuple[float, float]
# name → ranges of hue, saturation and value; what a caption calls a colour is what the colour was
# drawn from
COLOURS: Mapping[str, tuple[Range, Range, Range]] = {
    "red": ((-0.025, 0.015), (0.75, 0.95), (0.6, 0.9)),
    "orange": ((0.055, 0.09), (0.8, 0.95), (0.85, 1.0)),
    "yellow": ((0.13, 0.165), (0.7, 0.95), (0.85, 1.0)),
    "green": ((0.27, 0.4), (0.55, 0.9), (0.35, 0.75)),
    "blue": ((0.56, 0.65), (0.6, 0.9), (0.45, 0.9)),
    "purple": ((0.73, 0.8), (0.45, 0.8), (0.4, 0.75)),
    "pink": ((0.88, 0.95), (0.3, 0.55), (0.85, 1.0)),
    "brown": ((0.04, 0.08), (0.5, 0.7), (0.25, 0.45)),
    "white": ((0.0, 1.0), (0.0, 0.05), (0.88, 1.0)),
    "grey": ((0.0, 1.0), (0.0, 0.06), (0.4, 0.6)),
    "black": ((0.0, 1.0), (0.0, 0.2), (0.04, 0.12)),
}
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Domain:
    """A distribution of colours, textures, lights and cameras; a range is (low, high)."""

    object_textures: Mapping[str, float]  # name in TEXTURES → weight
    room_textures: Mapping[str, float]
    saturation: Range  # factors on the colours' saturation and value
    value: Range
    wall_value: Range  # brightness (HSV value) of walls
    ambient: Range  # share of light that comes from everywhere
    warmth: Range  # colour temperature shift of the lights, -1 (blue) to 1 (orange)
    exposure: Range  # brightness of the main light
    light_radius: Range  # of the main light, metres; larger gives softer shadows
    fov: Range  # horizontal and vertical field of view, degrees
    elevation: Range  # of the camera above the object in close-ups, degrees
    roll: float  # standard deviation of the camera's roll, degrees
    noise: Range  # standard deviation of sensor noise, 8-bit grey levels


DOMAINS: Mapping[str, Domain] = {
    "home": Domain(
        {"plain": 6, "checkered": 0.6, "striped": 1, "wooden": 2, "marbled": 1, "dotted": 0.6},
        {"plain": 4, "striped": 1, "wooden": 4, "marbled": 2, "checkered": 1},
        saturation=(0.75, 1.05),
        value=(0.85, 1.05),
        wall_value=(0.5, 0.95),
        ambient=(0.3, 0.5),
        warmth=(-0.1, 0.35),
        exposure=(0.75, 1.05),
        light_radius=(0.1, 0.45),
        fov=(42.0, 62.0),
        elevation=(4.0, 40.0),
        roll=2.5,
        noise=(0.5, 3.0),
    ),
    # what the experts learn from: paler, colder, brick and tiles instead of wood, harder shadows,
    # other cameras, more noise
    "expert": Domain(
        {
            "plain": 5,
            "checkered": 1.5,
            "striped": 1,
            "wooden": 0.7,
            "marbled": 1,
            "dotted": 1.5,
            "brick": 0.5,
        },
        {"plain": 3, "brick": 3, "checkered": 3, "wooden": 1, "dotted": 0.5},
        saturation=(0.4, 0.85),
        value=(0.7, 1.0),
        wall_value=(0.35, 0.8),
        ambient=(0.2, 0.42),
        warmth=(-0.45, 0.1),
        exposure=(0.8, 1.25),
        light_radius=(0.02, 0.2),
        fov=(50.0, 72.0),
        elevation=(10.0, 50.0),
        roll=5.0,
        noise=(2.0, 6.0),
    ),
}


@dataclass
class Materials:
    """A table of materials, one row each, grown with ``add`` and handed over by ``table``."""

    rng: np.random.Generator
    domain: Domain
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def add(
        self,
        colour: str,
        texture: str,
        size: float,
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        value: Range | None = None,
        shine: float | None = None,
    ) -> int:
        """Draw a material with ``texture`` of grain ``size`` metres; returns its row."""
        rng = self.rng
        first = self.draw(colour, value)
        if texture in ("checkered", "striped", "dotted") and rng.random() < 0.35:
            second = self.draw(pick(rng, COLOUR_NAMES), value)
        else:  # the same hue, darker or lighter: the caption's colour stays right
            factor = rng.uniform(0.45, 0.75) if rng.random() < 0.5 else rng.uniform(1.25, 1.6)
            second = [min(channel * factor + 0.02, 1.0) for channel in first]
        if texture == "brick":
            second = [min(channel * 0.5 + 0.35, 1.0) for channel in first]
        shine = float(rng.uniform(0, 0.5) * (rng.random() < 0.5)) if shine is None else shine
        # textures start at a random place: a face lying exactly on a cell's border would flicker
        shift = [
            start + step * size
            for start, step in zip(origin, rng.uniform(0.13, 0.87, 3), strict=True)
        ]
        axis, kind = int(rng.integers(3)), TEXTURES.index(texture)
        self.rows.append(
            (kind, *first, *second, size, *shift, math.cos(yaw), math.sin(yaw), axis, shine)
        )
        return len(self.rows) - 1

    def draw(self, colour: str, value: Range | None = None) -> list[float]:
        """Linear RGB in [0, 1] of a named colour; ``value`` overrides its HSV value range."""
        rng = self.rng
        hue, saturation, brightness = (rng.uniform(*span) for span in COLOURS[colour])
        if value is not None:
            brightness = rng.uniform(*value)
        saturation = min(saturation * rng.uniform(*self.domain.saturation), 1.0)
        brightness = min(brightness * rng.uniform(*self.domain.value), 1.0)
        return [channel**2.2 for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, brightness)]

    def table(self) -> np.ndarray:
        """(M, 15) float32: kind, two colours, size, origin (3), cos and sin of yaw, axis, shine."""
        return np.array(self.rows, np.float32)


def pick_texture(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A texture name drawn with ``weights``."""
    remaining = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        remaining -= weight
        if remaining < 0:
            return name
    return name


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of ``options``; ten times as fast as ``rng.choice``."""
    return options[int(rng.integers(len(options)))]


def albedo(
    table: np.ndarray, material: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Linear RGB (N, 3) of surface ``points`` (N, 3; metres) with ``normals`` (N, 3).

    ``material`` (N,) are rows of ``table``.
    """
    colour = table[:, 1:4][material]
    for row in np.flatnonzero(np.bincount(material)):
        kind, first, second, size, origin = np.split(table[row, :11], [1, 4, 7, 8])
        if not kind[0]:  # plain
            continue
        rows_of_material = np.flatnonzero(material == row)
        x, y, z = ((points[rows_of_material] - origin) / size).T
        cosine, sine, axis = table[row, 11], table[row, 12], int(table[row, 13])
        position = np.stack([x * cosine + y * sine, y * cosine - x * sine, z])
        mix = PATTERNS[TEXTURES[int(kind[0])]](position, normals[rows_of_material].T, axis).astype(
            np.float32
        )
        colour[rows_of_material] += mix[:, None] * (second - first)
    return colour


# A texture says how much of the second colour shows (N,), in [0, 1], at ``position`` (3, N), the
# position on the object in units of the texture's grain; ``normals`` (3, N); ``axis`` is a
# direction drawn with the material.


def dotted(position: np.ndarray, normals: np.ndarray, axis: int) -> np.ndarray:
    cell = position - np.floor(position) - 0.5
    flat = cell * (np.abs(normals) < 0.75)  # dots are discs on the surface, not balls it may miss
    return (flat * flat).sum(axis=0) < 0.09


def wooden(position: np.ndarray, normals: np.ndarray, axis: int) -> np.ndarray:
    """Planks along x, with a grain and seams."""
    x, y, z = position
    plank = np.floor(y)
    tone = np.sin(plank * 12.9898 + np.floor(z) * 4.1) * 0.5 + 0.5
    grain = np.sin(y * 31 + 1.7 * np.sin(x * 2.1 + plank) + z * 23) * 0.5 + 0.5
    return np.clip(0.45 * tone + 0.3 * grain + 0.6 * ((y - plank) < 0.04), 0, 1)


def marbled(position: np.ndarray, normals: np.ndarray, axis: int) -> np.ndarray:
    """A sum of three waves, each finer and fainter."""
    wave = np.sin(_WAVES @ position + _PHASES)
    return np.clip(0.5 + wave[0] * 0.3 + wave[1] * 0.14 + wave[2] * 0.066, 0, 1)


def brick(position: np.ndarray, normals: np.ndarray, axis: int) -> np.ndarray:
    """Courses in z on upright faces, in y on level ones; the second colour is the mortar."""
    x, y, z = position
    level = np.abs(normals[2]) > 0.7
    row, run = np.where(level, y, z) * 2, np.where(level, x, x + y)
    course = np.floor(row)
    across = run + 0.5 * (course % 2)
    block = np.floor(across)
    mortar = ((row - course) < 0.14) | ((across - block) < 0.07)
    return np.where(mortar, 1.0, np.sin(course * 7.3 + block * 3.1) * 0.12 + 0.12)


_WAVES = np.array([[2.0, 1.4, -0.8], [-2.1, 4.3, 3.4], [5.5, -2.7, 9.1]], np.float32)
_PHASES = np.array([[0.3], [1.9], [4.4]], np.float32)

PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "checkered": lambda position, normals, axis: np.floor(position).sum(axis=0) % 2,
    "striped": lambda position, normals, axis: position[axis] % 1.0 < 0.45,
    "wooden": wooden,
    "marbled": marbled,
    "brick": brick,
    "dotted": dotted,
}
TEXTURES = ("plain", *PATTERNS)
