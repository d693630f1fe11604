"""Each declaration lists the samples and classes of its official layout."""

import json

import numpy as np
import pytest
from PIL import Image

from cliptex_common.errors import UserError
from probes.datasets.base import Sample
from probes.datasets.check import prepare, survey
from probes.dense.tasks import DENSE_TASKS
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets import make


def test_coco_targets_are_image_ids_in_file_order(tmp_path):
    root = tiny_coco.write(tmp_path, 3, 2)
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"].reverse()
    path.write_text(json.dumps(content))
    assert [s.target.image_id for s in DATASETS["coco"].list_samples(root, "train")] == [
        201,
        101,
        1,
    ]


def test_imagefolder_indices_follow_sorted_folders(tmp_path):
    root = make.make_imagefolder(tmp_path / "a", 2, 1, classes=["zebra", "ant_eater", "Bee"])
    spec = DATASETS["imagefolder"]
    assert spec.class_names(root) == ("Bee", "ant eater", "zebra")
    wordnet = make.make_imagefolder(tmp_path / "wnids", 1, 1, classes=["n01443537", "n01440764"])
    assert spec.class_names(wordnet) == ("tench", "goldfish")
    assert {s.image.split("/")[1]: s.target for s in spec.list_samples(root, "train")} == {
        "Bee": 0,
        "ant_eater": 1,
        "zebra": 2,
    }


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classnames.json", json.dumps({"n2": "snail", "n1": "great fish"})),
        ("classnames.json", json.dumps(["great fish", "snail"])),
        ("wnid_to_name.txt", "n2\tsnail\nn1\tgreat fish, piscis\nn3\tunused\n"),
    ],
)
def test_imagefolder_readable_names(tmp_path, file, text):
    root = make.make_imagefolder(tmp_path, 1, 1, classes=["n1", "n2"])
    (root / file).write_text(text)
    assert DATASETS["imagefolder"].class_names(root) == ("great fish", "snail")


def test_imagenet_uses_official_indices_in_both_layouts(tmp_path):
    spec = DATASETS["imagenet"]
    folders = make.make_imagefolder(tmp_path / "folders", 1, 1, classes=["n01443537", "n15075141"])
    assert [s.target for s in spec.list_samples(folders, "val")] == [1, 999]
    flat = tmp_path / "flat"
    make.save(flat / "val/ILSVRC2012_val_00000001.JPEG", np.zeros((4, 4, 3), np.uint8))
    (flat / "meta").mkdir()
    (flat / "meta/val.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    assert spec.list_samples(flat, "val") == [Sample("val/ILSVRC2012_val_00000001.JPEG", 65)]
    names = spec.class_names(flat)
    assert len(names) == 1000
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet paper")
    (flat / "meta/val.txt").write_text("ILSVRC2012_val_00000001.JPEG cat\n")
    with pytest.raises(UserError, match=r"val\.txt needs lines"):
        spec.list_samples(flat, "val")


def test_flickr_val_is_the_karpathy_test_split(tmp_path):
    root = make.make_flickr(tmp_path, 4, 3)
    samples = DATASETS["flickr30k"].list_samples(root, "val")
    assert [s.image for s in samples] == [f"images/test{n:04d}.jpg" for n in range(3)]
    assert [len(s.target.texts) for s in samples] == [5, 5, 5]
    (root / "images").rename(root / "flickr30k-images")
    assert (
        DATASETS["flickr30k"].list_samples(root, "train")[0].image
        == "flickr30k-images/train0000.jpg"
    )


def test_links_to_folders_and_files_are_followed(tmp_path):
    """A split on another disk, a class folder and an image that are links."""
    root = make.make_imagefolder(tmp_path / "data")
    for path in ("val", "train/red", "train/blue/0000.JPEG"):
        target = tmp_path / "disk" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(target)
        (root / path).symlink_to(target)
    data = prepare(DATASETS["imagefolder"], root)
    assert (len(data.samples["train"]), len(data.samples["val"])) == (16, 12) and not data.skipped


def test_each_real_folder_is_read_once(tmp_path):
    root = make.make_imagefolder(tmp_path / "data", 2, 1)
    plain = DATASETS["imagefolder"].list_samples(root, "train")
    make.make_imagefolder(tmp_path / "more", 1, 1)
    links = {"red/up": "..", "red/root": "../..", "red/blue": "../blue", "red/own": "."}
    links |= {"again": "red", "all": ".", "red/more": "../../../more/train/red"}
    links |= {"blue/more": "../../../more/train/red", "red/more2": "../../../more/train/red"}
    for name, target in links.items():
        (root / "train" / name).symlink_to(target)
    data = prepare(DATASETS["imagefolder"], root)
    assert len(data.samples["train"]) == len(plain) + 1
    assert {*plain} < {*data.samples["train"]} and "all" not in data.classes
    (note,) = data.notes
    assert note.startswith("8 links to folders that are listed anyway are left out")
    (state,) = survey(None, {"imagefolder": root}, only=["imagefolder"])
    assert note in state.message


def test_voc_lists(tmp_path):
    """In the official order; the augmented list is a protocol of its own."""
    voc = DATASETS["voc"]
    original = make.make_voc(tmp_path / "a", 3, 2)
    augmented = make.make_voc(tmp_path / "b", 3, 2, n_aug=4)
    assert voc.adapt(voc, original) == voc
    adapted = voc.adapt(voc, augmented)
    assert adapted.expected == {"train": 10582, "val": 1449} and adapted.extra != voc.extra
    folders = [sample.target.split("/")[0] for sample in voc.list_samples(augmented, "train")]
    assert folders == ["SegmentationClass"] * 3 + ["SegmentationClassAug"] * 4
    assert len(voc.list_samples(augmented, "val")) == 2
    (original / "ImageSets/Segmentation/train.txt").write_text("2007_000002\n\n2007_000000\n")
    assert voc.list_samples(original, "train") == [
        Sample(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png")
        for name in ("2007_000002", "2007_000000")
    ]


def test_cityscapes_has_names_of_its_own(tmp_path):
    root = make.make_cityscapes(tmp_path, 1, 1)
    (sample,) = DATASETS["cityscapes"].list_samples(root, "val")
    assert sample == Sample(
        "leftImg8bit/val/city0/city0_000000_000019_leftImg8bit.png",
        "gtFine/val/city0/city0_000000_000019_gtFine_labelTrainIds.png",
    )
    assert DATASETS["cityscapes"].class_names(root)[::18] == ("road", "bicycle")
    (root / sample.target).rename(root / sample.target.replace("Train", ""))  # as downloaded
    with pytest.raises(UserError, match="csCreateTrainIdLabelImgs"):
        DATASETS["cityscapes"].list_samples(root, "val")


@pytest.mark.parametrize(("classes", "background"), [(59, 255), (60, 0)])
def test_pascal_context_ignores_background_or_has_it_as_a_class(tmp_path, classes, background):
    spec, root = DATASETS[f"pascal-context-{classes}"], make.make_pascal_context(tmp_path, 1, 1)
    assert len(spec.class_names(root)) == classes
    (sample,) = spec.list_samples(root, "val")
    options = DENSE_TASKS["segmentation"].reading(spec, classes)
    read = DENSE_TASKS["segmentation"].read(str(root / sample.target), **options)
    stored = np.asarray(Image.open(root / sample.target))
    assert (read[stored == 0] == background).all()
    assert (read[stored == 59] == classes - 1).all()


def test_mirrored_folders_nest_and_keep_orphans(tmp_path):
    root = make.make_nyu(tmp_path, 3, 2, scenes=True)
    make.save(root / "images/train/bath/a.png", np.zeros((4, 4, 3), np.uint8))
    make.save(root / "annotations/train/zoo/only_label.png", np.zeros((4, 4), np.uint16))
    (root / "images/train/._junk.jpg").write_bytes(b"")
    samples = DATASETS["nyu-depth"].list_samples(root, "train")
    assert len(samples) == 5
    for index, image in (
        (0, "bath/a.png"),
        (1, "kitchen_0000/frame.jpg"),
        (-1, "zoo/only_label.png"),
    ):
        target = f"annotations/train/{image}".replace("jpg", "png")
        assert samples[index] == Sample(f"images/train/{image}", target)
    assert DATASETS["nyu-depth"].list_samples(root, "val")[0].image.startswith("images/test/")
    assert DATASETS["nyu-normal"].list_samples(root, "val")[0].target.startswith("normals/test/")


@pytest.mark.parametrize(
    "name", ["voc", "coco", "nyu-depth", "imagenet", "flickr30k", "cityscapes"]
)
def test_an_empty_folder_names_what_is_missing(tmp_path, name):
    with pytest.raises(UserError, match="missing in"):
        DATASETS[name].list_samples(tmp_path, "val")
