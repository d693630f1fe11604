"""Label stores: reading by key, identity, damage, killed writes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from webdataset import WebDataset

from backbones.cliptex.labels import LabelStore, LabelWriter, check_labels, encode, tar_path
from cliptex_common.errors import UserError

TASKS = ("seg", "depth", "normal")


def smooth_labels(seed: int, side: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    blobs = np.stack(
        [gaussian_filter(random.normal(size=(side, side)), side / 12) for _ in range(6)]
    )
    normal = blobs[:3] / blobs[:3].std() * 0.4 + np.array([0, 0, 1.0])[:, None, None]
    return {
        "seg": blobs[3:].argmax(0).astype(np.uint8),
        "depth": (3 * blobs[3] + 7).astype(np.float32),
        "normal": (normal / np.linalg.norm(normal, axis=0)).astype(np.float32),
    }


def write(root: Path, names=("a", "b"), each=5, finish=True) -> LabelWriter:
    writer = LabelWriter(root, {"expert": "truth"}, TASKS, {"seg": ["cup", "chair", "lamp"]})
    for number, name in enumerate(names):
        with writer.shard(name) as shard:
            for i in range(each):
                shard.add(f"{name}/{i:04d}", encode(smooth_labels(number * 100 + i, 32)))
    if finish:
        writer.finish([writer.finished(name) for name in names])
    return writer


def test_store_reads_by_key_in_any_order(tmp_path):
    with pytest.raises(UserError, match="no labels"):
        LabelStore(tmp_path)
    write(tmp_path)
    store = LabelStore(tmp_path)
    assert len(store) == 10
    assert store.classes == {"seg": ["cup", "chair", "lamp"]}
    for key, seed in (("b/0003", 103), ("a/0000", 0), ("b/0000", 100)):
        maps = store.get(key)
        expected = smooth_labels(seed, 32)
        assert list(maps) == list(store.tasks_of(key)) == ["seg", "depth", "normal"]
        assert list(store.get(key, ["depth"])) == ["depth"]
        np.testing.assert_array_equal(maps["seg"], expected["seg"])
        assert (maps["normal"] * expected["normal"]).sum(0).min() > np.cos(np.radians(1))
    for key in ("a/9999", "elsewhere"):
        with pytest.raises(KeyError):
            store.get(key)
        assert store.tasks_of(key) == ()
    assert check_labels(tmp_path) == []
    samples = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))  # as any tool reads it
    assert [sample["__key__"] for sample in samples] == [f"000{i}" for i in range(5)]
    assert samples[1]["seg.png"] == encode(smooth_labels(1, 32))["seg.png"]
    write(tmp_path / "same")
    write(tmp_path / "other", each=4)
    assert LabelStore(tmp_path / "same").identity == store.identity
    assert LabelStore(tmp_path / "other").identity != store.identity


NAMES = [
    "images/t-1.2.jpg",
    "../b.tar.gz",
    "/root/c.jpg",
    "100%/d%2E.jpg",
    "e.jpg#2",
    "ü/ß.png",
    "plain",
    "folder/plain",
]


@pytest.mark.parametrize("shard", ["t-0", "folder/t-1"])
def test_pairs_of_tables_and_in_folders_of_tars_are_found(tmp_path, shard):
    """Their names in the tar escape dots, which end a key, and a leading slash."""
    writer = LabelWriter(tmp_path, {}, ["seg"])
    with writer.shard(shard) as file:
        for number, name in enumerate(NAMES):
            file.add(f"{shard}/{name}", encode({"seg": np.full((4, 4), number, np.uint8)}))
    writer.finish([writer.finished(shard)])
    store = LabelStore(tmp_path)
    for number, name in enumerate(NAMES):
        assert store.get(f"{shard}/{name}")["seg"][0, 0] == number
    for key in (f"{shard}/other", "plain", f"x/{shard}/plain"):
        assert store.tasks_of(key) == ()
    with tarfile.open(tmp_path / f"{shard}.tar") as archive:
        assert not [name for name in archive.getnames() if name.startswith(("/", ".."))]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_damage_is_found(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("labels")
    writer = write(root, each=2)
    path = tar_path(root, "b")
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:at])
    else:
        flipped = bytearray(content)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(flipped))
    assert check_labels(root)
    notes: list[str] = []
    assert writer.finished("b", notes.append) is None and "labelling shard b again" in notes[0]
    assert writer.finished("a") is not None


def test_reading_damaged_labels(tmp_path):
    write(tmp_path)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[512:1024] = bytes(512)  # the beginning of the first label
    (tmp_path / "a.tar").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"depth of a/0000 in .*a\.tar is damaged .* run the same"):
        LabelStore(tmp_path).get("a/0000")


def test_a_shard_without_its_summary_is_not_finished(tmp_path):
    """As when killed between the two renamings."""
    writer = write(tmp_path, finish=False)
    (tmp_path / "a.tar.json").unlink()
    assert writer.finished("a") is None and writer.finished("b") is not None
    others = LabelWriter(tmp_path, {"expert": "another"}, TASKS)
    assert others.finished("b") is None, "it is of the experts that labelled it"
    with pytest.raises(UserError, match="not finished"):
        LabelStore(tmp_path)
