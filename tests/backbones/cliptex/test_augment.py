"""Image and labels move together; normals keep their meaning, checked against a plane rendered from
its equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from backbones.cliptex.batches import centre_geometry, crop_images, random_geometry
from backbones.cliptex.targets import (
    IGNORE,
    Geometry,
    warp_classes,
    warp_depth,
    warp_images,
    warp_normals,
)


def geometry(box=(0.5, 0.5, 1.0, 1.0), flip=False) -> Geometry:
    return Geometry(torch.tensor([box]), torch.tensor([flip]))


def test_ignored_and_unknown_stay_so():
    classes, depth = torch.tensor([[0, 255], [7, 0]]), torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    expected = torch.tensor([[0, IGNORE], [7, 0]])
    assert torch.equal(warp_classes([classes], geometry(), 2)[0], expected)
    assert torch.equal(warp_depth([depth], geometry(), 2)[0].isnan(), depth.isnan())


def plane_depth(normal: np.ndarray, size: int) -> np.ndarray:
    """Depth (growing away from the camera) of an orthographic view of a plane through the origin,
    in pixels; its normal has the axes of ``augment.AXES``: x right, y up, z towards the camera."""
    down, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return (normal[0] * x - normal[1] * down) / normal[2]


def normal_of(depth: torch.Tensor) -> np.ndarray:
    """The normal that a plane's depth map implies, from its slope."""
    inner = depth[8:-8, 8:-8].numpy()
    right, down = np.diff(inner, axis=1).mean(), np.diff(inner, axis=0).mean()
    normal = np.array([right, -down, 1.0])
    return normal / np.linalg.norm(normal)


@settings(max_examples=40)
@given(
    flip=st.booleans(),
    slope=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    zoom=st.sampled_from([1.0, 0.5]),
)
def test_normals_follow_the_plane(flip, slope, zoom):
    """Warp the depth of a plane, read the normal off the warped depth, and compare with the warped
    normal."""
    size, augmentation = 64, geometry((0.5, 0.5, zoom, zoom), flip)
    normal = np.array([*slope, 1.0]) / np.linalg.norm([*slope, 1.0])
    depth = torch.from_numpy(plane_depth(normal, size)).float()
    # depth measured in output pixels: a crop enlarges the picture, and the plane's depth with it
    implied = normal_of(warp_images(depth[None, None], augmentation, size)[0, 0] / zoom)
    normals = torch.from_numpy(normal).float().view(1, 3, 1, 1).expand(1, 3, size, size)
    moved = warp_normals(normals, augmentation, size)[0, :, size // 2, size // 2].numpy()
    assert np.degrees(np.arccos(np.clip(implied @ moved, -1, 1))) < 0.5


@given(
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    seed=st.integers(0, 9),
    low=st.floats(0.1, 1),
    epoch=st.integers(0, 3),
)
def test_random_crops_are_square_and_inside(size, seed, low, epoch):
    crops = random_geometry(range(20), [size] * 20, seed=seed, epoch=epoch, scale=(low, 1.0))
    x, y, w, h = crops.box.numpy().T.astype(np.float64)
    assert np.allclose(w * size[1], h * size[0], rtol=1e-4)
    assert (x - w / 2 > -1e-5).all() and (x + w / 2 < 1 + 1e-5).all()
    assert (y - h / 2 > -1e-5).all() and (y + h / 2 < 1 + 1e-5).all()
    area = (w * size[1]) ** 2 / min(size) ** 2
    assert (area > low - 1e-4).all() and (area < 1 + 1e-4).all()


def test_an_augmentation_depends_on_the_pair_not_on_its_batch():
    batch = random_geometry([5, 9, 2], [(32, 48)] * 3, seed=1, epoch=4)
    alone = random_geometry([2], [(32, 48)], seed=1, epoch=4)
    assert torch.equal(batch[2:3].box, alone.box) and torch.equal(batch.flip[2:], alone.flip)
    next_epoch = random_geometry([2], [(32, 48)], seed=1, epoch=5)
    assert not torch.equal(next_epoch.box, alone.box)
    flips = random_geometry(range(2000), [(8, 8)] * 2000, seed=0, epoch=0).flip.float().mean()
    assert flips == pytest.approx(0.5, abs=0.05)


def test_a_crop_is_resampled_once_as_the_probes_do_it():
    """The whole square of a photograph is what torchvision's resize and centre crop give."""
    image = np.random.default_rng(0).integers(0, 256, (300, 470, 3), np.uint8)
    ours, squashed = (
        crop_images([image], centre_geometry([(300, 470)], squash=squash), 64)
        for squash in (False, True)
    )
    resize = v2.Resize(64, v2.InterpolationMode.BICUBIC, antialias=True)
    theirs = v2.PILToTensor()(v2.CenterCrop(64)(resize(Image.fromarray(image))))
    assert (ours[0].int() - theirs.int()).abs().float().mean() < 3
    assert squashed.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_flips_agree_with_those_of_labels(flip):
    image = np.full((60, 90, 3), 20, np.uint8)
    image[10:30, 50:70] = 220
    labels = torch.from_numpy((image[..., 0] > 100).astype(np.int16))
    augmentation = geometry((0.6, 0.4, 0.5, 0.75), flip)
    bright = crop_images([image], augmentation, 48)[0, 0] > 120
    assert (bright == (warp_classes([labels], augmentation, 48)[0] == 1)).float().mean() > 0.97
