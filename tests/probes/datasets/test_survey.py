"""The state of each dataset in a folder, as ``data check`` reports it."""

import shutil

import pytest

from cliptex_common.errors import UserError
from probes.datasets.check import prepare, survey
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets import make

pytestmark = pytest.mark.integration


def test_survey(tmp_path):
    make.make_voc(tmp_path / "VOCdevkit/VOC2012")
    make.make_camvid(tmp_path / "camvid")
    make.make_nyu(tmp_path / "nyu")
    shutil.rmtree(tmp_path / "nyu/normals/test")
    rows = {row.name: row for row in survey(tmp_path, {})}
    assert set(rows) >= {"imagefolder", "flickr30k", "imagenet", "places365"}
    assert rows["voc"].state == "partial"
    assert rows["voc"].counts == {"train": 4, "val": 3}
    assert rows["voc"].expected == {"train": 1464, "val": 1449}
    assert rows["camvid"].state == "available" and "no official counts" in rows["camvid"].message
    assert rows["nyu-depth"].state == "partial"
    assert rows["nyu-normal"].state == "broken"
    assert "normals/test is missing" in rows["nyu-normal"].message
    assert rows["coco"].state == "absent"
    assert {row.state for row in survey(None, {})} == {"absent"}
    with pytest.raises(UserError, match="no such folder"):
        survey(None, {"camvid": tmp_path / "nowhere"})


def test_hints_for_data_that_cannot_be_used_as_it_is(tmp_path):
    import benchmark.mini.world  # noqa: F401  registers

    tiny_coco.write(tmp_path / "coco", 4, 3)
    make.make_flickr(tmp_path / "flickr8k", 0, 3, name="flickr8k")
    make.truncate(make.make_imagefolder(tmp_path / "imagefolder") / "train/red/0001.JPEG")
    voc = make.make_voc(tmp_path / "voc_from_coco/VOCdevkit/VOC2012")
    rows = {row.name: row for row in survey(tmp_path, {})}
    assert not [name for name in rows if name.startswith("mini-")], "their suite creates them"
    assert rows["flickr8k"].state == "partial" and "retrieval can run" in rows["flickr8k"].message
    assert rows["voc"].state == "absent" and f"--data voc={voc}" in rows["voc"].message
    assert "mini-det" in {row.name for row in survey(None, {"mini-det": tmp_path / "coco"})}
    flickr, images = survey(tmp_path, {}, full=True, only=("flickr8k", "imagefolder"))
    assert flickr.state == "partial" and flickr.counts == {"train": 0, "val": 3}
    assert images.counts == {"train": 16, "val": 12} and "train/red/0001.JPEG" in images.message


@pytest.mark.parametrize(("linked", "full"), [(True, False), (True, True), (False, True)])
def test_images_of_val_that_are_in_train_are_reported(tmp_path, linked, full):
    root = make.make_imagefolder(tmp_path / "imagefolder")
    (row,) = survey(tmp_path, {}, full=True, only=["imagefolder"])
    assert "in train too" not in row.message
    shutil.rmtree(root / "val")
    if linked:
        (root / "val").symlink_to("train")
    else:
        shutil.copytree(root / "train", root / "val")
    (row,) = survey(tmp_path, {}, full=full, only=["imagefolder"])
    assert row.state == "available"
    assert row.message.count("16 of 16 val images are in train too") == 1
    assert prepare(DATASETS["imagefolder"], root).notes


def test_a_copy_without_train_is_for_probes_that_need_none(tmp_path):
    root = make.make_voc(tmp_path / "VOCdevkit/VOC2012")
    (root / "ImageSets/Segmentation/train.txt").unlink()
    (row,) = survey(tmp_path, {}, only=["voc"])
    assert row.state == "partial" and "open-vocabulary can run" in row.message
