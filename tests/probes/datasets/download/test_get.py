"""``data get``: from small archives of the published kind to folders that pass ``data check``."""

import hashlib
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import imagenet

from benchmark.parser import main
from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from probes.datasets import download
from probes.datasets.check import prepare
from probes.datasets.download import get
from probes.registry import DATASETS
from tests.probes import tiny_coco
from tests.probes.datasets import make


def pack(archive: Path, folder: Path, prefix: str = ".") -> Path:
    """Write the files of ``folder`` below ``prefix`` as a tar or zip."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, Path(prefix) / path.relative_to(folder))
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
            file.add(folder, prefix)
    return archive


def counts(data) -> dict[str, int]:
    return {split: len(samples) for split, samples in data.samples.items()}


def fetched(entry, to: Path, *archives: Path) -> list[str]:
    messages: list[str] = []
    get(entry, to, archives, Silent(), messages.append)
    return messages


NUMBERS = {
    name: tuple(map(str, range(size)))
    for name, size in (("voc", 21), ("ade20k", 150), ("imagenet", 1000))
}
CLASSES = {**NUMBERS, "coco": tiny_coco.CLASSES}


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
    messages = fetched(voc, to)
    data = checked("voc", to / "VOCdevkit/VOC2012")
    assert counts(data) == {"train": 6, "val": 3} and not data.skipped
    added = [sample.target for sample in data.samples["train"] if "Aug" in sample.target]
    assert len(added) == 2, "SBD's masks are used where VOC has none, and never those of val"
    assert np.asarray(Image.open(data.root / added[1])).max() == 4, "the mask of its own file"
    assert not (to / ".downloads").exists()
    assert "md5" in messages[0] and "as published" in messages[0]


def test_nyu_labelled(server, served, tmp_path):
    h5py = pytest.importorskip("h5py", reason="no h5py: pip install -e '.[nyu]'")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 3, 64, 48), np.uint8)  # (N, 3, W, H), as MATLAB's file has it
    depths = rng.uniform(0.5, 9.9, (5, 64, 48)).astype(np.float32)
    depths[:, :2] = 0
    with h5py.File(server.folder / "nyu_depth_v2_labeled.mat", "w") as data:
        data["images"], data["rawDepths"], data["depths"] = images, depths, depths + 1
        for key, number in (("sceneTypes", ""), ("scenes", "_0001")):
            references = data.create_dataset(key, (1, 5), dtype=h5py.ref_dtype)
            for index, scene in enumerate(["kitchen", "office", "kitchen", "bathroom", "cafe"]):
                letters = [[ord(letter)] for letter in scene + number]
                data[f"{key}{index}"] = np.array(letters, np.uint16)
                references[0, index] = data[f"{key}{index}"].ref
    savemat(server.folder / "splits.mat", {"trainNdxs": [[1], [3], [4]], "testNdxs": [[2], [5]]})
    messages = fetched(served("nyu"), tmp_path / "data")
    assert "splits.mat: sha256" in messages[1] and "publishes no checksum" in messages[1]
    data = checked("nyu-depth", tmp_path / "data/nyu")
    names = {
        split: [Path(sample.image).stem for sample in data.samples[split]]
        for split in ("train", "val")
    }
    assert names == {
        "train": ["bathroom_00003", "kitchen_00000", "kitchen_00002"],
        "val": ["cafe_00004", "office_00001"],
    }
    rooms = data.spec.units(data.root)
    assert [rooms[sample.image] for sample in data.samples["val"]] == ["cafe_0001", "office_0001"]
    sample = data.samples["val"][0]
    pixels = np.asarray(Image.open(data.root / sample.image))
    assert np.array_equal(pixels, images[4].transpose(2, 1, 0))
    stored = np.asarray(Image.open(data.root / sample.target))
    assert stored.dtype == np.uint16 and stored.shape == (48, 64) and not stored[:, :2].any()
    assert np.abs(stored / 1000 - depths[4].T).max() <= 0.0005 + 1e-6


def test_imagenet_from_archives_that_were_downloaded_by_hand(served, server, tmp_path, monkeypatch):
    wnids, rng = ["n01440764", "n01443537"], np.random.default_rng(0)
    (tmp_path / "tars").mkdir()
    for wnid in wnids:
        make.save(tmp_path / f"train/{wnid}/{wnid}_1.JPEG", make.picture(rng, (32, 32)))
        pack(tmp_path / f"tars/{wnid}.tar", tmp_path / f"train/{wnid}")
    for number in (1, 2, 3):
        make.save(tmp_path / f"val/ILSVRC2012_val_{number:08d}.JPEG", make.picture(rng, (32, 32)))
    kit = tmp_path / "kit/ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = [(2, wnids[0], "tench", "", 0), (1, wnids[1], "goldfish", "", 0)]
    fields = [(name, object) for name in names]
    savemat(kit / "meta.mat", {"synsets": np.array([[synset] for synset in synsets], dtype=fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    archives, published = {}, dict(imagenet.ARCHIVE_META)
    for part, folder in (("train", "tars"), ("val", "val"), ("devkit", "kit")):
        path = archives[part] = server.folder / published[part][0]
        pack(path, tmp_path / folder)
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (path.name, md5))
    to = tmp_path / "data"
    with pytest.raises(UserError, match=r"pass --archive ILSVRC2012_devkit_t12.tar.gz"):
        fetched(served("imagenet"), to, archives["val"])
    messages = fetched(served("imagenet"), to, archives["val"], archives["devkit"])
    assert "image-net.org" in messages[0] and "img_train" in messages[0]
    fetched(served("imagenet"), to, archives["train"])
    data = checked("imagenet", to / "imagenet")
    assert [(sample.image, sample.target) for sample in data.samples["train"]] == [
        (f"train/{wnid}/{wnid}_1.JPEG", number) for number, wnid in enumerate(wnids)
    ]
    targets = {Path(sample.image).stem[-1]: sample.target for sample in data.samples["val"]}
    assert targets == {"1": 0, "2": 1, "3": 0}
    assert sorted(path.name for path in (to / "imagenet").iterdir()) == ["train", "val"]
    assert all(path.is_file() for path in archives.values()) and not server.requests


class Hub:
    """A Hugging Face hub with one repository of DataComp's."""

    def __init__(self, tmp_path: Path) -> None:
        root = make.make_wds(tmp_path / "hub", 1, 1)
        self.files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }
        self.files[".gitattributes"] = b"*"
        self.damaged = False

    def dataset_info(self, repository, files_metadata):
        if repository != "djghosh/wds_toy_test":
            raise RepositoryNotFoundError("404", response=MagicMock())
        siblings = []
        for name, data in self.files.items():
            digest = MagicMock(sha256=hashlib.sha256(data).hexdigest())
            lfs = digest if name.endswith(".tar") else None
            siblings.append(MagicMock(rfilename=name, size=len(data), lfs=lfs))
        return MagicMock(siblings=siblings, sha="commit")

    def snapshot_download(self, repository, *, repo_type, revision, local_dir, allow_patterns):
        assert (repo_type, revision) == ("dataset", "commit")
        for name in allow_patterns:
            path = local_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[name][: 10 if self.damaged else None])
        return str(local_dir)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr("backbones.adapters.common.hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def test_webdataset_folders_come_from_the_hub(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DATASETS, "data", dict(DATASETS))
    root = tmp_path / "data/wds_toy"
    assert main(["data", "get", "wds_toy", "--dry-run"]) == 0 and not root.exists()
    hub.damaged = True
    assert main(["data", "get", "wds_toy"]) == 2
    assert "0.tar was damaged" in capsys.readouterr().err and not (root / "test/0.tar").exists()
    hub.damaged = False
    assert main(["data", "get", "wds_toy"]) == 0
    assert "val 4" in capsys.readouterr().out
    assert not (root / "train").exists() and not (root / ".gitattributes").exists()
    assert main(["data", "get", "wds_toy", "--train"]) == 0
    assert (root / "train/0.tar").read_bytes() == hub.files["train/0.tar"]
    assert main(["data", "get", "wds_other", "wds_toy"]) == 2
    assert "failed: wds_other" in capsys.readouterr().err


def test_the_table_is_of_known_datasets():
    for name, entry in download.ENTRIES.items():
        specs = [DATASETS.find(dataset) for dataset in entry.datasets]
        assert specs and all(spec.folder == entry.folder for spec in specs), name
        for archive in entry.archives:
            assert archive.manual or archive.url.startswith("http")


def test_a_wrong_checksum_is_refused_and_the_next_attempt_succeeds(voc, server, tmp_path):
    archive = server.folder / "benchmark.tgz"
    content = archive.read_bytes()
    archive.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    to = tmp_path / "data"
    with pytest.raises(UserError, match=r"benchmark.tgz is damaged.*run the command again"):
        fetched(voc, to)
    assert not (to / "VOCdevkit").exists()
    archive.write_bytes(content)
    server.requests.clear()
    fetched(voc, to)
    paths = [path for _, path, _ in server.requests]
    assert paths == ["/benchmark.tgz"], "intact archives are kept"
    archive_of_user = tmp_path / "VOCtrainval_11-May-2012.tar"
    archive_of_user.write_bytes(b"another")
    with pytest.raises(UserError, match="get it again"):
        fetched(voc, tmp_path / "other", archive_of_user)
    assert archive_of_user.exists(), "a user's file is not removed"


def test_an_error_while_unpacking_leaves_no_partial_folder(voc, server, served, tmp_path):
    to = tmp_path / "data"
    pack(server.folder / "benchmark.tgz", tmp_path / "made", "something_else")
    with pytest.raises(UserError, match="no folder benchmark_RELEASE/dataset"):
        fetched(served("voc"), to)
    assert not (to / "VOCdevkit").exists() and not (to / ".downloads/voc/unpacked").exists()
    assert (to / ".downloads/voc/VOCtrainval_11-May-2012.tar").is_file()


def test_errors_before_the_first_request(voc, server, tmp_path, monkeypatch):
    make.make_voc(tmp_path / "data/VOCdevkit/VOC2012")
    with pytest.raises(UserError, match="exists; move it away"):
        fetched(voc, tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"voc needs .* free some space"):
        fetched(voc, tmp_path / "other")
    assert not server.requests


def test_ade20k_and_coco(server, served, tmp_path):
    ade, coco = make.make_ade(tmp_path / "ade"), tiny_coco.write(tmp_path / "coco", 4, 3)
    pack(server.folder / "ADEChallengeData2016.zip", ade, "ADEChallengeData2016")
    for part in ("train2017", "val2017", "annotations"):
        name = "annotations_trainval2017" if part == "annotations" else part
        pack(server.folder / f"{name}.zip", coco / part, part)
    for name, folder in (("ade20k", "ade/ADEChallengeData2016"), ("coco", "coco")):
        fetched(served(name), tmp_path / "data")
        assert counts(checked(name, tmp_path / "data" / folder)) == {"train": 4, "val": 3}


def test_nyu_raw_frames(served, tmp_path):
    source = tmp_path / "nyu"
    rng = np.random.default_rng(0)
    for split, scene, frames in (("train", "kitchen_0028b", 3), ("test", "bathroom", 2)):
        lines = []
        for index in range(frames):
            image, depth = f"{scene}/rgb_{index:05d}.jpg", f"{scene}/sync_depth_{index:05d}.png"
            make.save(source / image, make.picture(rng, (64, 48)))
            make.save(source / depth, rng.integers(700, 9900, (48, 64), dtype=np.uint16))
            lines.append(f"{'/' * (split == 'train')}{image} {depth} 518.8579\n")
        (source / f"nyu_{split}.txt").write_text("".join(lines))
    with pytest.raises(UserError, match="needs manual downloads"):
        fetched(served("nyu-24k"), tmp_path / "data")
    fetched(served("nyu-24k"), tmp_path / "data", pack(tmp_path / "nyu.zip", source, "nyu"))
    data = checked("nyu-depth", tmp_path / "data/nyu")
    assert data.samples["train"][0].image == "images/train/kitchen_0028b_00000.jpg"
    assert counts(data) == {"train": 3, "val": 2}


def test_flickr30k_captions_then_images(server, served, tmp_path):
    source = make.make_flickr(tmp_path / "flickr", 3, 2)
    (tmp_path / "json").mkdir()
    shutil.move(source / "dataset_flickr30k.json", tmp_path / "json")
    (tmp_path / "json/dataset_coco.json").write_text("{}")
    pack(server.folder / "caption_datasets.zip", tmp_path / "json")
    messages = fetched(served("flickr30k"), tmp_path / "data")
    assert "fill in the form at https://" in messages[0]
    root = tmp_path / "data/flickr30k"
    assert [path.name for path in root.iterdir()] == ["dataset_flickr30k.json"]
    images = pack(tmp_path / "flickr30k.tgz", source / "images", "flickr30k_images")
    fetched(served("flickr30k"), tmp_path / "data", images)
    assert counts(checked("flickr30k", root)) == {"train": 3, "val": 2}


def test_a_page_in_place_of_an_archive(served, server, tmp_path):
    (server.folder / "caption_datasets.zip").write_bytes(b"<html>log in first</html>")
    with pytest.raises(UserError, match=r"caption_datasets.zip is not a complete tar or zip"):
        fetched(served("flickr30k"), tmp_path / "data")


def test_the_command(voc, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.ENTRIES, "voc", voc)
    assert main(["data", "get"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("voc ", "imagenet", "wds_NAME"))
    assert main(["data", "get", "voc", "--to", str(tmp_path / "data")]) == 0
    assert "train 6 of 10582, val 3 of 1449" in capsys.readouterr().out
    assert main(["data", "get", "vox"]) == 2
    assert "did you mean voc?" in capsys.readouterr().err
