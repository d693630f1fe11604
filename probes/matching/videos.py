"""``label-propagation`` through videos, without training: a patch gets the labels of the patches of
other frames that look most like it.

The masks of a video's first frame are known. Each frame is labelled from the first and those before
it (Jabri et al. 2020; Caron et al. 2021). Scores are region similarity J and contour accuracy F
(Perazzi et al., CVPR 2016): of an object means over frames without the first and the last, as the
DAVIS challenge scores; main figure: their mean over objects."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cliptex_common.images import (
    open_image,
    palette,
    read_classes,
    spread_indices,
    to_rgb,
    write_grid,
)
from cliptex_common.metrics import contour_accuracy, region_similarity
from probes.base import Context, TaskResult, map_index
from probes.datasets.base import Sample
from probes.image_level.encode import Encode, ImageViews
from probes.matching.probe import LabelPropagationSettings, video
from probes.pictures import GALLERY_IMAGES, write_gallery

PATCHES = 1024  # of a frame that are labelled at once
VIDEOS = 6  # of the preview


@dataclass(frozen=True)
class Frame:
    """A frame of a video, and the objects in it: (H, W) uint8, 0 for background."""

    path: Path
    target: np.ndarray
    predicted: np.ndarray


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    videos = {name: list(frames) for name, frames in groupby(context.data.samples["val"], video_of)}
    stride = context.backbone.strides[map_index(context.settings, context.backbone)]
    context.progress.start("propagating masks", len(videos))
    maps = frame_maps(context, list(videos.values()))
    names, units, scores = [], [], []
    shown: dict[str, list[Frame]] = {}
    for name, samples in videos.items():
        targets = [read_masks(context.data.root / sample.target.path) for sample in samples]
        # ``maps`` goes through the frames of all videos: this takes those of one
        predicted = propagate_masks(
            islice(maps, len(samples)), targets[0], context.settings, stride
        )
        frames = [
            Frame(context.data.root / sample.image, *masks)
            for sample, *masks in zip(samples, targets, predicted, strict=True)
        ]
        for label in range(1, int(targets[0].max()) + 1):
            names.append(f"{name}/{label}")
            units.append(name)
            scores.append(score_object(frames[1:-1], label))
        shown[name] = [frames[0], frames[len(frames) // 2], frames[-2]]
        context.progress.advance()
    per_image = {"image": np.array(names), "unit": np.array(units)}
    per_image |= dict(zip(("J", "F"), np.array(scores).T, strict=True))
    return TaskResult(
        video(tuple(names), per_image).values(),
        per_image,
        preview=draw(context.work_dir / "preview.png", shown, names),
        notes=[f"{len(names)} objects in {len(videos)} videos"],
    )


def video_of(sample: Sample) -> str:
    """The name of a frame's video."""
    return Path(sample.image).parent.name


def read_masks(path: Path) -> np.ndarray:
    """The objects of a frame, (H, W) uint8; unknown pixels (255) are background."""
    masks = read_classes(path)
    return np.where(masks == 255, 0, masks).astype(np.uint8)


def score_object(frames: Sequence[Frame], label: int) -> tuple[float, float]:
    """J and F of an object, means over frames."""
    masks = [(frame.target == label, frame.predicted == label) for frame in frames]
    measures = region_similarity, contour_accuracy
    j, f = (float(np.mean([measure(*pair) for pair in masks])) for measure in measures)
    return j, f


class Frames(ImageViews):
    """Frames of videos, resized as the settings say."""

    def __init__(self, context: Context, paths: Sequence[Path], encode: Encode) -> None:
        settings, backbone = context.settings, context.backbone
        encoding = replace(settings.encoding(context.device.type), size=None)
        super().__init__(context, backbone, paths, encoding, encode=encode)
        short = settings.size or min(backbone.data.size)
        self.transform = partial(
            resize_frame, short=short, method=settings.resize, divisor=backbone.divisor
        )


def resize_frame(image: Image.Image, short: int, method: str, divisor: int) -> Tensor:
    """(3, H, W) uint8 of an RGB frame; see ``LabelPropagationSettings.resize``.

    Args:
        short: short side in pixels.
        divisor: of both sides.
    """
    sides = [math.ceil(short / divisor) * divisor]
    if method == "dinov3":
        long = max(image.size) * sides[0] / min(image.size)
    else:
        long = max(image.size) * short / min(image.size) // 64 * 64
    sides.append(math.ceil(long / divisor) * divisor)
    width, height = sides if image.height > image.width else reversed(sides)
    if method == "dinov3":
        pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    else:
        pixels = cv2.resize(np.asarray(image), (width, height))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def frame_maps(context: Context, videos: Sequence[Sequence[Sample]]) -> Iterator[Tensor]:
    """The unit features of each frame of all videos, (C, h, w) float32 on the device.

    Raises:
        NonFiniteLoss: a feature is not finite.
    """
    backbone, index = context.backbone, map_index(context.settings, context.backbone)

    def encode(pixels: Tensor) -> Tensor:
        return F.normalize(backbone(pixels)[index].float(), dim=1)

    paths = [context.data.root / sample.image for samples in videos for sample in samples]
    frames = Frames(context, paths, encode)
    batches, start = [], 0
    for samples in videos:
        end = start + len(samples)
        steps = range(start, end, frames.batch_size)
        batches += [range(step, min(step + frames.batch_size, end)) for step in steps]
        start = end
    for batch in frames.finite_tensors(batches):
        yield from batch


def propagate_masks(
    maps: Iterator[Tensor], first: np.ndarray, settings: LabelPropagationSettings, stride: int
) -> Iterator[np.ndarray]:
    """The objects in each frame of a video, (H, W) uint8, of which the ``first`` are known.

    Args:
        maps: unit features of each frame, (C, h, w).
        stride: pixels of the resized frame in a patch.
    """
    features = next(maps)
    height, width = features.shape[1:]
    small = Image.fromarray(first).resize((width, height), Image.Resampling.NEAREST)
    one_hot = F.one_hot(torch.tensor(np.array(small)).long(), int(first.max()) + 1)
    first_frame = features, one_hot.permute(2, 0, 1).float().to(features.device)
    previous: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.previous_frames)
    yield first
    for current in maps:
        features, shares = (torch.stack(each) for each in zip(first_frame, *previous, strict=True))
        labels = propagate(current, features, shares, settings)
        previous.append((current, labels))
        yield best_labels(labels, first.shape, stride, settings.upsampling)


def propagate(
    current: Tensor, features: Tensor, labels: Tensor, settings: LabelPropagationSettings
) -> Tensor:
    """The labels of a frame, from those of T other frames.

    Args:
        current: (C, h, w) unit features of the frame.
        features: (T, C, h, w) unit features of the others.
        labels: (T, M, h, w) shares of each object in a patch of the others.

    Returns:
        (M, h, w) shares; all patches that are as near as the last of the neighbours count.
    """
    grid, device = current.shape[1:], current.device
    keys, values = features.flatten(2), labels.transpose(0, 1).flatten(1).T
    queries, neighbours = current.flatten(1).T, min(settings.neighbours, len(values))
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    positions = torch.cartesian_prod(rows, columns)
    order = 2 if settings.neighbourhood == "circle" else math.inf
    parts = []
    for part, centres in zip(queries.split(PATCHES), positions.split(PATCHES), strict=True):
        offsets = centres[:, None] - positions
        is_far = torch.linalg.vector_norm(offsets, ord=order, dim=2) > settings.radius
        similarity = (part @ keys).masked_fill(is_far, -math.inf)
        similarity = similarity.transpose(0, 1).flatten(1)
        least = similarity.topk(neighbours).values[:, -1:]
        similarity = similarity.masked_fill(similarity < least, -math.inf)
        parts.append((similarity / settings.temperature).softmax(dim=1) @ values)
    return torch.cat(parts).T.unflatten(1, grid)


def best_labels(labels: Tensor, size: Sequence[int], stride: int, upsampling: str) -> np.ndarray:
    """The object of each pixel, (H, W) uint8: the one with the highest share, after the shares (M,
    h, w) of each object are scaled to [0, 1] over the frame.

    Args:
        size: height and width.
        stride: see ``propagate_masks``.
    """
    if upsampling == "bilinear":
        labels = F.interpolate(
            labels[None], scale_factor=stride, mode="bilinear", align_corners=False
        )[0]
    low, high = labels.amin(dim=(1, 2), keepdim=True), labels.amax(dim=(1, 2), keepdim=True)
    best = torch.where(high > low, (labels - low) / (high - low), labels).argmax(dim=0)
    if upsampling == "nearest":
        best = F.interpolate(best[None, None].float(), tuple(size), mode="nearest")[0, 0]
    image = Image.fromarray(best.byte().cpu().numpy())
    return np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))


def draw(path: Path, videos: dict[str, list[Frame]], objects: Sequence[str]) -> Path:
    """Write the preview, three frames of some videos, and a gallery with one frame of each object;
    the path of the preview."""
    rows, captions = [], [list(videos)[index] for index in spread_indices(len(videos), VIDEOS)]
    for name in captions:
        first, *later = videos[name]
        row = [overlay(first.path, first.target)]
        for frame in later:
            row += [overlay(frame.path, frame.target), overlay(frame.path, frame.predicted)]
        rows.append(row)
    gallery = []
    for index in spread_indices(len(objects), GALLERY_IMAGES):
        name, _, label = objects[index].rpartition("/")
        frame = videos[name][1]
        masks = {"image": 0 * frame.target, "truth": frame.target, "prediction": frame.predicted}
        pictures = {
            role: overlay(frame.path, np.where(mask == int(label), mask, 0))
            for role, mask in masks.items()
        }
        gallery.append((objects[index], pictures))
    write_gallery(path.parent, gallery)
    titles = ["first frame (known)", "middle frame", "predicted", "last scored frame", "predicted"]
    return write_grid(path, titles, rows, captions)


def overlay(path: Path, masks: np.ndarray) -> np.ndarray:
    """A frame with its objects in colours, (H, W, 3) uint8."""
    with open_image(path) as image:
        pixels = np.asarray(to_rgb(image))
    colours = palette(256)[masks]
    return np.where(masks[..., None] > 0, pixels // 2 + colours // 2, pixels)
