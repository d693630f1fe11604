"""Each dataset from small archives of the published shape to a folder that ``data check``
accepts."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import probes.catalog  # noqa: F401
from backbones.cliptex.protocols import Silent
from benchmark.__main__ import main
from common.errors import UserError
from probes.datasets.check import prepare
from probes.datasets.download import table
from probes.datasets.download.archives import members
from probes.datasets.download.get import assign, get
from probes.registry import DATASETS
from tests.probes.datasets import make


def pack(archive: Path, folder: Path, below: str = "") -> None:
    """``folder`` as a tar or zip, whose files are below ``below``."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(folder.rglob("*")):
                opened.write(path, Path(below) / path.relative_to(folder))
    else:
        with tarfile.open(
            archive, "w:" + {"tar": "", "tgz": "gz"}.get(archive.suffix[1:], "gz")
        ) as opened:
            opened.add(folder, below or ".")


def fetched(entry, to: Path, *given: Path) -> list[str]:
    said: list[str] = []
    get(entry, to, given, Silent(), said.append)
    return said


NUMBERS = {
    name: tuple(map(str, range(size)))
    for name, size in (("voc", 21), ("ade20k", 150), ("imagenet", 1000))
}
CLASSES = {**NUMBERS, "coco": ("person", "dog", "toothbrush")}


def checked(name: str, root: Path):
    """The verdict of ``data check --full``; names of classes, which take seconds to import, are
    given."""
    spec = DATASETS.find(name)
    if name in CLASSES:
        spec = replace(spec, classes=CLASSES[name])
    return prepare(spec, root, partial=True)


def make_sbd(root: Path, train: list[str], val: list[str], size: tuple[int, int]) -> None:
    (root / "cls").mkdir(parents=True)
    for number, name in enumerate(train + val):
        mask = np.full(size[::-1], number, np.uint8)
        savemat(root / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask, "Boundaries": 0}})
    (root / "train.txt").write_text("\n".join(train))
    (root / "val.txt").write_text("\n".join(val))


@pytest.fixture
def voc(server, served, tmp_path):
    """VOC's and SBD's archives: four images of train, three of val, two more; SBD has two of train,
    one of val, and those two."""
    root = make.make_voc(tmp_path / "made", n_aug=2)
    shutil.rmtree(root / "SegmentationClassAug")
    (root / "ImageSets/Segmentation/trainaug.txt").unlink()
    pack(server.folder / "VOCtrainval_11-May-2012.tar", root, "VOCdevkit/VOC2012")
    names = sorted(path.stem for path in (root / "JPEGImages").iterdir())
    make_sbd(tmp_path / "sbd", [names[0], names[7]], [names[1], names[4], names[8]], (48, 40))
    pack(server.folder / "benchmark.tgz", tmp_path / "sbd", "benchmark_RELEASE/dataset")
    return served("voc")


def test_voc_with_trainaug(voc, server, tmp_path):
    to = tmp_path / "data"
    said = fetched(voc, to)
    data = checked("voc", to / "VOCdevkit/VOC2012")
    assert len(data.samples["train"]) == 6 and len(data.samples["val"]) == 3 and not data.skipped
    added = [sample.target for sample in data.samples["train"] if "Aug" in sample.target]
    assert len(added) == 2, "SBD's masks are used where VOC has none, and never those of val"
    assert np.asarray(Image.open(data.root / added[1])).max() == 4, "the mask of its own file"
    assert not (to / ".downloads").exists()
    assert "md5" in said[0] and "as published" in said[0] and "sha256" in said[0]


def test_a_wrong_checksum_is_refused_and_the_next_attempt_is_fresh(voc, server, tmp_path):
    archive = server.folder / "benchmark.tgz"
    right = archive.read_bytes()
    archive.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    to = tmp_path / "data"
    with pytest.raises(
        UserError, match=r"benchmark.tgz is damaged.*instead of.*run the command again"
    ):
        fetched(voc, to)
    assert not (to / "VOCdevkit").exists()
    archive.write_bytes(right)
    server.requests.clear()
    fetched(voc, to)
    assert [path for _, path, _ in server.requests] == ["/benchmark.tgz"], "what was right is kept"
    given = tmp_path / "VOCtrainval_11-May-2012.tar"
    given.write_bytes(b"another")
    with pytest.raises(UserError, match="get it again"):
        fetched(voc, tmp_path / "other", given)
    assert given.exists(), "a user's file is not removed"


def test_what_breaks_while_it_is_unpacked_leaves_nothing_half(
    voc, server, served, tmp_path, monkeypatch
):
    to = tmp_path / "data"
    pack(server.folder / "benchmark.tgz", tmp_path / "made", "something_else")
    with pytest.raises(
        UserError, match="no folder benchmark_RELEASE/dataset; is it the right archive"
    ):
        fetched(served("voc"), to)
    assert not (to / "VOCdevkit").exists() and not (to / ".downloads/voc/unpacked").exists()
    assert (to / ".downloads/voc/VOCtrainval_11-May-2012.tar").is_file()


def test_no_room_is_said_before_anything_is_asked_for(voc, server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        UserError, match=r"voc needs .* free some space or choose another folder with --to"
    ):
        fetched(voc, tmp_path / "data")
    assert not server.requests


def test_what_is_there_is_never_mixed_with_what_comes(voc, server, tmp_path):
    make.make_voc(tmp_path / "data/VOCdevkit/VOC2012")
    with pytest.raises(UserError, match="is there already"):
        fetched(voc, tmp_path / "data")
    assert not server.requests


def test_ade20k_and_coco(server, served, tmp_path):
    pack(
        server.folder / "ADEChallengeData2016.zip",
        make.make_ade(tmp_path / "ade"),
        "ADEChallengeData2016",
    )
    fetched(served("ade20k"), tmp_path / "data")
    assert len(checked("ade20k", tmp_path / "data/ade/ADEChallengeData2016").samples["train"]) == 4
    coco = make.make_coco(tmp_path / "coco")
    for archive, part in (
        ("train2017", "train2017"),
        ("val2017", "val2017"),
        ("annotations_trainval2017", "annotations"),
    ):
        pack(server.folder / f"{archive}.zip", coco / part, part)
    fetched(served("coco"), tmp_path / "data")
    data = checked("coco", tmp_path / "data/coco")
    assert {split: len(samples) for split, samples in data.samples.items()} == {
        "train": 4,
        "val": 3,
    }


def test_nyu_labelled(server, served, tmp_path):
    h5py = pytest.importorskip("h5py", reason="no h5py: pip install 'cliptex-benchmark[nyu]'")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 3, 64, 48), np.uint8)  # (N, 3, W, H), as MATLAB's file has it
    depths = rng.uniform(0.5, 9.9, (5, 64, 48)).astype(np.float32)
    depths[:, :2] = 0
    with h5py.File(server.folder / "nyu_depth_v2_labeled.mat", "w") as data:
        data["images"], data["rawDepths"], data["depths"] = images, depths, depths + 1
        references = data.create_dataset("sceneTypes", (1, 5), dtype=h5py.ref_dtype)
        for index, scene in enumerate(["kitchen", "office", "kitchen", "bathroom", "cafe"]):
            data[f"scene{index}"] = np.array([[ord(letter)] for letter in scene], np.uint16)
            references[0, index] = data[f"scene{index}"].ref
    savemat(server.folder / "splits.mat", {"trainNdxs": [[1], [3], [4]], "testNdxs": [[2], [5]]})
    said = fetched(served("nyu"), tmp_path / "data")
    assert "splits.mat: sha256" in said[1] and "publishes none" in said[1]
    data = checked("nyu-depth", tmp_path / "data/nyu")
    assert [Path(sample.image).stem for sample in data.samples["train"]] == [
        "bathroom_00003",
        "kitchen_00000",
        "kitchen_00002",
    ]
    assert [Path(sample.image).stem for sample in data.samples["val"]] == [
        "cafe_00004",
        "office_00001",
    ]
    sample = data.samples["val"][0]
    assert np.array_equal(
        np.asarray(Image.open(data.root / sample.image)), images[4].transpose(2, 1, 0)
    )
    stored = np.asarray(Image.open(data.root / sample.target))
    assert stored.dtype == np.uint16 and stored.shape == (48, 64) and not stored[:, :2].any()
    assert np.abs(stored / 1000 - depths[4].T).max() <= 0.0005 + 1e-6


def test_nyu_raw_frames(served, tmp_path):
    made, listed = tmp_path / "nyu", {"train": ("kitchen_0028b", 3), "test": ("bathroom", 2)}
    rng = np.random.default_rng(0)
    for split, (scene, number) in listed.items():
        lines = []
        for index in range(number):
            image, depth = f"{scene}/rgb_{index:05d}.jpg", f"{scene}/sync_depth_{index:05d}.png"
            make.save(made / image, make.picture(rng, (64, 48)))
            make.save(made / depth, rng.integers(700, 9900, (48, 64), dtype=np.uint16))
            lines.append(f"{'/' * (split == 'train')}{image} {depth} 518.8579\n")
        (made / f"nyu_{split}.txt").write_text("".join(lines))
    pack(tmp_path / "nyu.zip", made, "nyu")
    with pytest.raises(UserError, match="can only be got by a person"):
        fetched(served("nyu-24k"), tmp_path / "data")
    fetched(served("nyu-24k"), tmp_path / "data", tmp_path / "nyu.zip")
    data = checked("nyu-depth", tmp_path / "data/nyu")
    assert data.samples["train"][0].image == "images/train/kitchen_0028b_00000.jpg"
    assert {split: len(samples) for split, samples in data.samples.items()} == {
        "train": 3,
        "val": 2,
    }


def test_flickr30k_captions_first_and_images_when_they_are_brought(server, served, tmp_path):
    made = make.make_flickr(tmp_path / "flickr", 3, 2, name="flickr30k")
    (tmp_path / "json").mkdir()
    shutil.copy(next(made.rglob("dataset_flickr30k.json")), tmp_path / "json")
    (tmp_path / "json/dataset_coco.json").write_text("{}")
    pack(server.folder / "caption_datasets.zip", tmp_path / "json")
    said = fetched(served("flickr30k"), tmp_path / "data")
    assert "fill in the form at https://" in said[0]
    root = tmp_path / "data/flickr30k"
    assert [path.name for path in root.iterdir()] == ["dataset_flickr30k.json"]
    images = next(path.parent for path in made.rglob("*.jpg"))
    pack(tmp_path / "flickr30k.tgz", images, "flickr30k_images")
    fetched(served("flickr30k"), tmp_path / "data", tmp_path / "flickr30k.tgz")
    assert {
        split: len(samples) for split, samples in checked("flickr30k", root).samples.items()
    } == {
        "train": 3,
        "val": 2,
    }


def test_imagenet_from_the_archives_of_a_person(served, server, tmp_path):
    wnids, rng = ["n01440764", "n01443537"], np.random.default_rng(0)
    for wnid in wnids:
        make.save(tmp_path / f"train/{wnid}/{wnid}_1.JPEG", make.picture(rng, (32, 32)))
        (tmp_path / "tars").mkdir(exist_ok=True)
        pack(tmp_path / f"tars/{wnid}.tar", tmp_path / f"train/{wnid}")
    for number in (1, 2, 3):
        make.save(tmp_path / f"val/ILSVRC2012_val_{number:08d}.JPEG", make.picture(rng, (32, 32)))
    kit = tmp_path / "kit/data"
    kit.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", object), ("WNID", object)]
    savemat(
        kit / "meta.mat", {"synsets": np.array([[(2, wnids[0])], [(1, wnids[1])]], dtype=fields)}
    )
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    names = {"img_train.tar": "tars", "img_val.tar": "val", "devkit_t12.tar.gz": "kit"}
    for name, folder in names.items():
        pack(server.folder / f"ILSVRC2012_{name}", tmp_path / folder)
    archives = {name: server.folder / f"ILSVRC2012_{name}" for name in names}
    to = tmp_path / "data"
    with pytest.raises(UserError, match=r"pass --archive ILSVRC2012_devkit_t12.tar.gz"):
        fetched(served("imagenet"), to, archives["img_val.tar"])
    said = fetched(served("imagenet"), to, archives["img_val.tar"], archives["devkit_t12.tar.gz"])
    assert "image-net.org" in said[0] and "img_train" in said[0]
    fetched(served("imagenet"), to, archives["img_train.tar"])
    data = checked("imagenet", to / "imagenet")
    assert [(sample.image, sample.target) for sample in data.samples["train"]] == [
        (f"train/{wnid}/{wnid}_1.JPEG", number) for number, wnid in enumerate(wnids)
    ]
    found = {Path(sample.image).stem[-1]: sample.target for sample in data.samples["val"]}
    assert found == {"1": 0, "2": 1, "3": 0}
    assert not server.requests


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A Hugging Face with one repository of DataComp's."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    repository, listed = "djghosh/wds_toy_test", []
    make.save(tmp_path / "shard/0000.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "shard/0000.cls").write_text("1")
    pack(tmp_path / "0.tar", tmp_path / "shard", "s")
    files = {
        ".gitattributes": b"*",
        "classnames.txt": b"cat\ndog\n",
        "test/nshards.txt": b"1",
        "test/0.tar": (tmp_path / "0.tar").read_bytes(),
        "train/0.tar": b"R" * 900,
    }
    for path, data in files.items():
        file = server.folder / f"datasets/{repository}/resolve/main/{path}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        lfs = {"lfs": {"oid": hashlib.sha256(data).hexdigest()}} if path.endswith(".tar") else {}
        listed += [{"type": "file", "path": path, "size": len(data), **lfs}]
    tree = server.folder / f"api/datasets/{repository}/tree/main"
    tree.parent.mkdir(parents=True)
    tree.write_text(json.dumps([{"type": "directory", "path": "test"}, *listed]))
    return server


def test_webdataset_folders_come_from_hugging_face(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "get", "wds_toy"]) == 0
    assert "0.tar: sha256" in (told := capsys.readouterr().out) and "as published" in told
    root = tmp_path / "data/wds_toy"
    assert "toy " in told and "val 1" in told
    assert (root / "test/0.tar").read_bytes() == (tmp_path / "0.tar").read_bytes() and (
        root / "classnames.txt"
    ).is_file()
    assert not (root / "train").exists() and not (root / ".gitattributes").exists()
    hub.asked.clear()
    assert main(["data", "get", "wds_toy", "--train"]) == 0
    assert [path.rpartition("main/")[2] for _, path, _ in hub.asked[2:]] == ["train/0.tar"], (
        "what is there is not asked for"
    )
    assert (root / "train/0.tar").read_bytes() == b"R" * 900
    (root / "train/0.tar").unlink()
    assert main(["data", "get", "wds_other"]) == 2
    assert "Hugging Face has no clip-benchmark/wds_other" in capsys.readouterr().err
    assert main(["data", "get", "wds_other", "wds_toy"]) == 2
    assert "1 of 2 could not be got: wds_other" in capsys.readouterr().err


def test_the_command(voc, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(table.ENTRIES, "voc", voc)
    to = str(tmp_path / "data")
    assert main(["data", "get"]) == 0
    assert "voc " in (told := capsys.readouterr().out) and "imagenet" in told and "wds_NAME" in told
    assert main(["data", "get", "voc", "--to", to]) == 0
    assert "train 6 of 10582, val 3 of 1449" in capsys.readouterr().out
    assert main(["data", "get", "vox"]) == 2
    assert "did you mean voc?" in capsys.readouterr().err


def test_an_archive_that_ends_early_or_is_none(served, server, tmp_path):
    (server.folder / "caption_datasets.zip").write_bytes(b"<html>log in first</html>")
    with pytest.raises(UserError, match=r"caption_datasets.zip: no complete tar or zip"):
        fetched(served("flickr30k"), tmp_path / "data")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/dataset_flickr30k.json").write_text("{}")
    pack(server.folder / "caption_datasets.zip", tmp_path / "json")
    make.save(tmp_path / "images/1.jpg", make.picture(np.random.default_rng(0), (64, 64)))
    pack(tmp_path / "images.tgz", tmp_path / "images")
    make.truncate(tmp_path / "images.tgz")
    with pytest.raises(UserError, match="no complete tar or zip"):
        fetched(served("flickr30k"), tmp_path / "data", tmp_path / "images.tgz")
    assert not (tmp_path / "data/flickr30k").exists()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damage_behind_the_last_file_of_a_compressed_tar_is_found(tmp_path, kind):
    (tmp_path / "a.txt").write_text("a")
    with tarfile.open(path := tmp_path / f"a.tar.{kind}", f"w:{kind}") as opened:
        opened.add(tmp_path / "a.txt", "a.txt")
    assert [name for name, _ in members(path, Silent())] == ["a.txt"]
    data = bytearray(path.read_bytes())
    # its checksum: of gzip in the last eight bytes, of xz before the index, of bz2 after its first
    # ten
    place = {"gz": -8, "bz2": 10, "xz": len(data) // 2}[kind]
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="no complete tar or zip"):
        list(members(path, Silent()))


@pytest.mark.parametrize(("place", "said"), [(8, "encrypted"), (10, "compression")])
def test_a_zip_that_cannot_be_read_is_said(tmp_path, place, said):
    """``place`` in the central directory's entry: of its flags, of how it is compressed."""
    with zipfile.ZipFile(path := tmp_path / "a.zip", "w") as opened:
        opened.writestr("a.txt", "a")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + place] |= {8: 1, 10: 97}[place]
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        list(members(path, Silent()))


def test_given_archives_are_told_apart(tmp_path):
    coco = table.ENTRIES["coco"]
    here = tmp_path / "val2017.zip"
    here.touch()
    assert assign(coco, [here]) == {"val2017.zip": here}
    with pytest.raises(UserError, match=r"coco is made of train2017.zip, val2017.zip.*rename"):
        assign(coco, [tmp_path / "val.zip"])
    with pytest.raises(UserError, match="no such file"):
        assign(coco, [tmp_path / "sub/val2017.zip"])


def test_an_archive_cannot_write_elsewhere(server, served, tmp_path):
    with tarfile.open(server.folder / "VOCtrainval_11-May-2012.tar", "w") as opened:
        member = tarfile.TarInfo("VOCdevkit/VOC2012/../../../evil.txt")
        member.size = 4
        opened.addfile(member, io.BytesIO(b"evil"))
    (server.folder / "benchmark.tgz").write_bytes(b"")
    with pytest.raises(UserError, match="leads out of it"):
        fetched(served("voc"), tmp_path / "data")
    assert not list(tmp_path.rglob("evil.txt"))


def test_the_table_is_of_known_datasets():
    for name, entry in table.ENTRIES.items():
        specs = [DATASETS.find(dataset) for dataset in entry.datasets]
        assert specs and all(spec.folder == entry.folder for spec in specs), name
        for archive in entry.archives:
            algorithm, _, digest = archive.checksum.partition(":")
            assert len(digest) == {"": 0, "md5": 32, "sha1": 40, "sha256": 64}[algorithm]
            assert archive.by_hand or archive.url.startswith("http")
