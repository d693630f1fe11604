"""What ``data show`` draws: the samples that probes get, and their ground truth over them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import benchmark.catalog  # noqa: F401  registers datasets and probes
from benchmark.suites import choose_suite
from benchmark.tasks import plan_tasks
from cliptex_common.errors import UserError
from cliptex_common.images import palette
from probes.datasets.base import PreparedDataset
from probes.registry import PROBES
from probes.samples import (
    PADDING,
    DrawnSplit,
    SampleRequest,
    as_picture,
    draw_samples,
    transformed,
)
from tests.probes import tiny_coco
from tests.probes.datasets import make
from tests.probes.matching import layouts

pytestmark = pytest.mark.integration


def drawn(task: str, root: Path, split: str = "val", **settings: Any) -> DrawnSplit:
    texts = {name: str(value) for name, value in settings.items()}
    planned = plan_tasks(choose_suite([task]), [task], texts)[0]
    spec = planned.spec.at(root)
    request = SampleRequest(spec, root, planned.probe, planned.settings, split, 3)  # type: ignore[arg-type]
    return draw_samples(request)


def panels(split: DrawnSplit, index: int = 0) -> tuple[np.ndarray, ...]:
    return tuple(split.samples[index].panels.values())


@pytest.fixture
def squares(tmp_path):
    """CamVid: white squares on black, labelled 1 on 0; the mask of the second val image is shifted,
    and the first row is not labelled."""
    root = make.make_camvid(tmp_path / "camvid", 2, 2)
    for index, shift in enumerate((0, 16)):
        for part in ("train", "val"):
            name = f"{part}/frame_{part}_{index:05d}"
            photo, labels = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
            photo[16:32, 16:32] = 255
            labels[16:32, 16 + shift : 32 + shift] = 1
            labels[0] = 255
            make.save(root / f"images/{name}.jpg", photo, quality=100)
            make.save(root / f"annotations/{name}.png", labels)
    return root


def test_a_shifted_mask_leaves_its_object(squares):
    split = drawn("camvid/linear", squares, size=24)
    (image, truth, both), (_, _, shifted) = panels(split), panels(split, 1)
    photo = np.asarray(Image.open(squares / "images/val/frame_val_00000.jpg"))
    expected = cv2.resize(photo, (32, 24), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(image, expected), "as the probe resizes it"
    first, second = palette(11)[:2]
    assert (truth[20, 20] == second).all() and (truth[40, 40] == first).all()
    assert set(np.unique(truth[0])) == {80, 240}, "not labelled: striped"
    assert (both[24, 24] > 120).all(), "half white, half the class"
    assert (shifted[24, 24] > 120).all() and not (shifted[24, 24] == both[24, 24]).all()
    assert (shifted[24, 40] == second // 2).all(), "the class, where the photograph is black"
    assert "2.08 % do not count" in split.samples[0].text


def test_crops_of_training_are_those_of_the_probe_and_the_same_again(squares):
    once, again = (drawn("camvid/linear", squares, "train", size=32) for _ in range(2))
    assert "RandomCrop" in once.steps
    image, truth, _ = panels(once)
    assert image.shape == truth.shape == (32, 32, 3)
    for one, other in zip(panels(once), panels(again), strict=True):
        assert np.array_equal(one, other)


def test_a_wrong_scale_is_drawn_over_the_range_that_counts(tmp_path):
    root = make.make_nyu(tmp_path / "nyu", 1, 2)
    for index, millimetres in enumerate((5000, 50)):
        depth = np.full((480, 640), millimetres, np.uint16)
        depth[:, :320] = 0
        photo = np.zeros((480, 640, 3), np.uint8)
        make.save(root / f"images/test/nyu_{index:04d}.jpg", photo)
        make.save(root / f"annotations/test/nyu_{index:04d}.png", depth)
    split = drawn("nyu-depth/linear", root, size=32)
    (_, right, _), (_, wrong, _) = panels(split), panels(split, 1)
    viridis = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    row, column = 240, 480
    assert abs(int(np.abs(viridis.astype(int) - right[row, column]).sum(1).argmin()) - 127) <= 1
    assert np.abs(viridis.astype(int) - wrong[row, column]).sum(1).argmin() <= 1
    assert set(np.unique(right[:10])) == {80, 240}, "outside the part that is scored"
    assert "median 5 m" in split.samples[0].text and "median 0.05 m" in split.samples[1].text


def test_normals_are_said_in_degrees_to_the_camera(tmp_path):
    root = make.make_nyu(tmp_path / "nyu", 1, 1)
    slope = np.rint((np.array([np.sin(np.pi / 3), 0, 0.5]) + 1) * 127.5).astype(np.uint8)
    make.save(root / "normals/test/nyu_0000.png", np.tile(slope, (48, 64, 1)))
    split = drawn("nyu-normal/linear", root, size=32)
    assert "median 60.1° to the camera" in split.samples[0].text and split.legend is not None


CASES = {  # maker, and what is said of the first sample
    "voc/patch-knn": (make.make_voc, "aeroplane"),
    "flickr30k/retrieval": (make.make_flickr, "A red thing, seen 0 times"),
    "imagefolder/linear": (make.make_imagefolder, "blue"),
    "imagefolder/attentive": (make.make_imagefolder, "blue"),
    "voc2007-labels/linear": (make.make_voc2007, "aeroplane"),
    "nights/2afc": (make.make_nights, "0 % of 6 people find the right image"),
    "bsds500/linear": (make.make_bsds, "3 people; "),
    "voc-objects/tokencut": (layouts.make_voc_objects, "boxes: 1"),
    "images/homography": (make.make_imagefolder, "of 36 points stay in the square"),
    "nyu-occlusion/linear": (make.make_nyu, "median"),
    "corners/linear": (make.make_imagefolder, "median"),
    "orientation/linear": (make.make_imagefolder, "coherence of the direction"),
    "voc-foreground/linear": (make.make_voc, "% of the pixels are objects"),
    "davis/label-propagation": (layouts.make_davis, "objects"),
    "scannet/view-matching": (layouts.make_scannet, "5° between the cameras"),
    "navi-multiview/relative-pose": (layouts.make_poses, "the camera turns by"),
    "spair/keypoints": (make.make_spair, "points"),
    "roxford5k/retrieval": (make.make_revisited, "medium: "),
    "misc-winogavil/zero-shot": (make.make_winogavil, "cue='red'"),
}


@pytest.mark.parametrize("task", CASES)
def test_every_kind_is_drawn(task, tmp_path):
    make_copy, text = CASES[task]
    make_copy(tmp_path)
    split = drawn(task, tmp_path)
    assert split.samples and text.lower() in split.samples[0].text.lower()
    for sample in split.samples:
        assert sample.panels
        for picture in sample.panels.values():
            assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_a_tuned_classifier_sees_random_crops_at_train_alone(tmp_path):
    root = make.make_imagefolder(tmp_path / "images", 1, 1)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))  # the colour says the column
    for path in root.glob("*/*/*"):
        make.save(path, np.stack([ramp, ramp, ramp], axis=2))
    tuned, frozen, attentive = (
        {split: panels(drawn(task, root, split, size=64, **tier))[1] for split in ("train", "val")}
        for task, tier in (
            ("imagefolder/linear", {"tune": "all"}),
            ("imagefolder/linear", {}),
            ("imagefolder/attentive", {}),
        )
    )
    assert np.array_equal(frozen["train"], frozen["val"])
    assert np.array_equal(tuned["val"], frozen["val"])
    widths = [int(np.ptp(seen["train"])) for seen in (tuned, frozen)]
    assert widths[0] < widths[1] - 20, "a part of the columns"
    assert np.array_equal(tuned["train"], attentive["train"]), "cropped by the same rule"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["ssd", "mask-rcnn"])
def test_boxes_and_crops_are_those_of_mmdetection(name, split, tmp_path):
    """Pixel by pixel, though ``data show`` does not import it."""
    data = tiny_coco.prepared(tiny_coco.write(tmp_path))
    spec = replace(tiny_coco.SPEC, list_samples=lambda root, split: data.samples[split])
    probe = PROBES[f"detection/{name}"]
    sizes = {"size": 64} if name == "ssd" else {"short_side": 64, "long_side": 80}
    settings = probe.settings_type(**sizes, min_size=16)
    result = draw_samples(SampleRequest(spec, tmp_path, probe, settings, split, 12))
    expected = seen_by_mmdetection(probe, settings, data, split)
    assert {sample.name for sample in result.samples} == set(expected)
    for sample in result.samples:
        image, names, truth = expected[sample.name]
        assert np.array_equal(sample.panels["image"], image)
        assert sample.text.split("; ")[0] == (", ".join(names) or "no object")
        assert np.array_equal(sample.panels["ground truth"], truth)
    assert any("1 crowds do not count" in sample.text for sample in result.samples)


def seen_by_mmdetection(
    probe: Any, settings: Any, data: PreparedDataset, split: str
) -> dict[str, tuple[np.ndarray, list[str], np.ndarray]]:
    """Image → its pixels, names and drawing by the dataset that a detector is trained on."""
    from mmengine.registry import DATASETS as MMENGINE_DATASETS
    from mmengine.registry import DefaultScope

    from probes.detection.models import coco_set
    from probes.detection.pictures import annotate
    from probes.detection.pipelines import complete_pipeline
    from probes.train.config import apply_training, config_files, read_config

    config = read_config(*config_files(probe.kind, probe.name))
    apply_training(config, settings)
    part = config[f"{split}_dataloader"].dataset
    if split == "val":
        part.pipeline.insert(1, config.train_dataloader.dataset.pipeline[1])
    complete_pipeline(part.pipeline, settings, list(PADDING))
    part.update(coco_set(data, split))
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = MMENGINE_DATASETS.build(part)
    seen = {}
    for index in range(len(dataset)):
        path = Path(dataset.get_data_info(index)["img_path"]).relative_to(data.root)
        packed = transformed(dataset.prepare_data, str(path), index)
        image, objects = as_picture(packed["inputs"]), packed["data_samples"].gt_instances
        labels = objects.labels.tolist()
        corners = getattr(objects.bboxes, "tensor", objects.bboxes).tolist()
        masks = objects.masks.masks if "masks" in objects else [None] * len(labels)
        marks = [
            (data.classes[label], tuple(palette(256)[label + 1].tolist()), box_of(box), mask)
            for label, box, mask in zip(labels, corners, masks, strict=True)
        ]
        truth = annotate(Image.fromarray(image), marks, 512)
        seen[str(path)] = image, [mark[0] for mark in marks], truth
    return seen


def box_of(corners: list[float]) -> tuple[float, ...]:
    x1, y1, x2, y2 = corners
    return x1, y1, x2 - x1, y2 - y1


def test_a_view_shows_what_the_other_shows_as_far_as_pose_and_depth_agree(tmp_path):
    root = layouts.make_navi(tmp_path / "navi")
    before = drawn("navi/view-matching", root, pairs="listed")
    assert "20° between the cameras" in before.samples[0].text
    assert "shows 24 of 24 points" in before.samples[0].text
    for path in root.glob("*/wild_set/depth/001.png"):
        far = np.asarray(Image.open(path)) // 2  # twice as far
        make.save(path, far.astype(np.uint16))
    after = drawn("navi/view-matching", root, pairs="listed")
    assert "shows 0 of 24 points" in after.samples[0].text


def test_a_view_without_a_known_depth_is_drawn(tmp_path):
    root = layouts.make_scannet(tmp_path / "scannet")
    depth = np.zeros((480, 640), np.uint16)
    depth[1, 1] = 1000  # between the points that are matched
    make.save(root / "scene0707_00/depth/15.png", depth)
    sample = drawn("scannet/view-matching", root).samples[0]
    assert "and nothing away" in sample.text and "shows 0 of 24 points" in sample.text


def test_objects_of_a_frame_lie_over_it(tmp_path):
    root = layouts.make_davis(tmp_path / "davis")
    split = drawn("davis/label-propagation", root, size=40)
    _, truth, both = panels(split)
    path = root / "Annotations" / Path(split.samples[0].name).relative_to("JPEGImages")
    masks = np.asarray(Image.open(path.with_suffix(".png")))
    photo = np.asarray(Image.open(root / split.samples[0].name))
    assert np.array_equal(truth[masks == 1], np.tile(palette(2)[1], ((masks == 1).sum(), 1)))
    assert np.array_equal(both[masks == 0], photo[masks == 0])


def test_what_cannot_be_drawn_is_one_line(squares, tmp_path):
    with pytest.raises(UserError, match="annotations/val is missing"):
        shutil.rmtree(squares / "annotations/val")
        drawn("camvid/linear", squares)
    root = make.make_flickr(tmp_path / "flickr", 0, 2)
    for path in (root / "images").iterdir():
        make.truncate(path)
    with pytest.raises(UserError, match="data check --full"):
        drawn("flickr30k/retrieval", root)
