"""Rendering: a picture with textures, light and shadow, and its exact ground truth."""

from random import Random
from typing import NamedTuple

import numpy as np

from benchmark.mini.scene import TEXTURES, Scene
from benchmark.mini.shapes import CLASSES
from benchmark.mini.solids import dot, plane

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
