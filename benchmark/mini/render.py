"""Rendering: a picture with textures, light and shadow, and its exact ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from benchmark.mini.materials import albedo
from benchmark.mini.scene import Scene, make_scene
from benchmark.mini.shapes import CLASSES
from benchmark.mini.solids import apply, dot

IGNORE = 255
NOISE_DEVIATION = 104.5  # of the sum of two uniform bytes


@dataclass(frozen=True)
class GroundTruth:
    """Labels of pixel centres.

    Attributes:
        instance: (H, W) uint8; 0 for the background, k for ``scene.objects[k - 1]``.
        semantic: (H, W) uint8; 0, 1 + index in ``CLASSES``, or 255 for objects too small to name.
        depth: (H, W) float32, z-depth in metres.
        normals: (H, W, 3) float32, unit, x right, y up, z towards the camera.
        too_small: instances that are 255 in ``semantic``.
    """

    instance: np.ndarray
    semantic: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    too_small: tuple[int, ...]


def draw_picture(
    rng: Random, domain: str, size: int, subject: str | None = None
) -> tuple[Scene, np.ndarray, GroundTruth]:
    """Draw scenes until one shows its subject; returns it, its picture and its ground truth."""
    while True:
        scene = make_scene(rng, domain, subject)
        solid, depth = scene.bodies.first_hits(scene.camera, size)
        body = scene.bodies.body[solid]
        share = np.bincount(body.ravel(), minlength=3)[1 : len(scene.objects) + 1] / body.size
        next_share = share[1:].max(initial=0.0)
        if (
            share[0] > max(0.1, 2 * next_share)
            if subject
            else 0.03 < max(share[0], next_share) < 0.7
        ):
            return scene, *render(scene, solid, depth, rng)


def smallest_area(size: int) -> int:
    """Pixels below which an object cannot be named: 12 in a picture of 64 × 64."""
    return max(1, round(12 * (size / 64) ** 2))


def render(
    scene: Scene, solid: np.ndarray, depth: np.ndarray, rng: Random
) -> tuple[np.ndarray, GroundTruth]:
    """The picture (H, W, 3) uint8 and the ground truth of what ``first_hits`` gave."""
    size, bodies, shown = len(solid), scene.bodies, solid.ravel()
    rays = scene.camera.rays(size)
    points = scene.camera.position[:, None] + rays * depth.ravel()
    position, own_normals, normals = bodies.surface(shown, points)
    rows = bodies.slot[shown]
    level = (shown == 0) & (np.abs(own_normals[2]) > 0.5)
    rows[level] = np.where(own_normals[2, level] > 0, 1, 2)  # floor and ceiling
    colour = albedo(scene.materials.astype(np.float32), rows, position, own_normals)
    colour *= _light(scene, points, normals, rays.astype(np.float32))

    picture = colour / (1 + 0.25 * colour)  # highlights roll off instead of clipping
    picture = np.sqrt(np.minimum(picture * 1.15, 1)).T.reshape(size, size, 3) * 255
    noise = np.frombuffer(rng.randbytes(2 * picture.size), np.uint8).astype(np.float32)
    noise = noise.reshape(2, *picture.shape)
    picture += (noise[0] + noise[1] - 255) * (rng.uniform(*scene.domain.noise) / NOISE_DEVIATION)
    picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    body = bodies.body[solid]
    instance = np.where(body > len(scene.objects), 0, body).astype(np.uint8)
    ids = np.array([0] + [1 + CLASSES.index(placed.name) for placed in scene.objects], np.uint8)
    pixels = np.bincount(instance.ravel(), minlength=len(ids))
    too_small = tuple(k for k in range(1, len(ids)) if 0 < pixels[k] < smallest_area(size))
    ids[list(too_small)] = IGNORE
    seen = apply(scene.camera.axes[:, :, None], normals).T.reshape(size, size, 3)
    depth, seen = depth.astype(np.float32), seen.astype(np.float32)
    return picture, GroundTruth(instance, ids[instance], depth, seen, too_small)


def _light(scene: Scene, points: np.ndarray, normals: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Linear RGB of light (3, N) float32 that falls on ``points`` (3, N): from a light that casts
    shadows, from everywhere, and a little from the camera."""
    towards = (scene.light[:, None] - points).astype(np.float32)
    squared = dot(towards, towards)
    cosine = dot(towards, normals) / np.sqrt(squared)
    lit = np.flatnonzero(cosine > 0)
    lit = lit[~scene.bodies.shaded(points[:, lit], scene.light)]
    reach, strength = scene.reach * scene.reach, np.zeros(len(cosine), np.float32)
    # softer than the inverse square
    strength[lit] = reach * cosine[lit] / (0.35 * reach + 0.65 * squared[lit])
    facing = -dot(rays, normals) / np.sqrt(dot(rays, rays))
    everywhere = scene.ambient * (0.8 + 0.2 * normals[2]) + 0.15 * facing
    return everywhere + strength * scene.light_colour.astype(np.float32)[:, None]
