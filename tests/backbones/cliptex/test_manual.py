"""Manual labels: read from folders by pair, and joined with pseudo-labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from backbones.cliptex.labelling import LabelSettings, ManualLabels, make_labels
from backbones.cliptex.labels import JoinedLabels, LabelStore, check_labels
from backbones.cliptex.pairs import open_pairs
from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from tests.backbones.cliptex import toy


def write_files(root, keys):
    """The labels of these pairs in the official layouts."""
    folders = {name: root / name for name in ("seg", "depth", "normal")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for key in keys:
        number = key.split("/")[-1]
        labels = toy.scene(int(number))[2]
        colours = np.moveaxis((labels["normal"] + 1) * 127.5, 0, -1)
        for name, pixels in (
            ("seg", labels["seg"]),
            ("depth", (1000 / labels["depth"]).round().astype(np.uint16)),
            ("normal", colours.round().astype(np.uint8)),
        ):
            Image.fromarray(pixels).save(folders[name] / f"{number}.png")
    return folders


@pytest.fixture
def pairs(tmp_path):
    return open_pairs(toy.write_pairs(tmp_path / "pairs", 12, 3))


def make(pairs, folders, out, notify=print):
    manual = [
        ManualLabels(task, folder, toy.CLASSES if task == "seg" else ())
        for task, folder in folders.items()
    ]
    return make_labels(pairs, manual, out, LabelSettings(), Silent(), notify)


def test_some_pairs_are_labelled_and_the_others_are_no_failure(pairs, tmp_path):
    keys = [pairs.key(index) for index in (0, 1, 5)]
    folders = write_files(tmp_path / "mine", keys)
    (folders["depth"] / "000000000.png").unlink()
    (folders["seg"] / "elsewhere.png").write_bytes(b"of no pair")
    notes = []
    manifest = make(pairs, folders, tmp_path / "labels", notes.append)
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (3, 3, [])
    assert manifest["files"] == {"seg": 3, "depth": 2, "normal": 3}
    assert notes == [f"1 of 4 files in {folders['seg']} belong to no pair"]
    assert check_labels(tmp_path / "labels") == []
    store = LabelStore(tmp_path / "labels")
    assert store.classes == {"seg": list(toy.CLASSES)}
    assert [key for key in map(pairs.key, range(12)) if store.tasks_of(key)] == keys
    assert store.tasks_of("00000/000000000") == ("seg", "normal")
    target = toy.scene(int(keys[1].split("/")[-1]))[2]
    labels = store.get(keys[1])
    np.testing.assert_array_equal(labels["seg"], target["seg"])
    unit = (target["depth"] - target["depth"].min()) / np.ptp(target["depth"])
    assert np.abs(labels["depth"] - unit).max() < 0.002  # of millimetres
    assert (labels["normal"] * target["normal"]).sum(0).min() > np.cos(np.radians(1.5))

    pseudo = toy.ToyLabels(("depth", "normal"))
    joined = JoinedLabels([store, pseudo])
    assert joined.tasks_of(keys[0]) == ("seg", "normal", "depth")
    assert joined.tasks_of(pairs.key(3)) == ("depth", "normal")
    both = joined.get(keys[0])
    np.testing.assert_array_equal(both["normal"], store.get(keys[0])["normal"])
    np.testing.assert_array_equal(both["depth"], pseudo.get(keys[0])["depth"])
    assert joined.identity != store.identity
    mismatched = toy.ToyLabels()
    mismatched.classes = {"seg": ("x", "y", "z")}
    with pytest.raises(UserError, match="disagree"):
        JoinedLabels([mismatched, store])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((32, 32), 3, np.uint8), "it has class 3, and only 3 have names"),
        (np.zeros((32, 64), np.uint8), "another shape than its image of 32 × 32"),
        (np.zeros((32, 32, 3), np.uint8), "a mask has one number a pixel"),
        (None, "cannot identify"),
    ],
)
def test_unusable_files(pairs, tmp_path, mask, message):
    folders = write_files(tmp_path / "mine", map(pairs.key, range(12)))
    path = folders["seg"] / "000000004.png"
    Image.fromarray(mask).save(path) if mask is not None else path.write_bytes(b"no picture")
    manifest = make(pairs, folders, tmp_path / "labels")
    assert (manifest["pairs_in"], manifest["pairs_out"]) == (12, 11)
    ((key, reason),) = manifest["failed"]
    assert key == "00001/000000004" and message in reason and str(path) in reason
    path.with_name("000000007.png").write_bytes(b"no picture either")
    with pytest.raises(UserError, match="2 of 12 pairs cannot be read"):
        make(pairs, folders, tmp_path / "others")
