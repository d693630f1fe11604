"""Samples of a task as its probe sees them, after its transforms at train and at val, with their
ground truth drawn: what ``data show`` puts on a page.

There is no backbone. Sizes that follow from one are those of the settings, else 224 pixels, and are
not rounded to its patches; padding has ImageNet's mean colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from cliptex_common.errors import UserError, first_line
from cliptex_common.files import derive_seed
from cliptex_common.images import (
    IMAGE_ERRORS,
    blended,
    class_legend,
    depth_picture,
    hatched,
    instance_mask,
    join_points,
    label_picture,
    open_image,
    palette,
    read_classes,
    read_instances,
    scale_bar,
    spread_indices,
    to_rgb,
)
from probes.base import Probe
from probes.datasets.base import DatasetSpec, Sample, Split, require_file
from probes.datasets.ground_truth import LabelSet, ground_truth
from probes.dense.settings import bounds_scored
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import image_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
PADDING = tuple(255 * value for value in MEAN)
SIDE = 224  # of images whose size is the backbone's own, pixels
LINES = 24  # of a pair of views
SAME_POINT = 0.05  # metres between points of two views that are drawn as one
COLOURS = palette(256)
T = TypeVar("T")


@dataclass(frozen=True)
class DrawnSample:
    """A sample.

    Attributes:
        text: what its ground truth says.
        panels: title → (H, W, 3) uint8 RGB.
    """

    name: str
    text: str
    panels: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DrawnSplit:
    """Samples of a split.

    Attributes:
        legend: (h, w, 3) uint8; None where texts say it.
        steps: names of the transforms, where they are a pipeline.
    """

    samples: Sequence[DrawnSample]
    legend: np.ndarray | None = None
    steps: Sequence[str] = ()


@dataclass(frozen=True)
class SampleRequest:
    """Which samples are drawn.

    Attributes:
        spec: of the copy at ``root``, see ``DatasetSpec.at``.
        settings: of the ``probe``.
        count: of samples, evenly spaced.
    """

    spec: DatasetSpec
    root: Path
    probe: Probe
    settings: Any
    split: Split
    count: int
    samples: Sequence[Sample] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", self.spec.list_samples(self.root, self.split))

    def spread(self, items: Sequence[T]) -> list[T]:
        """The items that are drawn."""
        return [items[index] for index in spread_indices(len(items), self.count)]

    def photo(self, name: str) -> Image.Image:
        """An image as it is stored."""
        with open_image(image_source(self.root / name)) as image:
            return to_rgb(image)


def draw_samples(request: SampleRequest) -> DrawnSplit:
    """Draw samples of a split.

    Raises:
        UserError: the split has no sample, or one of these cannot be read.
    """
    kind = request.spec.kind
    draw = draw_dense if kind in DENSE_TASKS else DRAWERS.get(kind, draw_whole)
    try:
        result = draw(request)
    except UserError:
        raise
    except IMAGE_ERRORS as error:
        reason = f"{first_line(error)}; `data check --full` names every file"
        raise UserError(f"{request.spec.name}: a sample cannot be read ({reason})") from error
    if not result.samples:
        raise UserError(f"{request.spec.name} has nothing to draw in {request.split}")
    return result


def transformed(pipeline: Callable[[Any], T], name: str, item: Any) -> T:
    """The result of random transforms, the same in every run."""
    from cliptex_common.device import isolated_rng

    with isolated_rng(derive_seed("shown sample", name)):
        return pipeline(item)


def as_picture(pixels: Any) -> np.ndarray:
    """A tensor (3, H, W) of values 0–255 → (H, W, 3) uint8."""
    return pixels.permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)


def draw_dense(request: SampleRequest) -> DrawnSplit:
    """Images, maps, and the maps over the images; pixels that do not count are hatched."""
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    spec, split = request.spec, request.split
    classes = spec.class_names(request.root)
    steps = dense_steps(request)
    with DefaultScope.overwrite_default_scope("mmseg"):
        pipeline = Compose(steps)
    task = DENSE_TASKS.find(spec.kind)
    options = dict(task.evaluator(request.settings, spec))
    if options.pop("type") == "TaskScores":
        options.pop("task")
        task = task.bound(classes=classes, **options)
    crop = options.get("crop") if split == "val" else None
    loaded: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for sample in request.spread(request.samples):
        info = {
            "img_path": str(request.root / sample.image),
            "target_path": str(request.root / sample.target),
            "image": sample.image,
            "seg_fields": ["gt_seg_map"],
        }
        packed = transformed(pipeline, sample.image, info)
        about = packed["data_samples"]
        target = about.get(f"gt_{task.field}").data.numpy()
        counted = task.counted(target)
        if crop:
            top, bottom, left, right = bounds_scored(tuple(crop), *counted.shape)
            inside = counted[top:bottom, left:right].copy()
            counted[:] = False
            counted[top:bottom, left:right] = inside
        if split == "val" and (area := about.metainfo.get("area")):
            # the ground truth is complete, and the image a part of it
            region = slice(*area[:2]), slice(*area[2:])
            target, counted = target[:, *region], counted[region]
        image = as_picture(packed["inputs"])
        loaded[sample.image] = image, target, counted
    draw, legend = task.drawing(classes, [target for _, target, _ in loaded.values()])
    if spec.kind in ("depth", "depth-order"):  # over what counts, so that a wrong scale is seen
        bounds = spec.extra["min_depth"], spec.extra["max_depth"]
        draw, legend = lambda maps: depth_picture(maps[0], *bounds), scale_bar(*bounds)
    elif task.has_classes:
        labels = [target[0, counted] for _, target, counted in loaded.values()]
        present = np.unique(np.concatenate(labels))
        names = [classes[label] for label in present]
        legend = class_legend(names, palette(len(classes))[present], width=780)
    samples = []
    for name, (image, target, counted) in loaded.items():
        photo = np.asarray(Image.fromarray(image).resize(counted.shape[::-1]))
        drawing = draw(target)
        panels = {
            "image": image,
            "ground truth": hatched(drawing, ~counted),
            "both": blended(photo, drawing, counted),
        }
        text = f"{task.described(target)}; {100 * (1 - counted.mean()):.3g} % do not count"
        samples.append(DrawnSample(name, text, panels))
    return DrawnSplit(samples, legend, [part["type"] for part in steps])


def dense_steps(request: SampleRequest) -> list[dict[str, Any]]:
    """The pipeline of a dense probe, or of one on patches."""
    from probes.dense.pipelines import LOAD, complete_pipelines, ground_truth_config, resize_step
    from probes.dense.probe import DenseProbe

    spec, probe, settings = request.spec, request.probe, request.settings
    classes = len(spec.class_names(request.root))
    if not isinstance(probe, DenseProbe):
        load = ground_truth_config(spec, classes)
        return [LOAD, resize_step(settings, 1), load, {"type": "PackRGB", "kind": spec.kind}]
    from probes.train.config import apply_training

    config = probe.read_config()
    apply_training(config, settings)
    crop = settings.crop or (settings.size, settings.size)
    complete_pipelines(config, spec, classes, settings, crop, PADDING)
    return list(config[f"{request.split}_dataloader"].dataset.pipeline)


def draw_boxes(request: SampleRequest) -> DrawnSplit:
    """Images with boxes, masks and names."""
    from probes.detection.pictures import annotate
    from probes.detection.pipelines import apply_steps, complete_pipeline, instances_of
    from probes.train.config import apply_training, config_files, read_config

    spec, split, settings = request.spec, request.split, request.settings
    config = read_config(*config_files(request.probe.kind, request.probe.name))
    apply_training(config, settings)
    steps = config[f"{split}_dataloader"].dataset.pipeline
    load = config.train_dataloader.dataset.pipeline[1]
    if split == "val":  # a probe reads none there: results are scored at full size
        steps.insert(1, load)
    complete_pipeline(steps, settings, list(PADDING))
    categories, images = read_instances(require_file(request.root, spec.annotations[split]))
    entries = [(sample.image, images[sample.target.image_id]) for sample in request.samples]
    if split == "train":  # a detector is trained on these alone
        entries = [
            (name, entry)
            for name, entry in entries
            if min(entry["width"], entry["height"]) >= settings.min_size
            and not all(each.get("iscrowd") for each in instances_of(entry))
        ]
    labels = {name: number for number, name in enumerate(spec.class_names(request.root))}
    samples = []
    for name, entry in request.spread(entries):
        instances, masks, size = instances_of(entry), [], (entry["height"], entry["width"])
        if load.with_mask:
            masks = [instance_mask(each["segmentation"], *size) for each in instances]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in instances)]
        item: dict[str, Any] = {
            "img_path": str(request.root / name),
            "instances": instances,
            "gt_bboxes": np.array(corners, np.float32).reshape(-1, 4),
            "masks": [mask.astype(np.uint8) for mask in masks],
        }
        item = transformed(partial(apply_steps, steps), name, item)
        marks = list[Any]()
        for instance, (x1, y1, x2, y2), mask in zip_longest(
            item["instances"], item["gt_bboxes"].tolist(), item["masks"]
        ):
            if not instance.get("iscrowd"):
                subject = categories[instance["category_id"]]
                colour = tuple(COLOURS[labels[subject] + 1].tolist())
                marks.append((subject, colour, (x1, y1, x2 - x1, y2 - y1), mask))
        names, crowds = ", ".join(mark[0] for mark in marks), len(item["instances"]) - len(marks)
        image = item["img"][..., ::-1].clip(0, 255).astype(np.uint8)
        panels = {"image": image, "ground truth": annotate(Image.fromarray(image), marks, 512)}
        text = f"{names or 'no object'}; {crowds} crowds do not count"
        samples.append(DrawnSample(name, text, panels))
    return DrawnSplit(samples, None, [step["type"] for step in steps])


def whole_image(request: SampleRequest) -> Callable[[Image.Image, str], np.ndarray]:
    """How a probe on whole images sees one of a name: cropped, or squeezed to a square."""
    settings, spec = request.settings, request.spec
    transfer = spec.transfer if spec.trained_on else {}
    side = getattr(settings, "size", None) or SIDE
    is_random = getattr(settings, "trains_on_crops", False) and request.split == "train"
    if is_random:
        from probes.image_level.linear import crop_transform

        transform: Any = crop_transform((side, side))
    else:
        from backbones.backbone import DataConfig, resizing

        is_squashed = transfer.get("squash", spec.kind in ("correspondence", "triplets"))
        transform = resizing(DataConfig((side, side), MEAN, STD, squash=is_squashed), "bicubic")

    def see(photo: Image.Image, name: str) -> np.ndarray:
        part = ImageOps.crop(photo, transfer.get("border", 0))
        return as_picture(transformed(transform, name, part) if is_random else transform(part))

    return see


def draw_whole(request: SampleRequest) -> DrawnSplit:
    """Whole images with their classes, captions or questions."""
    see, classes = whole_image(request), request.spec.class_names(request.root)
    samples = []
    for sample in request.spread(request.samples):
        photo, target = request.photo(sample.image), ground_truth(request.spec, sample)
        if isinstance(target, LabelSet):
            text = " · ".join(classes[value] for value in target.present)
            text += "".join(f" · {classes[value]} not known" for value in target.unknown)
        else:
            values = target.listed if isinstance(target.listed, list | tuple) else [target.listed]
            text = " · ".join(classes[value] if classes else str(value) for value in values)
        seen = see(photo, sample.image)
        panels = {
            "image": np.asarray(photo),
            "as it is seen": seen,
        }
        samples.append(DrawnSample(sample.image, text, panels))
    return DrawnSplit(samples)


def draw_triplets(request: SampleRequest) -> DrawnSplit:
    """Images, and the two of which people chose one as more like them."""
    see, samples = whole_image(request), []
    for sample in request.spread(request.samples):
        triplet = sample.target
        names = {"image": sample.image, "left": triplet.left, "right": triplet.right}
        panels = {title: see(request.photo(name), name) for title, name in names.items()}
        text = (
            f"{100 * triplet.right_share:.3g} % of {triplet.votes} people find the right image more"
            " like it"
        )
        samples.append(DrawnSample(sample.image, text, panels))
    return DrawnSplit(samples)


def draw_objects(request: SampleRequest) -> DrawnSplit:
    """Whole images with the boxes and the mask of their objects; unknown pixels are hatched."""
    samples, colour = [], tuple(COLOURS[1].tolist())
    for sample in request.spread(request.samples):
        photo, objects = request.photo(sample.image), sample.target
        pixels = np.asarray(photo)
        panels, said = {"image": pixels}, []
        if objects.boxes:
            panels["boxes"] = np.asarray(with_boxes(photo, objects.boxes, colour))
            said.append(f"boxes: {len(objects.boxes)}")
        if objects.mask:
            classes = read_classes(request.root / objects.mask)
            unknown = classes == 255
            is_object = (classes > 0) & ~unknown
            drawing = label_picture(is_object.astype(np.uint8), COLOURS)
            panels["objects"] = hatched(blended(pixels, drawing, is_object), unknown)
            said.append(f"{100 * is_object.mean():.3g} % of the pixels are objects")
        samples.append(DrawnSample(sample.image, "; ".join(said), panels))
    return DrawnSplit(samples)


def with_boxes(photo: Image.Image, boxes: Sequence[Any], colour: tuple[int, ...]) -> Image.Image:
    """A photograph with boxes (left, top, right, bottom)."""
    drawn = photo.copy()
    pen, width = ImageDraw.Draw(drawn), max(2, max(photo.size) // 200)
    for box in boxes:
        pen.rectangle(tuple(box), outline=colour, width=width)
    return drawn


def draw_warped(request: SampleRequest) -> DrawnSplit:
    """Squares and their warped copies, joined where the warp takes the middles of some patches."""
    import torch

    from probes.matching.homographies import centres, homography_of, warp
    from probes.matching.views import project

    side, samples = request.settings.size or SIDE, []
    cells = centres(torch.Size((6, 6)), side)
    for sample in request.spread(request.samples):
        square = ImageOps.fit(request.photo(sample.image), (side, side), Image.Resampling.BICUBIC)
        homography = homography_of(request.root / sample.image, side, request.settings.warp)
        moved = project(cells, homography)
        inside = ((moved >= 0) & (moved < side)).all(dim=1)
        seen = [np.asarray(square), np.asarray(warp(square, homography))]
        starts, ends = cells[inside, :2].tolist(), moved[inside].tolist()
        colours = list(map(tuple, COLOURS[1 : 1 + len(starts)].tolist()))
        panels = {"pair": join_points(seen, starts, ends, colours)}
        text = f"{len(starts)} of {len(cells)} points stay in the square"
        samples.append(DrawnSample(sample.image, text, panels))
    return DrawnSplit(samples)


def draw_keypoints(request: SampleRequest) -> DrawnSplit:
    """Pairs of images, their points joined by lines."""
    see = whole_image(request)
    pairs = [(sample.image, pair) for sample in request.samples for pair in sample.target.pairs]
    samples = []
    for name, pair in request.spread(pairs):
        seen, points = [], []
        for image, corners in ((name, pair.source), (pair.image, pair.target)):
            photo = request.photo(image)
            seen.append(see(photo, image))
            points.append(np.array(corners) * seen[-1].shape[1::-1] / photo.size)
        colours = list(map(tuple, COLOURS[1 : 1 + len(pair.source)].tolist()))
        starts, ends = points
        panels = {"pair": join_points(seen, starts, ends, colours)}
        samples.append(DrawnSample(f"{name} → {pair.image}", f"{len(colours)} points", panels))
    return DrawnSplit(samples)


def draw_views(request: SampleRequest) -> DrawnSplit:
    """Pairs of views; lines join what both show by pose and depth, within ``SAME_POINT``."""
    import torch

    from probes.matching.views import (
        VIEW_LOADERS,
        angle_of,
        listed_pairs,
        relative_pose,
        sampled_pairs,
        side_by_side,
    )

    is_sampled = getattr(request.settings, "pairs", "listed") == "sampled"
    pairs = (sampled_pairs if is_sampled else listed_pairs)(request.samples)
    load = VIEW_LOADERS[request.spec.kind]
    samples = []
    for first, second in request.spread(pairs):
        views = [load(request.root, each, request.settings.size) for each in (first, second)]
        points = [view.points.flatten(1).T for view in views]
        measured = (points[0][:, 2] > 0).nonzero()[:, 0]
        cells = measured[spread_indices(len(measured), LINES)]
        pose = relative_pose(first, second)
        moved = points[0][cells] @ pose[:, :3].T.float() + pose[:, 3].float()
        # a point that is unknown is at the camera, and nearest to none
        nearest = torch.cdist(moved, points[1]).min(dim=1)
        shown = nearest.values < SAME_POINT
        lines = cells[shown], nearest.indices[shown], shown[shown]
        depths = [each[each[:, 2] > 0, 2] for each in points]
        ranges = " and ".join(
            f"{each.min():.2f} to {each.max():.2f} m" if len(each) else "nothing" for each in depths
        )
        text = (
            f"{angle_of(pose):.0f}° between the cameras; {ranges} away; the second shows"
            f" {int(shown.sum())} of {len(cells)} points of the first within {SAME_POINT:g} m"
        )
        picture = side_by_side((views[0], views[1]), *lines)
        samples.append(DrawnSample(f"{first.image} → {second.image}", text, {"pair": picture}))
    return DrawnSplit(samples)


def draw_poses(request: SampleRequest) -> DrawnSplit:
    """Pairs of views, and how the camera turned and moved between them."""
    from probes.matching.poses import relative_poses, rotation_angle, sample_pairs

    train, val = (request.spec.list_samples(request.root, split) for split in ("train", "val"))
    views, see, samples = train + val, whole_image(request), []
    pairs = sample_pairs(views, len(train), request.settings)
    pairs = pairs[(pairs[:, 0] < len(train)) == (request.split == "train")]
    for first, second in request.spread(pairs.tolist()):
        (pose,) = relative_poses(views, pairs.new_tensor([[first, second]]))
        degrees, metres = rotation_angle(pose[:4]), pose[4:].norm()
        text = f"the camera turns by {degrees:.0f}°; it moves by {metres:.2f} m"
        names, panels = [views[index].image for index in (first, second)], {}
        for title, name in zip(("first", "second"), names, strict=True):
            with open_image(request.root / name) as image:
                panels[title] = see(to_rgb(ImageOps.exif_transpose(image)), name)
        samples.append(DrawnSample(" → ".join(names), text, panels))
    return DrawnSplit(samples)


def draw_frames(request: SampleRequest) -> DrawnSplit:
    """Frames of videos and their objects; unknown pixels are hatched."""
    from probes.matching.videos import resize_frame

    samples, settings = [], request.settings
    for sample in request.spread(request.samples):
        photo, masks = request.photo(sample.image), read_classes(request.root / sample.target.path)
        seen = resize_frame(photo, settings.size or SIDE, settings.resize, 1)
        drawing, unknown = label_picture(masks, COLOURS), masks == 255
        panels = {
            "image": as_picture(seen),
            "ground truth": hatched(drawing, unknown),
            "both": blended(np.asarray(photo), drawing, (masks > 0) & ~unknown),
        }
        objects = len(np.setdiff1d(masks, (0, 255)))
        samples.append(DrawnSample(sample.image, f"{objects} objects", panels))
    return DrawnSplit(samples)


def draw_queries(request: SampleRequest) -> DrawnSplit:
    """Queries, the part that is searched for, and the first right and uncounted images."""
    samples = []
    for sample in request.spread([each for each in request.samples if each.target.searches]):
        query, photo = sample.target, request.photo(sample.image)
        panels = {"query": np.asarray(photo)}
        if query.box and request.settings.crop_queries:
            panels["as it is seen"] = np.asarray(photo.crop(tuple(query.box)))
        for title, names in (("right", query.positives), ("does not count", query.junk)):
            for level, images in names.items():
                if images:
                    panels[f"{level}: {title}"] = np.asarray(request.photo(images[0]))
        counts = [f"{level}: {len(names)} right" for level, names in query.positives.items()]
        samples.append(DrawnSample(sample.image, ", ".join(counts), panels))
    return DrawnSplit(samples)


# of kinds that are not dense tasks; others are whole images
DRAWERS: Mapping[str, Callable[[SampleRequest], DrawnSplit]] = {
    "detection": draw_boxes,
    "correspondence": draw_keypoints,
    "object-views": draw_views,
    "scene-views": draw_views,
    "video": draw_frames,
    "view-pose": draw_poses,
    "instance-retrieval": draw_queries,
    "triplets": draw_triplets,
    "objects": draw_objects,
    "warped-images": draw_warped,
}
