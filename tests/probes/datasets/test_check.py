"""Datasets are placed, counted and decoded before any work, and what is wrong with them is said in
one line."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.datasets import check
from probes.datasets.check import find_folder, prepare
from probes.datasets.survey import survey
from probes.registry import DATASETS
from tests.probes.datasets import make

DATA = Path(os.environ.get("CLIPTEX_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
MAKERS = {
    "voc": make.make_voc,
    "ade20k": make.make_ade,
    "camvid": make.make_camvid,
    "coco": make.make_coco,
    "nyu-depth": make.make_nyu,
    "nyu-normal": make.make_nyu,
    "imagefolder": make.make_imagefolder,
    "flickr30k": make.make_flickr,
    "flickr8k": lambda root, *counts: make.make_flickr(root, *counts, name="flickr8k"),
}


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CLIPTEX_HOME", str(home))
    return home


class Bar:
    def __init__(self):
        self.total = self.done = 0

    def start(self, description, total):
        self.total += total

    def advance(self, steps=1):
        self.done += steps


def refused(match, *arguments, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepare(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_is_listed_decoded_and_fingerprinted(tmp_path, name):
    spec, root = DATASETS[name], MAKERS[name](tmp_path / "a")
    bar = Bar()
    data = prepare(spec, root, partial=True, progress=bar)
    expected = {s: len(spec.list_samples(root, s)) for s in ("train", "val")}
    assert {s: len(samples) for s, samples in data.samples.items()} == expected
    assert expected["val"] >= 3
    assert data.skipped == ()
    assert data.partial == bool(spec.expected)
    assert bar.done == bar.total == sum(expected.values())

    # the second time nothing is decoded; one thread finds the same; another place makes no
    # difference
    again = Bar()
    assert prepare(spec, root, partial=True, progress=again) == data
    assert again.total == 0
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert prepare(spec, moved, partial=True, workers=1).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", MAKERS)
def test_any_changed_byte_changes_the_fingerprint(tmp_path, name):
    spec, root = DATASETS[name], MAKERS[name](tmp_path)
    before = prepare(spec, root, partial=True).fingerprint
    sample = spec.list_samples(root, "val")[1]
    changed = root / (sample.target if isinstance(sample.target, str) else sample.image)
    rng = np.random.default_rng(99)
    if changed.suffix == ".png":
        array = np.asarray(make.Image.open(changed)).copy()
        array[-1, -1] = array[-1, -2] if (array[-1, -1] != array[-1, -2]).any() else array[5, 5]
        make.save(changed, array)
    else:
        make.save(changed, make.picture(rng, make.Image.open(changed).size), format="JPEG")
    assert prepare(spec, root, partial=True).fingerprint != before


def test_complete_or_partial(tmp_path):
    spec = dataclasses.replace(DATASETS["voc"], expected={"train": 4, "val": 3})
    root = make.make_voc(tmp_path, 4, 3)
    assert not prepare(spec, root).partial
    assert not prepare(spec, root, partial=True).partial
    (root / "JPEGImages/2007_000005.jpg").unlink()
    message = refused("not complete", spec, root)
    assert "train 4 of 4, val 2 of 3" in message
    assert "JPEGImages/2007_000005.jpg" in message
    assert "--partial" in message
    data = prepare(spec, root, partial=True)
    assert data.partial
    assert [s.image for s in data.samples["val"]] == [
        "JPEGImages/2007_000004.jpg",
        "JPEGImages/2007_000006.jpg",
    ]


def test_a_limit_takes_test_samples_evenly_and_is_partial(tmp_path):
    spec = dataclasses.replace(DATASETS["voc"], expected={"train": 4, "val": 6})
    root = make.make_voc(tmp_path, 4, 6)
    full, three = prepare(spec, root), prepare(spec, root, splits={"train": None, "val": 3})
    assert (
        three.samples["val"] == full.samples["val"][::2]
        and three.samples["train"] == full.samples["train"]
    )
    assert three.partial and three.fingerprint != full.fingerprint
    assert (
        prepare(spec, root, splits={"train": None, "val": 6})
        == full
        == prepare(spec, root, splits={"train": None, "val": 7})
    )
    (root / three.samples["train"][0].image).unlink()
    with pytest.raises(UserError, match=r"train 3 of 4.*--partial"):
        prepare(spec, root, splits={"train": None, "val": 3})
    with pytest.raises(UserError, match="voc is scored on relations between images"):
        prepare(
            dataclasses.replace(spec, kind="association"), root, splits={"train": None, "val": 3}
        )


def test_more_than_official_is_not_the_official_one_either(tmp_path):
    spec = dataclasses.replace(DATASETS["nyu-depth"], expected={"train": 3, "val": 3})
    refused("train 4 of 3", spec, make.make_nyu(tmp_path, 4, 3))


@pytest.mark.parametrize("change", ["truncated", "empty", "text", "gone"])
@pytest.mark.parametrize("which", ["image", "target"])
def test_unreadable_samples_are_skipped_and_named(tmp_path, change, which):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path, 5, 3)
    sample = spec.list_samples(root, "train")[2]
    path = root / getattr(sample, which)
    if change == "truncated":
        make.truncate(path)
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "text":
        path.write_text("not an image")
    else:
        path.unlink()
    data = prepare(spec, root)
    assert len(data.samples["train"]) == 4
    assert sample not in data.samples["train"]
    assert len(data.skipped) == 1
    assert data.skipped[0][0] in (sample.image, sample.target)
    assert data.skipped[0][1]
    assert prepare(spec, root) == data  # from the kept verdict


def test_more_than_one_percent_unreadable_is_an_error(tmp_path):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path, 6, 3)
    broken = [spec.list_samples(root, "train")[i].image for i in (1, 4)]
    for image in broken:
        make.truncate(root / image)
    message = refused("2 of 6 train samples", spec, root)
    assert broken[0] in message
    assert broken[1] in message
    refused("2 of 6 train samples", spec, root)  # an error is not kept as a verdict


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(broken=st.sets(st.integers(0, 199), max_size=5), workers=st.integers(1, 4))
def test_the_one_percent_rule_counts_exactly(tmp_path, big_folder, broken, workers):
    spec = DATASETS["imagefolder"]
    good = spec.list_samples(big_folder, "train")
    originals = {i: (big_folder / good[i].image).read_bytes() for i in broken}
    try:
        for i in broken:
            make.truncate(big_folder / good[i].image, 0.6)
        if len(broken) > 2:
            message = refused(f"{len(broken)} of 200 train", spec, big_folder, workers=workers)
            assert good[min(broken)].image in message
        else:
            data = prepare(spec, big_folder, workers=workers)
            assert [path for path, _ in data.skipped] == [good[i].image for i in sorted(broken)]
            assert data.samples["train"] == [s for i, s in enumerate(good) if i not in broken]
    finally:
        for i, content in originals.items():
            (big_folder / good[i].image).write_bytes(content)


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    return make.make_imagefolder(
        tmp_path_factory.mktemp("big"), 100, 1, size=(20, 16), classes=["a", "b"]
    )


def test_label_out_of_range_names_file_and_value(tmp_path):
    root = make.make_camvid(tmp_path)
    path = root / "annotations/val/frame_val_00001.png"
    bad = np.zeros((40, 48), np.uint8)
    bad[3, 4], bad[5, 6] = 11, 254
    make.save(path, bad)
    message = refused("label 11, 254", DATASETS["camvid"], root)
    assert str(path) in message
    assert "0-10" in message


@pytest.mark.parametrize(
    ("value", "fits"), [(0, True), (150, True), (255, True), (151, False), (254, False)]
)
def test_ade_offset(tmp_path, value, fits):
    root = make.make_ade(tmp_path)
    make.save(
        root / "annotations/training/ADE_training_00000.png", np.full((40, 48), value, np.uint8)
    )
    if fits:
        assert len(prepare(DATASETS["ade20k"], root, partial=True).samples["train"]) == 4
    else:
        assert "1-150" in refused(f"label {value}", DATASETS["ade20k"], root, partial=True)


def test_a_colour_picture_is_no_label_map(tmp_path):
    root = make.make_camvid(tmp_path)
    make.save(root / "annotations/train/frame_train_00000.png", np.zeros((40, 48, 3), np.uint8))
    refused("colour picture", DATASETS["camvid"], root)


@pytest.mark.parametrize("name", ["voc", "ade20k", "camvid", "nyu-depth", "nyu-normal"])
def test_mask_and_image_of_different_sizes(tmp_path, name):
    spec, root = DATASETS[name], MAKERS[name](tmp_path)
    path = root / spec.list_samples(root, "val")[0].target
    make.save(path, np.asarray(make.Image.open(path))[:-1])
    message = refused("but its image is", spec, root, partial=True)
    assert str(path) in message


def test_a_split_without_images(tmp_path):
    root = make.make_camvid(tmp_path, 3, 0)
    (root / "images/val").mkdir()
    (root / "annotations/val").mkdir()
    refused("split 'val' is empty", DATASETS["camvid"], root)
    assert set(prepare(DATASETS["camvid"], root, splits=["train"]).samples) == {"train"}


def test_missing_list_and_folder_are_named(tmp_path):
    root = make.make_voc(tmp_path)
    (root / "ImageSets/Segmentation/val.txt").unlink()
    refused(
        r"voc: file ImageSets/Segmentation/val\.txt is missing", DATASETS["voc"], root, partial=True
    )
    shutil.rmtree(root / "JPEGImages")
    refused("voc: folder JPEGImages is missing", DATASETS["voc"], root, partial=True)


def test_an_image_in_train_and_val_is_refused(tmp_path):
    root = make.make_voc(tmp_path)
    path = root / "ImageSets/Segmentation/train.txt"
    before = path.read_text()
    path.write_text(f"{before}2007_000004\n")
    refused(
        "2007_000004.jpg is listed twice, in train and val", DATASETS["voc"], root, partial=True
    )
    path.write_text(f"{before}2007_000001\n")
    refused(
        "2007_000001.jpg is listed twice, in train and train", DATASETS["voc"], root, partial=True
    )


def test_depth_that_is_not_depth(tmp_path):
    spec, root = DATASETS["nyu-depth"], make.make_nyu(tmp_path)
    path = root / "annotations/train/nyu_0001.png"
    make.save(path, np.zeros((48, 64), np.uint16))
    assert prepare(spec, root, partial=True).skipped == (
        ("images/train/nyu_0001.jpg", "no pixel has a depth"),
    )
    make.save(path, np.full((48, 64), 60000, np.uint16))
    assert "60 m" in prepare(spec, root, partial=True).skipped[0][1]
    make.save(path, np.full((48, 64), 100, np.uint8))
    refused("not 16-bit", spec, root, partial=True)


def test_normals_that_are_not_normals(tmp_path):
    spec, root = DATASETS["nyu-normal"], make.make_nyu(tmp_path)
    path = root / "normals/train/nyu_0001.png"
    make.save(path, np.zeros((48, 64, 3), np.uint8))
    assert prepare(spec, root, partial=True).skipped == (
        ("images/train/nyu_0001.jpg", "no pixel has a normal"),
    )
    make.save(path, np.full((48, 64, 3), 128, np.uint8))
    refused("median length 0.0", spec, root, partial=True)


def edit_coco(root, change):
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["annotations"][1].update(category_id=7), "annotation 2 has category 7"),
        (lambda c: c["annotations"][1].update(image_id=77), "annotation 2 belongs to image 77"),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, 200, 10]), "annotation 2 has box"),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, -4, 10]), "annotation 2 has box"),
        (
            lambda c: c["annotations"][1].update(bbox=[float("nan"), 0, 4, 10]),
            "annotation 2 has box",
        ),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, 4]), "not a COCO annotation file"),
        (
            lambda c: c["annotations"][1].update(segmentation={"size": [9, 9], "counts": [81]}),
            r"mask of size \[9, 9\]",
        ),
        (lambda c: c["annotations"][1].pop("segmentation"), "annotation 2 has no mask"),
        (
            lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3]]),
            "annotation 2 has a polygon",
        ),
        (
            lambda c: c["annotations"][1].update(
                segmentation={"size": [48, 64], "counts": "52203"}
            ),
            "a run-length code that",
        ),
        (lambda c: c["annotations"][1].pop("area"), "'area'"),
        (lambda c: c["annotations"][1].pop("bbox"), "'bbox'"),
        (
            lambda c: c["categories"][0].update(name="unicorn"),
            "category 1 \\(unicorn\\), which is not one of the 80",
        ),
        (lambda c: c["images"][0].update(width=63), "annotation says 63x48"),
        (lambda c: c["images"][1].update(id=1), "two images with the same id"),
        (lambda c: c.update(annotations=[]), "no annotations"),
        (lambda c: c.pop("categories"), "'categories'"),
    ],
)
def test_coco_json_that_makes_no_sense(tmp_path, change, match):
    root = make.make_coco(tmp_path)
    edit_coco(root, change)
    refused(match, DATASETS["coco"], root, partial=True)


def test_coco_annotations_are_part_of_the_fingerprint(tmp_path):
    root = make.make_coco(tmp_path)
    before = prepare(DATASETS["coco"], root, partial=True).fingerprint
    edit_coco(root, lambda c: c["annotations"][0].update(iscrowd=1))
    assert prepare(DATASETS["coco"], root, partial=True).fingerprint != before


def test_captions_are_counted(tmp_path):
    spec, root = DATASETS["flickr30k"], make.make_flickr(tmp_path)
    path = root / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    first = next(entry for entry in content["images"] if entry["split"] == "test")
    first["sentences"][2]["raw"] = "  "
    path.write_text(json.dumps(content))
    assert prepare(spec, root, partial=True).skipped == (
        ("images/test0000.jpg", "an empty caption"),
    )
    first["sentences"].pop()
    path.write_text(json.dumps(content))
    refused("test0000.jpg in val has 4 captions instead of 5", spec, root, partial=True)


def test_a_kept_verdict_that_is_damaged_is_made_again(tmp_path, own_home):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path)
    data = prepare(spec, root)
    (cached,) = (own_home / "datasets").iterdir()
    cached.write_text("{")
    bar = Bar()
    assert prepare(spec, root, progress=bar) == data
    assert bar.done == 7


def test_a_check_cut_short_goes_on_where_it_stopped(tmp_path, own_home, monkeypatch):
    spec, root = DATASETS["imagefolder"], make.make_imagefolder(tmp_path, 20, 3)
    make.truncate(root / "train/blue/0003.JPEG")
    expected = prepare(spec, root)
    (cached,) = (own_home / "datasets").iterdir()
    cached.unlink()
    looked_at = []

    def until(limit):
        def verify(spec, classes, root, sample, instances):
            if len(looked_at) == limit:
                raise KeyboardInterrupt
            looked_at.append(sample.image)
            return original(spec, classes, root, sample, instances)

        return verify

    original = check.verify
    monkeypatch.setattr(check, "verify", until(30))
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, root, workers=1)
    (part,) = (own_home / "datasets").iterdir()
    with part.open("a") as lines:  # and a last line that was not finished
        lines.write('["train:train/white/0019.JPEG", "')
    monkeypatch.setattr(check, "verify", until(None))
    assert prepare(spec, root, workers=1) == expected
    assert len(looked_at) == len(set(looked_at)) == 4 * 20 + 4 * 3
    assert [path.suffix for path in (own_home / "datasets").iterdir()] == [".json"]


def test_val_alone_needs_no_train(tmp_path):
    root = make.make_imagefolder(tmp_path, 0, 2)
    refused("train is missing", DATASETS["imagefolder"], root)
    assert len(prepare(DATASETS["imagefolder"], root, splits=["val"]).samples["val"]) == 8


def test_place(tmp_path):
    voc, depth, normal = DATASETS["voc"], DATASETS["nyu-depth"], DATASETS["nyu-normal"]
    (tmp_path / "root/VOCdevkit/VOC2012").mkdir(parents=True)
    (tmp_path / "mine/VOC2012").mkdir(parents=True)
    inside = tmp_path / "root/VOCdevkit/VOC2012"
    mine = tmp_path / "mine"
    for spec, data_root, data_dirs, expected in [
        (voc, tmp_path / "root", {}, inside),
        (voc, tmp_path / "root", {"voc": tmp_path}, tmp_path),
        (voc, None, {"voc": mine}, mine / "VOC2012"),
        (voc, None, {"voc": tmp_path / "root"}, inside),
        (depth, None, {"nyu": tmp_path}, tmp_path),
        (normal, None, {"nyu": tmp_path}, tmp_path),
        (depth, None, {"nyu": tmp_path, "nyu-depth": mine}, mine),
    ]:
        assert find_folder(spec, data_root, data_dirs) == expected
    for arguments, match in [
        ((voc, None, {}), "--data voc=DIR"),
        ((depth, tmp_path / "root", {}), "no folder nyu"),
        ((voc, None, {"voc": tmp_path / "none"}), "no such folder"),
        ((voc, tmp_path / "root", {"vok": tmp_path}), "did you mean voc"),
    ]:
        with pytest.raises(UserError, match=match):
            find_folder(*arguments)


def test_nyu_has_the_labelled_set_or_the_frames_of_its_videos(tmp_path):
    """The second as mmseg's converter lays it out: flat names of scenes, a file each."""
    spec, root = DATASETS["nyu-depth"], make.make_nyu(tmp_path, 3, 3)
    assert prepare(spec, root, partial=True).spec.expected == {"train": 795, "val": 654}
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        source = root / folder / f"train/nyu_0000.{suffix}"
        for number in range(797):
            source.with_name(f"kitchen_0028b_{number:05d}.{suffix}").write_bytes(
                source.read_bytes()
            )
    refused("train 800 of 24231, val 3 of 654", spec, root)
    data = prepare(spec, root, partial=True)
    assert (
        len(data.samples["train"]) == 800 and data.spec.extra["train_list"] == "24,231 raw frames"
    )
    (row,) = (row for row in survey(None, {"nyu-depth": root}) if row.name == "nyu-depth")
    assert row.expected["train"] == 24231 and "24,231 raw frames" in row.message


@pytest.mark.skipif(not DATA.is_dir(), reason="no real subsets (set CLIPTEX_TEST_DATA)")
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("camvid", "camvid", (294, 81)),
        ("voc", "voc_from_coco", (103, 60)),
        ("ade20k", "ade", (3, 3)),
        ("coco", "coco", (101, 98)),
        ("nyu-depth", "nyu", (80, 40)),
        ("nyu-normal", "nyu", (80, 40)),
        ("flickr8k", "flickr8k", (210, 60)),
        ("imagefolder", "tiny_imagenet_20", (1200, 500)),
    ],
)
def test_real_subsets_are_sound(name, folder, counts):
    spec = DATASETS[name]
    root = find_folder(spec, None, {name: DATA / folder})
    data = prepare(spec, root, partial=True)
    if counts != tuple(len(data.samples[s]) for s in ("train", "val")):
        pytest.skip("another subset of the data")
    assert data.skipped == ()
    if spec.expected:
        refused("not complete", spec, root)
