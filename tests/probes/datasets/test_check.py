"""Datasets are located, counted and decoded before any work; each error is one line."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from cliptex_common.files import home
from probes.datasets import check
from probes.datasets.check import find_folder, prepare
from probes.datasets.survey import survey
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets import make
from tests.recorder import Recorder

DATA = Path(os.environ.get("CLIPTEX_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
MAKERS = {
    "voc": make.make_voc,
    "ade20k": make.make_ade,
    "camvid": make.make_camvid,
    "coco": tiny_coco.write,
    "nyu-depth": make.make_nyu,
    "nyu-normal": make.make_nyu,
    "imagefolder": make.make_imagefolder,
    "flickr30k": make.make_flickr,
}


def check_error(match, name, root, **options):
    """The message of the error that preparing a dataset raises."""
    spec = DATASETS[name] if isinstance(name, str) else name
    with pytest.raises(UserError, match=match) as error:
        prepare(spec, root, **{"partial": True, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_is_listed_decoded_and_fingerprinted(tmp_path, name):
    spec, root = DATASETS[name], MAKERS[name](tmp_path / "a")
    bar = Recorder()
    data = prepare(spec, root, partial=True, progress=bar)
    expected = {s: len(spec.list_samples(root, s)) for s in ("train", "val")}
    assert {s: len(samples) for s, samples in data.samples.items()} == expected
    assert expected["val"] >= 3 and data.skipped == ()
    assert data.partial == bool(spec.expected)
    assert bar.advanced == sum(expected.values())

    again = Recorder()
    assert prepare(spec, root, partial=True, progress=again) == data
    assert again.advanced == 0, "the verdict is cached"
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert prepare(spec, moved, partial=True, workers=1).fingerprint == data.fingerprint

    sample = spec.list_samples(root, "val")[1]
    changed = root / (sample.target if isinstance(sample.target, str) else sample.image)
    pixels = np.asarray(make.Image.open(changed)).copy()
    make.save(changed, pixels[::-1], format="PNG" if changed.suffix == ".png" else "JPEG")
    assert prepare(spec, root, partial=True).fingerprint != data.fingerprint


def test_annotations_of_an_image_are_in_the_fingerprint(tmp_path):
    spec, root = DATASETS["spair"], make.make_spair(tmp_path)
    first = prepare(spec, root, splits=["val"]).fingerprint
    path = next((root / "PairAnnotation/test").iterdir())
    pair = json.loads(path.read_text())
    path.write_text(json.dumps({**pair, "trg_bndbox": [15, 16, 116, 96]}))
    assert prepare(spec, root, splits=["val"]).fingerprint != first


def test_complete_or_partial(tmp_path):
    spec = dataclasses.replace(DATASETS["voc"], expected={"train": 4, "val": 3})
    root = make.make_voc(tmp_path, 4, 3)
    assert not prepare(spec, root).partial
    assert not prepare(spec, root, partial=True).partial
    smaller = dataclasses.replace(spec, expected={"train": 3, "val": 3})
    check_error("train 4 of 3", smaller, root, partial=False)
    (root / "JPEGImages/2007_000005.jpg").unlink()
    message = check_error("not complete", spec, root, partial=False)
    for part in ("train 4 of 4, val 2 of 3", "JPEGImages/2007_000005.jpg", "--partial"):
        assert part in message
    data = prepare(spec, root, partial=True)
    assert data.partial
    names = [Path(sample.image).stem for sample in data.samples["val"]]
    assert names == ["2007_000004", "2007_000006"]


def test_a_limit_takes_test_samples_evenly_and_is_partial(tmp_path):
    spec = dataclasses.replace(DATASETS["voc"], expected={"train": 4, "val": 6})
    root = make.make_voc(tmp_path, 4, 6)
    limit = {"train": None, "val": 3}
    full, three = prepare(spec, root), prepare(spec, root, splits=limit)
    assert three.samples["val"] == full.samples["val"][::2]
    assert three.samples["train"] == full.samples["train"]
    assert three.partial and three.fingerprint != full.fingerprint
    assert prepare(spec, root, splits={"train": None, "val": 7}) == full
    (root / three.samples["train"][0].image).unlink()
    check_error(r"train 3 of 4.*--partial", spec, root, partial=False, splits=limit)
    relations = dataclasses.replace(spec, kind="association")
    check_error("voc is scored on relations between images", relations, root, splits=limit)


@pytest.mark.parametrize("change", ["truncated", "text", "missing"])
@pytest.mark.parametrize("field", ["image", "target"])
def test_unreadable_samples_are_skipped_and_named(tmp_path, change, field):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path, 5, 3)
    sample = spec.list_samples(root, "train")[2]
    path = root / getattr(sample, field)
    if change == "truncated":
        make.truncate(path)
    elif change == "text":
        path.write_text("not an image")
    else:
        path.unlink()
    data = prepare(spec, root)
    assert len(data.samples["train"]) == 4 and sample not in data.samples["train"]
    ((skipped, reason),) = data.skipped
    assert skipped in (sample.image, sample.target) and reason
    assert prepare(spec, root) == data, "from the cached verdict"


def test_more_than_one_percent_unreadable_is_an_error(tmp_path):
    spec = DATASETS["imagefolder"]
    root = make.make_imagefolder(tmp_path, 100, 1, size=(20, 16), classes=["a", "b"])
    samples = spec.list_samples(root, "train")
    for index in (3, 150):
        make.truncate(root / samples[index].image, 0.6)
    data = prepare(spec, root)
    assert [path for path, _ in data.skipped] == [samples[3].image, samples[150].image]
    assert data.samples["train"] == [s for i, s in enumerate(samples) if i not in (3, 150)]
    make.truncate(root / samples[151].image, 0.6)
    for _ in range(2):  # an error is not cached
        message = check_error("3 of 200 train samples", "imagefolder", root)
        assert samples[3].image in message and samples[151].image in message


def test_a_label_out_of_range_is_reported_with_its_file(tmp_path):
    root = make.make_camvid(tmp_path)
    path = root / "annotations/val/frame_val_00001.png"
    labels = np.zeros((40, 48), np.uint8)
    labels[3, 4], labels[5, 6] = 11, 254
    make.save(path, labels)
    message = check_error("label 11, 254", "camvid", root)
    assert str(path) in message and "0-10" in message
    make.save(path, np.zeros((40, 48, 3), np.uint8))
    check_error("colour picture", "camvid", root)


@pytest.mark.parametrize(("value", "is_valid"), [(0, True), (150, True), (255, True), (151, False)])
def test_ade_labels_start_at_one(tmp_path, value, is_valid):
    root = make.make_ade(tmp_path)
    path = root / "annotations/training/ADE_training_00000.png"
    make.save(path, np.full((40, 48), value, np.uint8))
    if is_valid:
        assert len(prepare(DATASETS["ade20k"], root, partial=True).samples["train"]) == 4
    else:
        assert "1-150" in check_error(f"label {value}", "ade20k", root)


@pytest.mark.parametrize("name", ["voc", "nyu-depth", "nyu-normal"])
def test_mask_and_image_of_different_sizes(tmp_path, name):
    root = MAKERS[name](tmp_path)
    path = root / DATASETS[name].list_samples(root, "val")[0].target
    make.save(path, np.asarray(make.Image.open(path))[:-1])
    assert str(path) in check_error("but its image is", name, root)


def test_splits_without_images(tmp_path):
    root = make.make_camvid(tmp_path / "camvid", 3, 0)
    (root / "images/val").mkdir()
    (root / "annotations/val").mkdir()
    check_error("split 'val' is empty", "camvid", root)
    assert set(prepare(DATASETS["camvid"], root, splits=["train"]).samples) == {"train"}
    root = make.make_imagefolder(tmp_path / "images", 0, 2)
    check_error("train is missing", "imagefolder", root)
    assert len(prepare(DATASETS["imagefolder"], root, splits=["val"]).samples["val"]) == 8


def test_lists_of_voc(tmp_path):
    root = make.make_voc(tmp_path)
    lists = root / "ImageSets/Segmentation"
    names = (lists / "train.txt").read_text()
    for duplicate, split in (("2007_000004", "val"), ("2007_000001", "train")):
        (lists / "train.txt").write_text(f"{names}{duplicate}\n")
        check_error(f"{duplicate}.jpg is listed twice, in train and {split}", "voc", root)
    (lists / "val.txt").unlink()
    check_error(r"voc: file ImageSets/Segmentation/val\.txt is missing", "voc", root)
    shutil.rmtree(root / "JPEGImages")
    check_error("voc: folder JPEGImages is missing", "voc", root)


@pytest.mark.parametrize(
    ("name", "folder", "skipped", "reason", "invalid", "message"),
    [
        (
            "nyu-depth",
            "annotations",
            [np.zeros((48, 64), np.uint16), np.full((48, 64), 60000, np.uint16)],
            "no pixel has a depth|60 m",
            np.full((48, 64), 100, np.uint8),
            "not 16-bit",
        ),
        (
            "nyu-normal",
            "normals",
            [np.zeros((48, 64, 3), np.uint8)],
            "no pixel has a normal",
            np.full((48, 64, 3), 128, np.uint8),
            "median length 0.0",
        ),
    ],
)
def test_invalid_depth_and_normals(tmp_path, name, folder, skipped, reason, invalid, message):
    root = make.make_nyu(tmp_path)
    path = root / folder / "train/nyu_0001.png"
    for pixels in skipped:
        make.save(path, pixels)
        (entry,) = prepare(DATASETS[name], root, partial=True).skipped
        assert entry[0] == "images/train/nyu_0001.jpg"
        assert any(part in entry[1] for part in reason.split("|"))
    make.save(path, invalid)
    check_error(message, name, root)


def edit_coco(root, change):
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 8}, "annotation 2 has category 8"),
        ({"image_id": 77}, "annotation 2 belongs to image 77"),
        ({"bbox": [0, 0, 200, 10]}, "annotation 2 has box"),
        ({"bbox": [0, 0, -4, 10]}, "annotation 2 has box"),
        ({"segmentation": [[1, 2, 3]]}, "annotation 2 has a polygon"),
        ({"segmentation": None}, "annotation 2 has no mask"),
        ({"area": None}, "'area'"),
    ],
)
def test_invalid_coco_annotations(tmp_path, changes, message):
    def change(content):
        annotation = content["annotations"][1]
        annotation.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del annotation[key]

    root = tiny_coco.write(tmp_path)
    edit_coco(root, change)
    check_error(message, "coco", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["categories"][0].update(name="unicorn"),
            r"category 1 \(unicorn\), which is not one of the 80",
        ),
        (lambda c: c["images"][1].update(width=63), "annotation says 63x96"),
        (lambda c: c["images"][1].update(id=1), "two images with the same id"),
        (lambda c: c.update(annotations=[]), "no annotations"),
    ],
)
def test_invalid_coco_files(tmp_path, change, message):
    root = tiny_coco.write(tmp_path)
    edit_coco(root, change)
    check_error(message, "coco", root)


def test_coco_annotations_are_part_of_the_fingerprint(tmp_path):
    root = tiny_coco.write(tmp_path)
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
    skipped = prepare(spec, root, partial=True).skipped
    assert skipped == (("images/test0000.jpg", "an empty caption"),)
    first["sentences"].pop()
    path.write_text(json.dumps(content))
    check_error("test0000.jpg has 4 captions instead of 5", "flickr30k", root)


def test_a_damaged_verdict_is_rebuilt(tmp_path):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path)
    data = prepare(spec, root)
    (cached,) = (home() / "datasets").iterdir()
    cached.write_text("{")
    bar = Recorder()
    assert prepare(spec, root, progress=bar) == data and bar.advanced == 7


def test_an_interrupted_check_resumes(tmp_path, monkeypatch):
    spec, root = DATASETS["imagefolder"], make.make_imagefolder(tmp_path, 20, 3)
    make.truncate(root / "train/blue/0003.JPEG")
    expected = prepare(spec, root)
    folder = home() / "datasets"
    (cached,) = folder.iterdir()
    cached.unlink()
    verify, images = check.verify, []

    def verify_and_list(spec, classes, root, sample, instances):
        images.append(sample.image)
        return verify(spec, classes, root, sample, instances)

    def interrupted(*arguments):
        if len(images) == 30:
            raise KeyboardInterrupt
        return verify_and_list(*arguments)

    monkeypatch.setattr(check, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, root, workers=1)
    (part,) = folder.iterdir()
    with part.open("a") as lines:  # and a last line that was not finished
        lines.write('["train:train/white/0019.JPEG", "')
    monkeypatch.setattr(check, "verify", verify_and_list)
    assert prepare(spec, root, workers=1) == expected
    assert len(images) == len(set(images)) == 4 * 20 + 4 * 3
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_the_journal_of_a_check_has_complete_lines_at_any_time(tmp_path):
    root = make.make_imagefolder(tmp_path, 8)

    class Reader(Recorder):
        def advance(self, steps: int = 1) -> None:
            super().advance(steps)
            journals = (home() / "datasets").glob("*.part")
            lines = [line for journal in journals for line in journal.read_text().splitlines()]
            assert len(lines) == self.advanced and all(map(json.loads, lines))

    bar = Reader()
    prepare(DATASETS["imagefolder"], root, progress=bar)
    assert bar.advanced


def test_folders_of_datasets(tmp_path):
    voc, depth, normal = DATASETS["voc"], DATASETS["nyu-depth"], DATASETS["nyu-normal"]
    root, mine = tmp_path / "root", tmp_path / "mine"
    (root / "VOCdevkit/VOC2012").mkdir(parents=True)
    (mine / "VOC2012").mkdir(parents=True)
    for spec, data_root, data_dirs, expected in [
        (voc, root, {}, root / "VOCdevkit/VOC2012"),
        (voc, root, {"voc": tmp_path}, tmp_path),
        (voc, None, {"voc": mine}, mine / "VOC2012"),
        (voc, None, {"voc": root}, root / "VOCdevkit/VOC2012"),
        (normal, None, {"nyu": tmp_path}, tmp_path),
        (depth, None, {"nyu": tmp_path, "nyu-depth": mine}, mine),
    ]:
        assert find_folder(spec, data_root, data_dirs) == expected
    for arguments, match in [
        ((voc, None, {}), "--data voc=DIR"),
        ((depth, root, {}), "no folder nyu"),
        ((voc, None, {"voc": tmp_path / "none"}), "no such folder"),
        ((voc, root, {"vok": tmp_path}), "did you mean voc"),
    ]:
        with pytest.raises(UserError, match=match):
            find_folder(*arguments)


def test_nyu_is_the_labelled_set_or_raw_frames(tmp_path):
    """Raw frames as mmseg's converter names them: scene and number, in one folder."""
    spec, root = DATASETS["nyu-depth"], make.make_nyu(tmp_path, 3, 3)
    assert prepare(spec, root, partial=True).spec.expected == {"train": 795, "val": 654}
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        source = root / folder / f"train/nyu_0000.{suffix}"
        for number in range(797):
            shutil.copy(source, source.with_name(f"kitchen_0028b_{number:05d}.{suffix}"))
    check_error("train 800 of 24231, val 3 of 654", spec, root, partial=False)
    data = prepare(spec, root, partial=True)
    assert len(data.samples["train"]) == 800
    assert data.spec.extra["train_list"] == "24,231 raw frames"
    (row,) = (row for row in survey(None, {"nyu-depth": root}) if row.name == "nyu-depth")
    assert row.expected["train"] == 24231 and "24,231 raw frames" in row.message


@pytest.mark.skipif(not DATA.is_dir(), reason="no real subsets (set CLIPTEX_TEST_DATA)")
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("camvid", "camvid"),
        ("voc", "voc_from_coco"),
        ("ade20k", "ade"),
        ("coco", "coco"),
        ("nyu-depth", "nyu"),
        ("nyu-normal", "nyu"),
        ("flickr8k", "flickr8k"),
        ("imagefolder", "tiny_imagenet_20"),
    ],
)
def test_real_subsets_are_sound(name, folder):
    root = find_folder(DATASETS[name], None, {name: DATA / folder})
    assert prepare(DATASETS[name], root, partial=True).skipped == ()
