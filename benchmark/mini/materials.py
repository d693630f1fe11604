"""Colours with names, procedural textures, and the two domains that pictures come from.

A material is two colours mixed by a texture of the place on the object (Perlin, *An Image Synthesizer*, 1985: solid
textures need no texture coordinates).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

# name -> ranges of hue, saturation and value; what a caption calls a colour is what the colour was drawn from
COLOURS: Mapping[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
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
TEXTURES = ("plain", "checkered", "striped", "wooden", "marbled", "brick", "dotted")


@dataclass(frozen=True)
class Domain:
    """Where pictures come from: how colours, textures, lights and cameras are distributed.

    Attributes:
        saturation, value: factors on the colours' saturation and value, (low, high).
        object_textures, room_textures: weights of ``TEXTURES``, by name.
        wall_value: brightness (HSV value) of walls, (low, high).
        ambient: share of light that comes from everywhere, (low, high).
        warmth: colour temperature shift of the lights, -1 (blue) to 1 (orange), (low, high).
        exposure: brightness of the main light, (low, high).
        light_radius: radius of the main light in metres, (low, high); larger gives softer shadows.
        fov: horizontal and vertical field of view in degrees, (low, high).
        elevation: of the camera above the object in close-ups, degrees, (low, high).
        roll: standard deviation of the camera's roll, degrees.
        noise: standard deviation of sensor noise in 8-bit grey levels, (low, high).
    """

    saturation: tuple[float, float] = (0.75, 1.05)
    value: tuple[float, float] = (0.85, 1.05)
    object_textures: Mapping[str, float] = field(
        default_factory=lambda: {"plain": 6, "checkered": 0.6, "striped": 1, "wooden": 2, "marbled": 1, "dotted": 0.6}
    )
    room_textures: Mapping[str, float] = field(
        default_factory=lambda: {"plain": 4, "striped": 1, "wooden": 4, "marbled": 2, "checkered": 1}
    )
    wall_value: tuple[float, float] = (0.5, 0.95)
    ambient: tuple[float, float] = (0.3, 0.5)
    warmth: tuple[float, float] = (-0.1, 0.35)
    exposure: tuple[float, float] = (0.75, 1.05)
    light_radius: tuple[float, float] = (0.1, 0.45)
    fov: tuple[float, float] = (42.0, 62.0)
    elevation: tuple[float, float] = (4.0, 40.0)
    roll: float = 2.5
    noise: tuple[float, float] = (0.5, 3.0)


DOMAINS: Mapping[str, Domain] = {
    "home": Domain(),
    # what the experts learn from: paler, colder, brick and tiles instead of wood, harder shadows, other cameras, more
    # noise
    "expert": Domain(
        saturation=(0.4, 0.85),
        value=(0.7, 1.0),
        object_textures={
            "plain": 5,
            "checkered": 1.5,
            "striped": 1,
            "wooden": 0.7,
            "marbled": 1,
            "dotted": 1.5,
            "brick": 0.5,
        },
        room_textures={"plain": 3, "brick": 3, "checkered": 3, "wooden": 1, "dotted": 0.5},
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
    """A table of materials, one row each, grown with ``add`` and read with ``colours``."""

    domain: Domain
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def add(
        self,
        rng: np.random.Generator,
        colour: str,
        texture: str,
        size: float,
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        value: tuple[float, float] | None = None,
        shine: float | None = None,
    ) -> int:
        """Draw a material called ``colour`` with ``texture`` of grain ``size`` metres; returns its row."""
        first = self.draw(rng, colour, value)
        if texture in ("checkered", "striped", "dotted") and rng.random() < 0.35:
            second = self.draw(rng, pick(rng, COLOUR_NAMES), value)
        else:  # the same hue, darker or lighter: the caption's colour stays right
            factor = rng.uniform(0.45, 0.75) if rng.random() < 0.5 else rng.uniform(1.25, 1.6)
            second = [min(channel * factor + 0.02, 1.0) for channel in first]
        if texture == "brick":
            second = [min(channel * 0.5 + 0.35, 1.0) for channel in first]
        shine = float(rng.uniform(0, 0.5) * (rng.random() < 0.5)) if shine is None else shine
        # textures start at a random place: a face lying exactly on a cell's border would flicker
        shift = [place + step * size for place, step in zip(origin, rng.uniform(0.13, 0.87, 3), strict=True)]
        axis = int(rng.integers(3))
        kind = TEXTURES.index(texture)
        self.rows.append((kind, *first, *second, size, *shift, math.cos(yaw), math.sin(yaw), axis, shine))
        return len(self.rows) - 1

    def draw(self, rng: np.random.Generator, colour: str, value: tuple[float, float] | None = None) -> list[float]:
        """Linear RGB in [0, 1] of a colour with this name in this domain; ``value`` overrides its HSV value range."""
        hue, saturation, brightness = (rng.uniform(*span) for span in COLOURS[colour])
        if value is not None:
            brightness = rng.uniform(*value)
        saturation = min(saturation * rng.uniform(*self.domain.saturation), 1.0)
        brightness = min(brightness * rng.uniform(*self.domain.value), 1.0)
        return [channel**2.2 for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, brightness)]

    def table(self) -> np.ndarray:
        """(M, 15) float32: kind, first colour (3), second colour (3), size, origin (3), cos and sin of yaw, axis,
        shine."""
        return np.array(self.rows, np.float32)


def pick_texture(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A texture name drawn with ``weights``."""
    left = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return name


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of ``options``; ``rng.choice`` takes ten times as long, and a scene picks a hundred times."""
    return options[int(rng.integers(len(options)))]


def albedo(table: np.ndarray, material: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Linear RGB of surface ``points`` (N, 3; metres) made of ``material`` (N,) rows of ``table``; ``normals`` (N,
    3)."""
    first, change = table[:, 1:4], table[:, 4:7] - table[:, 1:4]
    kinds = table[:, 0].astype(int)[material]
    mix = np.zeros(len(points), np.float32)
    for kind in np.flatnonzero(np.bincount(kinds)):
        if kind > 0:
            here = np.flatnonzero(kinds == kind)
            mix[here] = _mix(int(kind), table[material[here]], points[here], normals[here])
    return first[material] + change[material] * mix[:, None]


def _mix(kind: int, rows: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    local = points - rows[:, 8:11]
    c, s = rows[:, 11], rows[:, 12]
    x, y, z = local[:, 0] * c + local[:, 1] * s, local[:, 1] * c - local[:, 0] * s, local[:, 2]
    size, axis = rows[:, 7], rows[:, 13].astype(int)
    place = np.stack([x, y, z], axis=1) / size[:, None]
    name = TEXTURES[kind]
    if name == "checkered":
        return (np.floor(place).sum(axis=1) % 2).astype(np.float32)
    if name == "striped":
        along = np.take_along_axis(place, axis[:, None], axis=1)[:, 0]
        return (along % 1.0 < 0.45).astype(np.float32)
    if name == "dotted":
        cell = place - np.floor(place) - 0.5
        flat = cell * (np.abs(normals) < 0.75)  # dots are discs on the surface, not balls it may miss
        return ((flat * flat).sum(axis=1) < 0.09).astype(np.float32)
    if name == "wooden":  # planks along x with a grain
        plank = np.floor(place[:, 1])
        tone = np.sin(plank * 12.9898 + np.floor(place[:, 2]) * 4.1) * 0.5 + 0.5
        grain = np.sin(place[:, 1] * 31 + 1.7 * np.sin(place[:, 0] * 2.1 + plank) + place[:, 2] * 23) * 0.5 + 0.5
        seam = (place[:, 1] - plank) < 0.04
        return np.clip(0.45 * tone + 0.3 * grain + 0.6 * seam, 0, 1).astype(np.float32)
    if name == "marbled":
        wave = sum(
            np.sin(f * (place @ direction) + shift) / f
            for f, direction, shift in zip((2.0, 4.3, 9.1), _DIRECTIONS, (0.3, 1.9, 4.4), strict=True)
        )
        return np.clip(0.5 + 0.6 * np.asarray(wave), 0, 1).astype(np.float32)
    # brick: rows in z on upright faces, in y on level ones
    level = np.abs(normals[:, 2]) > 0.7
    row, run = np.where(level, place[:, 1], place[:, 2]), np.where(level, place[:, 0], place[:, 0] + place[:, 1])
    course = np.floor(row * 2)
    across = run + 0.5 * (course % 2)
    mortar = ((row * 2 - course) < 0.14) | ((across - np.floor(across)) < 0.07)
    tone = np.sin(course * 7.3 + np.floor(across) * 3.1) * 0.12 + 0.12
    return np.where(mortar, 1.0, tone).astype(np.float32)


_DIRECTIONS = np.array([[1.0, 0.7, -0.4], [-0.5, 1.0, 0.8], [0.6, -0.3, 1.0]], np.float32)
