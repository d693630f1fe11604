"""Rendering: RGB with soft shadows and textures, and ground truth at pixel centres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmark.mini.materials import albedo
from benchmark.mini.rays import dot
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES

IGNORE = 255
SAMPLES = 3  # a pixel


@dataclass(frozen=True)
class GroundTruth:
    """Labels of pixel centres.

    Attributes:
        instance: (H, W) uint8; 0 for the background, k for ``scene.objects[k - 1]``.
        semantic: (H, W) uint8; 0, 1 + index in ``CLASSES``, or 255 for objects too small to name.
        depth: (H, W) float32, z-depth in metres; 0 if nothing was hit.
        normals: (H, W, 3) float32, unit, x right, y up, z towards the camera; 0 if nothing was hit.
        too_small: instances that are 255 in ``semantic``.
    """

    instance: np.ndarray
    semantic: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    too_small: tuple[int, ...]


def render_ground_truth(scene: Scene, size: int) -> GroundTruth:
    """Cast one ray through the centre of each of ``size`` × ``size`` pixels."""
    directions = scene.camera.directions(_plane(size, np.full((size * size, 2), 0.5)))
    triangle, depth = scene.rays.first_hit(scene.camera.position, directions)
    missed = triangle < 0
    normal = scene.rays.normals[triangle]
    facing = np.where(dot(normal, directions) > 0, -1.0, 1.0)
    normals = (normal * facing[:, None]) @ scene.camera.axes.T
    normals[missed], depth[missed] = 0, 0
    instance = np.where(missed, 0, scene.owner[triangle]).astype(np.uint8).reshape(size, size)
    ids = np.array([0] + [1 + CLASSES.index(placed.name) for placed in scene.objects], np.uint8)
    pixels = np.bincount(instance.ravel(), minlength=len(ids))
    too_small = tuple(k for k in range(1, len(ids)) if 0 < pixels[k] < smallest_area(size))
    ids[list(too_small)] = IGNORE
    depth, normals = depth.astype(np.float32), normals.astype(np.float32)
    return GroundTruth(
        instance,
        ids[instance],
        depth.reshape(size, size),
        normals.reshape(size, size, 3),
        too_small,
    )


def smallest_area(size: int) -> int:
    """Pixels below which an object cannot be named: 12 in a picture of 64 × 64."""
    return max(1, round(12 * (size / 64) ** 2))


def render_image(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """RGB (H, W, 3) uint8: three jittered samples a pixel, with shadow and occlusion rays."""
    cell = np.array([[1, 0], [0, 1], [2, 2]], np.float32)[
        :, None
    ]  # of a 3 × 3 grid: one in each row and column
    samples = ((cell + rng.random((SAMPLES, size * size, 2), np.float32)) / np.float32(3)).reshape(
        -1, 2
    )
    directions = scene.camera.directions(_plane(size, samples, repeat=SAMPLES))
    triangle, depth = scene.rays.first_hit(scene.camera.position, directions)
    light = _shade(scene, triangle, directions, depth, rng)
    light[triangle < 0] = 0
    picture = light.reshape(SAMPLES, size, size, 3).mean(axis=0)
    picture = picture / (1 + 0.25 * picture)  # highlights roll off instead of clipping
    picture = np.clip(picture * 1.15, 0, 1) ** (1 / 2.2) * 255
    picture += rng.standard_normal(picture.shape, np.float32) * rng.uniform(*scene.domain.noise)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _plane(size: int, inside: np.ndarray, repeat: int = 1) -> np.ndarray:
    """Image-plane points (N, 2) in [-1, 1] of all pixels, row by row from the top.

    ``inside`` (N, 2) are the positions within the pixels, from 0 to 1.
    """
    points = np.tile(_pixels(size, inside.dtype), (repeat, 1)) + inside * inside.dtype.type(
        2 / size
    )
    return points * np.array([1, -1], inside.dtype)


@cache
def _pixels(size: int, dtype: np.dtype) -> np.ndarray:
    column, row = np.meshgrid(np.arange(size), np.arange(size))
    return (np.stack([column, row], axis=-1).reshape(-1, 2) * 2 / size - 1).astype(dtype)


def _shade(
    scene: Scene,
    triangle: np.ndarray,
    directions: np.ndarray,
    depth: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Linear RGB (N, 3), float32: Blinn-Phong with a main light and a weak one.

    The main light has a jittered shadow ray, the ambient light an occlusion ray.
    """
    count = len(triangle)
    normals = scene.rays.normals32[triangle]
    normals *= np.where(dot(normals, directions) > 0, np.float32(-1), np.float32(1))[:, None]
    points = scene.camera.position.astype(np.float32) + directions * depth[:, None]
    material = scene.material[triangle]
    colour = albedo(scene.materials, material, points, normals)
    main, fill = scene.lights
    lifted = points + normals * np.float32(2e-4 * main.reach)

    around = normals + _unit_vectors(count, rng) * np.float32(0.98)  # cosine-weighted
    occluded = scene.rays.blocked(lifted, around, np.full(count, 0.2 * main.reach, np.float32))
    total = (
        scene.ambient
        * (1 - np.float32(0.5) * occluded)
        * (np.float32(0.85) + np.float32(0.15) * normals[:, 2])
    )
    total = total[:, None].astype(np.float32)

    towards = fill.position - points
    squared = dot(towards, towards)
    strength = np.clip(dot(towards, normals), 0, None) / np.sqrt(squared) * fill.fall(squared)
    total = total + strength[:, None] * fill.colour

    towards = main.position + _unit_vectors(count, rng) * np.float32(main.radius) - lifted
    squared = dot(towards, towards)
    cosine = dot(towards, normals) / np.sqrt(squared)
    shadow = (cosine <= 0) | scene.rays.blocked(lifted, towards, np.ones(count, np.float32))
    strength = np.where(shadow, np.float32(0), main.fall(squared))
    total += (strength * cosine)[:, None] * main.colour
    total *= colour

    shine = scene.materials[:, 14][material]
    glossy = np.flatnonzero((shine > 0) & ~shadow)
    view = -directions[glossy]
    half = (
        view / np.sqrt(dot(view, view))[:, None]
        + towards[glossy] / np.sqrt(squared[glossy])[:, None]
    )
    lobe = np.clip(dot(half, normals[glossy]), 0, None) / np.sqrt(dot(half, half))
    total[glossy] += (np.float32(0.6) * strength[glossy] * shine[glossy] * lobe**24)[
        :, None
    ] * main.colour
    return total


def _unit_vectors(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random directions (count, 3) float32; the ``SAMPLES`` of a pixel are 109° apart."""
    pixels = count // SAMPLES
    vectors = _TABLE[rng.integers(0, len(_TABLE), pixels, dtype=np.uint16)]
    return (_SIGNS[:, None] * vectors).reshape(count, 3)


_SIGNS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1]], np.float32)
# a fixed table entered at random places costs a tenth of fresh normal deviates
_TABLE = np.random.default_rng(0).standard_normal((8192, 3)).astype(np.float32)
_TABLE /= np.linalg.norm(_TABLE, axis=1, keepdims=True)
