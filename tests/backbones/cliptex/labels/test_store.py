"""The label store: what is read is what was written, within the error said; damage and killed
writes are found."""

from __future__ import annotations

import json
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from backbones.cliptex.labels.shards import tar_path
from backbones.cliptex.labels.store import LABEL_SIDE, LabelStore, LabelWriter, check_labels, encode
from common.errors import UserError
from tests.forks import Fork

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
        finish_store(writer, names)
    return writer


def finish_store(writer: LabelWriter, names) -> dict:
    return writer.finish([writer.finished(name) for name in names])


def test_store_reads_by_key_in_any_order(tmp_path):
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
    with pytest.raises(KeyError):
        store.get("a/9999")
    with pytest.raises(KeyError):
        store.get("elsewhere")
    assert store.tasks_of("a/9999") == store.tasks_of("elsewhere") == ()
    assert check_labels(tmp_path) == []


def test_a_shard_is_a_tar_that_any_tool_reads(tmp_path):
    """Keys as in the tar of the pairs, and webdataset's own reader agrees with ours."""
    from webdataset import WebDataset

    write(tmp_path, names=("a",), each=2)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == [
            f"{i:04d}.{suffix}"
            for i in range(2)
            for suffix in ("depth.png", "normal.webp", "seg.png")
        ]
    samples = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["0000", "0001"]
    assert samples[1]["seg.png"] == encode(smooth_labels(1, 32))["seg.png"]


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
    """Dots, which would end a key in a tar, and what leads out of a folder are written
    otherwise."""
    writer = LabelWriter(tmp_path, {}, ["seg"])
    with writer.shard(shard) as file:
        for number, name in enumerate(NAMES):
            file.add(f"{shard}/{name}", encode({"seg": np.full((4, 4), number, np.uint8)}))
    finish_store(writer, [shard])
    store = LabelStore(tmp_path)
    assert [int(store.get(f"{shard}/{name}")["seg"][0, 0]) for name in NAMES] == list(
        range(len(NAMES))
    )
    assert (
        store.tasks_of(f"{shard}/other")
        == store.tasks_of("plain")
        == store.tasks_of(f"x/{shard}/plain")
        == ()
    )
    with tarfile.open(tmp_path / f"{shard}.tar") as archive:
        assert not [name for name in archive.getnames() if name.startswith(("/", ".."))]


def test_same_labels_same_identity(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert LabelStore(tmp_path / "one").identity == LabelStore(tmp_path / "two").identity
    write(tmp_path / "three", each=4)
    assert LabelStore(tmp_path / "one").identity != LabelStore(tmp_path / "three").identity


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    writer = LabelWriter(tmp_path, {}, TASKS)
    with pytest.raises(RuntimeError), writer.shard("a") as shard:
        shard.add("a/1", encode(smooth_labels(0, 16)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert writer.finished("a") is None


def test_a_key_twice_is_refused(tmp_path):
    writer = LabelWriter(tmp_path, {}, TASKS)
    with pytest.raises(ValueError, match="already"), writer.shard("a") as shard:
        shard.add("k", {"seg.png": b""})
        shard.add("k", {"seg.png": b""})


def test_unfinished_store_says_so(tmp_path):
    with pytest.raises(UserError, match="no labels"):
        LabelStore(tmp_path)
    write(tmp_path, finish=False)
    with pytest.raises(UserError, match="not finished"):
        LabelStore(tmp_path)


def test_other_experts_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="other experts"):
        LabelWriter(tmp_path, {"expert": "another"}, TASKS, {"seg": ["cup", "chair", "lamp"]})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        LabelWriter(tmp_path / "file", {}, TASKS)


@pytest.mark.parametrize("field", ["shards", "tasks", "classes", "key", "version"])
def test_a_malformed_manifest_is_one_line(tmp_path, field):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[field]
    path.write_text(json.dumps(manifest))
    for read in (LabelStore, check_labels):
        with pytest.raises(UserError, match="is not readable") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_counts(tmp_path):
    writer = LabelWriter(tmp_path, {}, TASKS)
    with writer.shard("a") as shard:
        shard.add("a/0", encode(smooth_labels(0, 16)))
        shard.fail("a/1", "not a readable image")
    manifest = finish_store(writer, ["a"])
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (
        2,
        1,
        [["a/1", "not a readable image"]],
    )
    manifest["pairs_in"] = 3
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "counts do not agree" in check_labels(tmp_path)[0]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def test_reading_damaged_labels_says_so(tmp_path, monkeypatch):
    write(tmp_path)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"is damaged .*exceeds limit"),
    ):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        LabelStore(tmp_path).get("a/0000")
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[512:1024] = bytes(512)  # the beginning of the first label
    (tmp_path / "a.tar").write_bytes(bytes(content))
    with pytest.raises(
        UserError,
        match=r"depth of a/0000 in .*a\.tar is damaged .* run the same label command again",
    ):
        LabelStore(tmp_path).get("a/0000")


def write_for_ever(out: Path, marker: Path) -> None:
    writer = write(out, names=("a",), finish=False)
    with writer.shard("b") as shard:
        for i in range(100_000):
            shard.add(f"b/{i}", encode(smooth_labels(i, 32)))
            if i == 20:
                marker.touch()


def test_kill_9_while_writing_leaves_nothing_that_counts(tmp_path, tmp_path_factory):
    marker = tmp_path_factory.mktemp("killed") / "writing"
    victim = Fork(write_for_ever, tmp_path, marker, output=marker.with_name("said"))
    victim.wait_for(marker.parent, marker.name)
    time.sleep(0.05)
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["a.tar"]
    writer = write(tmp_path, finish=False, names=())
    assert writer.finished("a") is not None
    assert writer.finished("b") is None
    with writer.shard("b") as shard:
        shard.fail("b/0", "for a test")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.tar",
        "a.tar.json",
        "b.tar",
        "b.tar.json",
    ]  # nothing left behind
    assert writer.finished("b")["failed"] == [["b/0", "for a test"]]


def test_a_tar_without_what_was_said_of_it_does_not_count(tmp_path):
    """Killed between the two renamings, or while a damaged shard was written again."""
    writer = write(tmp_path, finish=False)
    (tmp_path / "a.tar.json").unlink()
    assert writer.finished("a") is None and writer.finished("b") is not None
    with pytest.raises(UserError, match="not finished"):
        LabelStore(tmp_path)


def test_smooth_labels_are_small():
    """The goal is 12 kB for three labels of an image, at the resolution that they are kept at."""
    sizes = [sum(map(len, encode(smooth_labels(seed, LABEL_SIDE)).values())) for seed in range(5)]
    assert np.mean(sizes) < 12_000


def test_labels_take_the_place_of_no_other_tar(tmp_path):
    write(tmp_path / "store", names=("a",))
    with tarfile.open(tmp_path / "store" / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0001.jpg"))
    before = (tmp_path / "store" / "b.tar").read_bytes()
    writer = write(tmp_path / "again", names=("a",), finish=False)
    with writer.shard("a"):  # its own
        pass
    with pytest.raises(UserError, match="holds no labels"):
        LabelWriter(tmp_path / "store", writer.identity, writer.tasks, writer.classes).shard("b")
    assert (tmp_path / "store" / "b.tar").read_bytes() == before
