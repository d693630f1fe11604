"""Small copies of DAVIS, NAVI and ScanNet in their official layouts, made of photographs, so that
the truth is exact; and a backbone to which every patch looks different."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from tests.probes.datasets.make import save, write_lines
from tests.probes.whole_images import Colours

Scene = tuple[np.ndarray, np.ndarray]  # a photograph, and its objects (H, W) uint8


class Patches(Colours):
    """Its features are random projections of patches of 16 pixels."""

    channels, strides, divisor = (32,), (16,), 16

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(7)
        kernels = torch.randn(32, 3, 16, 16, generator=generator).to(images.device)
        return (torch.nn.functional.conv2d(images, kernels, stride=16),)


def noisy_scene(seed: int, size: tuple[int, int] = (96, 192)) -> Scene:
    """A photograph, every patch of which looks different, with two objects."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8))
    objects = np.zeros(size, np.uint8)
    objects[32:64, 48:80], objects[32:80, 96:112] = 1, 2
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.NEAREST)), objects


def make_davis(
    root: Path,
    scenes: Mapping[str, Scene] | None = None,
    frames: int = 5,
    step: int = 16,
    size: tuple[int, int] = (80, 128),
) -> Path:
    """Videos are crops of ``size`` (height, width) that move over photographs, ``step`` pixels a
    frame, to the right."""
    scenes = scenes or {f"video{number}": noisy_scene(number) for number in range(2)}
    for name, scene in scenes.items():
        for number in range(frames):
            left = number * step
            photo, objects = (each[: size[0], left : left + size[1]] for each in scene)
            file = f"480p/{name}/{number:05}"
            save(root / f"JPEGImages/{file}.jpg", photo, quality=97, subsampling=0)
            save(root / f"Annotations/{file}.png", objects)
    for split in ("train", "val"):
        write_lines(root / f"ImageSets/2017/{split}.txt", scenes)
    return root


def make_voc_objects(root: Path, year: int = 2012) -> Path:
    """Three images of VOC with an object each, in a corner and over the patches of a backbone, or
    between them; the masks have a band of unknown pixels around it."""
    names = []
    for number, (top, left, height, width) in enumerate(
        [(0, 0, 48, 64), (40, 24, 30, 52), (8, 50, 64, 40)]
    ):
        name, photo, mask = f"2007_{number:06}", *noisy_scene(number, (96, 128))
        photo, mask = photo // 8, 0 * mask
        inside = slice(top, top + height), slice(left, left + width)
        mask[inside] = 255
        mask[top + 2 : top + height - 2, left + 2 : left + width - 2] = number + 1
        photo[inside] = [250, 230, 20]
        save(root / f"JPEGImages/{name}.jpg", photo, quality=95)
        save(root / f"SegmentationClass/{name}.png", mask)
        edges = zip(("xmin", "ymin", "xmax", "ymax"), _ends(inside), strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in edges)
        part = "<part><bndbox><xmin>1</xmin></bndbox></part>"
        line = f"<object><name>dog</name><bndbox>{box}</bndbox>{part}</object>"
        write_lines(root / f"Annotations/{name}.xml", [f"<annotation>{line}</annotation>"])
        names.append(name)
    for file in ("Segmentation/val", "Main/trainval"):
        write_lines(root / f"ImageSets/{file}.txt", names)
    return root


def _ends(inside: tuple[slice, slice]) -> list[int]:
    """Left, top, right, bottom as VOC counts them: from 1, both ends included."""
    rows, columns = inside
    return [columns.start + 1, rows.start + 1, columns.stop, rows.stop]


def make_navi(
    root: Path,
    objects: Mapping[str, Scene] | None = None,
    angles: Sequence[float] = (0, 20, 45, 80, 100, 350),
    listed: Sequence[tuple[int, int]] = ((0, 1), (2, 4)),
) -> Path:
    """Views of flat objects half a metre away, by a camera that rolls by ``angles`` degrees.

    Args:
        objects: name → a square photograph, and where the object is.
        listed: views of the pairs that the dataset lists.
    """
    objects = objects or {
        name: tuple(np.ascontiguousarray(part[:96, 30:126]) for part in noisy_scene(seed))
        for seed, name in enumerate(("bottle", "keyboard"))
    }
    lines = []
    for name, (photo, mask) in objects.items():
        side, entries = len(photo), []
        for number, angle in enumerate(np.deg2rad(angles)):
            cosine, sine = np.cos(angle), np.sin(angle)
            turn, centre = np.array([[cosine, -sine], [sine, cosine]]), np.full(2, (side - 1) / 2)
            affine = np.column_stack([turn, centre - turn @ centre])
            turned = cv2.warpAffine(photo, affine, (side, side))
            inside = cv2.warpAffine(mask, affine, (side, side), flags=cv2.INTER_NEAREST) > 0
            depth = np.where(inside, round(655350 / 500), 0).astype(np.uint16)
            save(root / f"{name}/wild_set/images/{number:03}.jpg", turned, quality=95)
            save(root / f"{name}/wild_set/depth/{number:03}.png", depth)
            camera = {"q": [np.cos(angle / 2), 0, 0, np.sin(angle / 2)], "t": [0, 0, 500]}
            camera["focal_length"] = 2.0 * side
            file = f"{number:03}.jpg"
            entries.append({"filename": file, "image_size": [side, side], "camera": camera})
        for folder, content in (("wild_set", entries), ("multiview_00_test", [])):
            (root / name / folder / "images").mkdir(parents=True, exist_ok=True)
            (root / name / folder / "annotations.json").write_text(json.dumps(content))
        path = f"{name}/wild_set/images"
        lines += [f"{path}/{a:03}.jpg {path}/{b:03}.jpg 1.5" for a, b in listed]
    folder = root / "custom_splits/pairwise_pixel_correspondences"
    write_lines(folder / "pairs-wild_set.txt", lines)
    return root


def make_poses(root: Path, views: int = 24) -> Path:
    """Views of two objects of NAVI, each of a colour of its own, by cameras that turn about an axis
    by steps of 11 degrees; every fourth one is of val."""
    for number, name in enumerate(("bottle", "keyboard")):
        folder, entries = root / name / "multiview_00_phone", []
        for view in range(views):
            half, file = np.deg2rad(5.5 * view), f"{view:03}.jpg"
            photo = np.full((32, 40, 3), (10 * view, 200 * number, 255 - 10 * view), np.uint8)
            save(folder / "images" / file, photo, quality=95)
            camera = {"q": [np.cos(half), 0, np.sin(half), 0], "t": [10 * view, 0, 500]}
            split = "train" if view % 4 else "val"
            entries.append({"filename": file, "split": split, "camera": camera})
        (folder / "annotations.json").write_text(json.dumps(entries))
    return root


def make_scannet(
    root: Path,
    frames: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    angles: Sequence[float] = (0, 5, 20),
) -> Path:
    """Rooms in which a camera turns to the right by ``angles`` degrees.

    Args:
        frames: of each room an image (480, 640, 3) uint8 and its depth (480, 640) in metres.
    """
    if frames is None:
        depth = np.linspace(1, 3, 480 * 640).reshape(480, 640)
        photo = Image.fromarray(noisy_scene(0, (48, 64))[0])
        frames = [(np.asarray(photo.resize((640, 480), Image.Resampling.NEAREST)), depth)]
    camera = np.array([[580.0, 0, 320], [0, 580, 240], [0, 0, 1]])
    y, x = np.mgrid[:480, :640] + 0.5
    pixels = np.stack([x, y, np.ones_like(x)])
    pairs = []
    for room, (photo, depth) in enumerate(frames):
        scene = root / f"scene{707 + room:04}_00"
        for number, angle in enumerate(np.deg2rad(angles)):
            cosine, sine = np.cos(angle), np.sin(angle)
            turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])  # camera to world
            rays = np.tensordot(turn @ np.linalg.inv(camera), pixels, axes=1)
            seen = np.tensordot(camera, rays, axes=1)
            at = [(seen[axis] / seen[2] - 0.5).astype(np.float32) for axis in (0, 1)]
            # depth is along the first camera's axis, which is the world's
            metres = cv2.remap(depth.astype(np.float32), *at, cv2.INTER_NEAREST) / rays[2]
            save(scene / f"color/{15 * number}.jpg", cv2.remap(photo, *at, cv2.INTER_LINEAR))
            save(scene / f"depth/{15 * number}.png", (1000 * metres).round().astype(np.uint16))
            (scene / "pose").mkdir(exist_ok=True)
            pose = np.block([[turn, np.zeros((3, 1))], [0, 0, 0, 1]])
            np.savetxt(scene / f"pose/{15 * number}.txt", pose)
        pairs += [[707 + room, 0, 0, 15 * number] for number in range(1, len(angles))]
    np.savez(root / "test.npz", name=np.array(pairs))
    scenes = [f"scene{707 + room:04}_00" for room in range(len(frames))]
    np.savez(root / "intrinsics.npz", **dict.fromkeys(scenes, camera))
    return root
