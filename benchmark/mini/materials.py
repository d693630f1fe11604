"""Colours with names, solid textures, and the two domains that pictures come from.

A material is two colours, mixed by a texture of the position on its solid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

Range = tuple[float, float]
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
TEXTURES = ("plain", "checkered", "striped", "dotted", "wooden", "brick")


@dataclass(frozen=True)
class Domain:
    """A distribution of textures, colours, lights and cameras; a range is (low, high)."""

    object_textures: tuple[float, ...]  # weights of TEXTURES
    room_textures: tuple[float, ...]
    saturation: Range  # share of a colour's difference from grey
    brightness: Range  # of colours
    ambient: Range  # share of light that comes from everywhere
    warmth: Range  # colour of the light, -1 (blue) to 1 (orange)
    exposure: Range  # brightness of the light
    tangent: Range  # of half the field of view
    elevation: Range  # sine of the camera's elevation above the subject
    roll: float  # largest tangent of the camera's roll
    noise: Range  # standard deviation of sensor noise, 8-bit grey levels


DOMAINS: Mapping[str, Domain] = {
    "home": Domain(
        object_textures=(6, 1, 1, 1, 2, 0),
        room_textures=(4, 1, 1, 0, 4, 0),
        saturation=(0.75, 1.05),
        brightness=(0.8, 1.1),
        ambient=(0.3, 0.5),
        warmth=(-0.1, 0.35),
        exposure=(0.75, 1.05),
        tangent=(0.38, 0.6),
        elevation=(0.07, 0.64),
        roll=0.08,
        noise=(0.5, 3.0),
    ),
    # what the experts learn from: paler, colder, brick and tiles instead of wood, darker shadows,
    # other cameras, more noise
    "expert": Domain(
        object_textures=(5, 2, 1, 2, 1, 0.5),
        room_textures=(3, 3, 0, 0.5, 1, 3),
        saturation=(0.4, 0.85),
        brightness=(0.65, 1.05),
        ambient=(0.2, 0.42),
        warmth=(-0.45, 0.1),
        exposure=(0.8, 1.25),
        tangent=(0.47, 0.73),
        elevation=(0.17, 0.77),
        roll=0.16,
        noise=(2.0, 6.0),
    ),
}


def material(rng: Random, domain: Domain, colour: str, texture: str, grain: float) -> list[float]:
    """A row of a table: texture, two linear colours, 1 / grain in metres, origin (3), axis."""
    first = draw_colour(rng, domain, colour)
    if texture != "wooden" and rng.random() < 0.25:
        second = draw_colour(rng, domain, rng.choice(COLOUR_NAMES))
    else:  # the same hue, darker or lighter
        factor = rng.choice((rng.uniform(0.45, 0.75), rng.uniform(1.25, 1.6)))
        second = [min(channel * factor + 0.02, 1.0) for channel in first]
    # a face on the border of a texture's cells would flicker
    origin = [rng.uniform(0.13, 0.87) for _ in range(3)]
    return [TEXTURES.index(texture), *first, *second, 1 / grain, *origin, rng.randrange(3)]


def draw_colour(rng: Random, domain: Domain, name: str) -> list[float]:
    """Linear RGB in [0, 1] of a named colour."""
    channels, grey = COLOURS[name], sum(COLOURS[name]) / 3
    saturation, brightness = rng.uniform(*domain.saturation), rng.uniform(*domain.brightness)
    mixed = [(grey + (channel - grey) * saturation) * brightness for channel in channels]
    values = [min(max(value + rng.uniform(-0.04, 0.04), 0.02), 1.0) for value in mixed]
    return [value * value for value in values]


def albedo(
    table: np.ndarray, row: np.ndarray, position: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Linear RGB (3, N) of surfaces whose materials are ``row`` (N,) of ``table`` (M, 12).

    ``position`` and ``normals`` (3, N) are in the axes of each solid, in metres.
    """
    kind, mix = table[row, 0], np.zeros(len(row), table.dtype)
    for number, texture in enumerate(TEXTURES[1:], start=1):
        where = np.flatnonzero(kind == number)
        if len(where):
            materials = table.T[7:, row[where]]
            point = position[:, where] * materials[0] + materials[1:4]
            mix[where] = _mix(texture, point, normals[:, where], materials[4])
    colours = table.T[1:7, row]
    return colours[:3] + mix * (colours[3:] - colours[:3])


def _mix(texture: str, point: np.ndarray, normals: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """How much of the second colour shows, 0 to 1, at ``point`` (3, N) in units of the grain."""
    cell = np.floor(point)
    within = point - cell
    if texture == "checkered":
        return (cell[0] + cell[1] + cell[2]) % 2
    if texture == "striped":
        return np.choose(axis.astype(int), within) < 0.45
    if texture == "dotted":  # discs on the surface, not balls that it may miss
        flat = (within - 0.5) * (np.abs(normals) < 0.75)
        return flat[0] * flat[0] + flat[1] * flat[1] + flat[2] * flat[2] < 0.09
    if texture == "wooden":  # planks along x of different tones, with a grain
        tone = (cell[1] * 0.37 + cell[2] * 0.21) % 1
        fibre = np.abs((point[1] * 5 + point[2] * 4 + 0.3 * point[0]) % 1 - 0.5)
        return np.minimum(0.45 * tone + 0.6 * fibre + 0.6 * (within[1] < 0.05), 1)
    level = np.abs(normals[2]) > 0.7  # brick: courses in z on upright faces, in y on level ones
    height = np.where(level, point[1], point[2]) * 2
    course = np.floor(height)
    along = np.where(level, point[0], point[0] + point[1]) + 0.5 * (course % 2)
    return (height - course < 0.14) | (along - np.floor(along) < 0.07)
