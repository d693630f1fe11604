"""Datasets are located, counted and decoded before any work; each error is one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cliptex_common.errors import UserError
from cliptex_common.files import home
from probes.datasets import check
from probes.datasets.check import find_folder, prepare, survey
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets import make
from tests.probes.matching import layouts
from tests.recorder import Recorder

MAKERS = {
    "voc": make.make_voc,
    "ade20k": make.make_ade,
    "camvid": make.make_camvid,
    "cityscapes": make.make_cityscapes,
    "pascal-context-59": make.make_pascal_context,
    "pascal-context-60": make.make_pascal_context,
    "coco": tiny_coco.write,
    "kitti-depth": make.make_kitti,
    "nyu-40": make.make_nyu_40,
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
    check_error("voc is scored on relations between images", relations, root, splits={"val": 3})


@pytest.mark.parametrize("change", [make.truncate, lambda path: path.write_text("x"), Path.unlink])
@pytest.mark.parametrize("field", ["image", "target"])
def test_unreadable_samples_are_skipped_and_named(tmp_path, change, field):
    spec, root = DATASETS["camvid"], make.make_camvid(tmp_path, 5, 3)
    sample = spec.list_samples(root, "train")[2]
    change(root / getattr(sample, field))
    data = prepare(spec, root)
    assert len(data.samples["train"]) == 4 and sample not in data.samples["train"]
    ((skipped, reason),) = data.skipped
    assert skipped in (sample.image, sample.target) and reason
    assert prepare(spec, root) == data, "from the cached verdict"


def test_more_than_one_percent_unreadable_is_an_error(tmp_path):
    root = make.make_imagefolder(tmp_path, 100, 1, size=(20, 16), classes=["a", "b"])
    samples = DATASETS["imagefolder"].list_samples(root, "train")
    damaged = [samples[index].image for index in (3, 150, 151)]
    for image in damaged[:2]:
        make.truncate(root / image, 0.6)
    assert [path for path, _ in prepare(DATASETS["imagefolder"], root).skipped] == damaged[:2]
    make.truncate(root / damaged[2], 0.6)
    for _ in range(2):  # an error is not cached
        message = check_error("3 of 200 train samples", "imagefolder", root)
        assert damaged[0] in message and damaged[2] in message


def test_splits_without_images(tmp_path):
    root = make.make_camvid(tmp_path / "camvid", 3, 0)
    (root / "images/val").mkdir()
    (root / "annotations/val").mkdir()
    check_error("split 'val' is empty", "camvid", root)
    assert set(prepare(DATASETS["camvid"], root, splits={"train": None}).samples) == {"train"}
    root = make.make_imagefolder(tmp_path / "images", 0, 2)
    check_error("train is missing", "imagefolder", root)
    assert len(prepare(DATASETS["imagefolder"], root, splits={"val": None}).samples["val"]) == 8


def grey(value, dtype=np.uint8, size=(40, 48)):
    return np.full(size, value, dtype)


CUT = object()


def rewrite(path, content):
    """Store other pixels, text or members of a tar, or what a function makes of JSON, of a text or
    in place of the path; ``CUT``: cut it off; None: remove it."""
    if content is None:
        path.unlink()
    elif content is CUT:
        make.truncate(path)
    elif isinstance(content, np.ndarray):
        make.save(path, content)
    elif isinstance(content, dict):
        make.write_tar(path, content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".json":
        values = json.loads(path.read_text())
        content(values)
        path.write_text(json.dumps(values))
    elif path.suffix == ".txt":
        path.write_text(content(path.read_text()))
    else:
        content(path)


def with_easy(*numbers, gallery=("red_000000", "red_000001")):
    """Ground truth of two queries, of which each has one easy image."""
    entries = [{"bbx": [0, 0, 1, 1], "easy": [n], "hard": [], "junk": []} for n in numbers]
    queries = ["red_query", "blue_query"]
    return lambda path: make.write_ground_truth(path, gallery, queries, entries)


def annotation(**changes):
    return lambda content: content["annotations"][1].update(changes)


def keep_two_frames(root):
    for path in root.glob("*/480p/video1/0000[234].*"):
        path.unlink()


VAL_ONLY = {
    "cifar10": lambda root: make.make_wds(root, 0, 2),
    "davis": layouts.make_davis,
    "navi": layouts.make_navi,
    "roxford5k": make.make_revisited,
    "scannet": layouts.make_scannet,
    "voc-objects": layouts.make_voc_objects,
}
FRAME, OBJECTS = "JPEGImages/480p/video1/00002.jpg", "Annotations/480p/video{}.png"
NAVI, REVISITED = "bottle/wild_set/", "gnd_roxford5k.mat"
COCO, CAPTIONS = "annotations/instances_train2017.json", "dataset_flickr30k.json"
MASK, DEPTH, NORMAL = "annotations/val/frame_val_00001.png", "annotations/{}.png", "normals/{}.png"
INVALID = [
    ("camvid", MASK, grey(11), "label 11.*0-10"),
    ("ade20k", "annotations/training/ADE_training_00000.png", grey(151), "label 151.*1-150"),
    (
        "pascal-context-60",
        "SegmentationClassContext/2008_val0001.png",
        grey(60),
        "label 60.*0-59",
    ),
    (
        "pascal-context-59",
        "SegmentationClassContext/2008_val0001.png",
        grey(60),
        "label 60.*1-59",
    ),
    (
        "cityscapes",
        "gtFine/train/city0/city0_000000_000019_gtFine_labelTrainIds.png",
        grey(0, size=(39, 48)),
        "but its image is",
    ),
    ("voc", "SegmentationClass/2007_000004.png", grey(0, size=(39, 48)), "but its image is"),
    ("voc", "ImageSets/Segmentation/train.txt", "{}2007_000004\n".format, "4.jpg is listed twice"),
    ("voc", "ImageSets/Segmentation/val.txt", None, r"val\.txt is missing"),
    ("nyu-depth", DEPTH.format("test/nyu_0000"), grey(5000, np.uint16), "but its image is"),
    ("nyu-depth", DEPTH.format("test/nyu_0000"), grey(100, size=(48, 64)), "not 16-bit"),
    (
        "nyu-normal",
        NORMAL.format("test/nyu_0000"),
        grey(128, size=(48, 64, 3)),
        "median length 0.0",
    ),
    ("kitti-depth", "kitti_eigen_test.txt", lambda text: f"{text}a.png\n", "line 5 has no depth"),
    ("flickr30k", CAPTIONS, lambda c: c["images"][5]["sentences"].pop(), "4 captions instead of 5"),
    ("coco", COCO, annotation(category_id=8), "annotation 2 has category 8"),
    ("coco", COCO, annotation(bbox=[0, 0, 200, 10]), "annotation 2 has box"),
    ("coco", COCO, annotation(segmentation=[[1, 2, 3]]), "annotation 2 has a polygon"),
    ("coco", COCO, lambda c: c["categories"][0].update(name="unicorn"), "not one of the 80"),
    (
        "coco",
        COCO,
        lambda c: c["images"][1].update(width=63),
        "annotation of .* is 63x96 but its",
    ),
    ("coco", COCO, "{", "instances_train2017.json"),
    ("coco", COCO, '{"images": [{"id": "x"}]}', "instances_train2017.json"),
    ("flickr30k", CAPTIONS, "{", CAPTIONS),
    ("flickr30k", CAPTIONS, '{"images": [{"id": "x"}]}', CAPTIONS),
    ("cifar10", "test/1.tar", None, "1 of 2 shards are missing"),
    ("cifar10", "test/1.tar", CUT, "cut off"),
    ("cifar10", "dataset_type.txt", "retrieval\n", "has no s0000000.txt"),
    ("cifar10", "classnames.txt", "one\n", "has class 1, but cifar10 has 1 classes"),
    ("cifar10", "classnames.txt", None, "classnames.txt is missing"),
    ("cifar10", "zeroshot_classification_templates.txt", "a photo\n", "no place {c}"),
    ("cifar10", "test/0.tar", {"s.png": b"", "s.cls": b"cat"}, "holds no class number"),
    ("davis", FRAME, None, f"{FRAME} is missing"),
    ("davis", OBJECTS.format("1/00002"), None, "video1/00002.png is missing"),
    ("davis", FRAME, CUT, f"{FRAME} "),
    ("davis", OBJECTS.format("1/00002"), grey(0, size=(80, 64)), "64x80 but its image is"),
    ("davis", OBJECTS.format("0/00000"), grey(2, size=(80, 128)), "object 1 has no pixel"),
    ("davis", "ImageSets/2017/val.txt", "bear\n", "folder JPEGImages/480p/bear is missing"),
    ("davis", FRAME, lambda path: path.rename(path.with_name("last.jpg")), "last.jpg is no frame"),
    ("davis", "", keep_two_frames, "has 2 frames"),
    ("navi", f"{NAVI}depth/001.png", None, "depth/001.png is missing"),
    ("navi", f"{NAVI}images/001.jpg", None, "images/001.jpg is missing"),
    ("navi", f"{NAVI}images/001.jpg", CUT, "images/001.jpg "),
    ("navi", f"{NAVI}annotations.json", "[{}]", "no annotation file of NAVI"),
    ("scannet", "scene0707_00/depth/15.png", None, "depth/15.png is missing"),
    ("scannet", "scene0707_00/depth/15.png", CUT, "15.png cannot be decoded"),
    ("scannet", "scene0707_00/pose/15.txt", "1 2 3", "no camera of ScanNet"),
    ("scannet", "test.npz", "x", "cannot be read"),
    ("roxford5k", REVISITED, None, "gnd_roxford5k.mat is missing"),
    ("roxford5k", REVISITED, "x", "cannot read"),
    ("roxford5k", REVISITED, with_easy(1, 3), "not the ground truth"),
    ("roxford5k", REVISITED, with_easy(1), "not the ground truth"),
    (
        "roxford5k",
        REVISITED,
        with_easy(1, 2, gallery=("red_000000", "red_query")),
        "listed twice",
    ),
    ("voc-objects", "Annotations/2007_000000.xml", "<annotation>", "no annotation file of PASCAL"),
]


def test_a_split_without_labels_is_refused_and_an_image_without_is_not(tmp_path):
    root = MAKERS["camvid"](tmp_path)
    first, *others = sorted((root / "annotations/val").glob("*.png"))
    rewrite(first, grey(255))
    prepare(DATASETS["camvid"], root, partial=True)
    for path in others:
        rewrite(path, grey(255))
    check_error("no image of val has a labelled pixel", "camvid", root)


@pytest.mark.parametrize(("name", "file", "content", "message"), INVALID)
def test_invalid_content_is_reported(tmp_path, name, file, content, message):
    root = {**MAKERS, **VAL_ONLY}[name](tmp_path)
    rewrite(root / file, content)
    options = {"splits": {"val": None}} if name in VAL_ONLY else {}
    check_error(message, name, root, **options)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("nyu-depth", DEPTH, grey(0, np.uint16, (48, 64)), "no pixel has a depth"),
        ("nyu-normal", NORMAL, grey(0, size=(48, 64, 3)), "no pixel has a normal"),
        (
            "flickr30k",
            CAPTIONS,
            lambda c: c["images"][0]["sentences"][2].update(raw=" "),
            "an empty caption",
        ),
    ],
)
def test_samples_that_say_nothing_are_skipped(tmp_path, name, file, content, message):
    root = MAKERS[name](tmp_path)
    rewrite(root / file.format("train/nyu_0001"), content)
    ((_, reason),) = prepare(DATASETS[name], root, partial=True).skipped
    assert message in reason


@pytest.mark.parametrize(
    ("name", "write", "file", "change"),
    [
        ("coco", tiny_coco.write, COCO, annotation(iscrowd=1)),
        ("spair", make.make_spair, "", lambda pair: pair.update(trg_bndbox=[15, 16, 116, 96])),
    ],
)
def test_annotations_are_in_the_fingerprint(tmp_path, name, write, file, change):
    root, options = write(tmp_path), {"splits": {"train": None}, "partial": True}
    before = prepare(DATASETS[name], root, **options).fingerprint
    rewrite(root / file if file else next((root / "PairAnnotation/trn").iterdir()), change)
    assert prepare(DATASETS[name], root, **options).fingerprint != before


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

    def verify_and_list(data, sample):
        images.append(sample.image)
        return verify(data, sample)

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
        ((depth, root / "none", {}), "none: there is no such folder"),
        ((voc, root / "VOCdevkit/VOC2012", {}), "its own folder; pass --data voc=.*/VOC2012$"),
        ((voc, None, {"voc": tmp_path / "none"}), "no such folder"),
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


def test_absolute_paths_of_a_lister_are_refused_with_what_they_should_be(tmp_path):
    root, spec = make.make_camvid(tmp_path / "camvid"), DATASETS["camvid"]

    def absolute(root, part):
        listed = spec.list_samples(root, part)
        return [dataclasses.replace(each, image=f"{root}/{each.image}") for each in listed]

    wrong = dataclasses.replace(spec, list_samples=absolute)
    check_error("files missing, such as /.*relative to its root", wrong, root)
