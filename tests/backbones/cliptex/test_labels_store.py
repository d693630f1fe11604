"""The label store: what is read is what was written, within the error said; damage and killed writes are found."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from backbones.cliptex import planes
from backbones.cliptex.labels import DamagedShard, LabelStore, LabelWriter, check_labels, encode
from backbones.errors import UserError
from tests.forks import Fork

SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def smooth_labels(seed: int, side: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    blobs = np.stack([gaussian_filter(random.normal(size=(side, side)), side / 12) for _ in range(6)])
    normal = blobs[:3] / blobs[:3].std() * 0.4 + np.array([0, 0, 1.0])[:, None, None]
    return {
        "seg": blobs[3:].argmax(0).astype(np.uint8),
        "depth": (3 * blobs[3] + 7).astype(np.float32),
        "normal": (normal / np.linalg.norm(normal, axis=0)).astype(np.float32),
        "confidence": np.exp(2 + blobs[4] / blobs[4].std()).astype(np.float32),
    }


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)  # atan2 of cross and dot: exact for every angle
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b, axis=0), axis=0), (a * b).sum(0)))


@FEW
@given(SIDES, st.sampled_from([np.uint8, np.uint16]), st.data())
def test_segmentation_is_lossless(side, dtype, data):
    seg = data.draw(hnp.arrays(dtype, side))
    plane = planes.encode_seg(seg)
    back = planes.decode_seg(plane.data, plane.meta)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, seg)


@FEW
@given(SIDES, st.floats(1e-3, 1e6), st.floats(-1e3, 1e3), st.integers(0, 2**32), st.booleans())
def test_depth_error_is_bounded(side, scale, shift, seed, holes):
    random = np.random.default_rng(seed)
    depth = (scale * random.random(side) + shift).astype(np.float32)  # noise: the hardest content
    known = random.random(side) < 0.7 if holes else np.ones(side, bool)
    known[0, 0] = True
    plane = planes.encode_depth(np.where(known, depth, np.nan))
    back = planes.decode_depth(plane.data, plane.meta)
    np.testing.assert_array_equal(np.isfinite(back), known)
    low, high = depth[known].min(), depth[known].max()
    truth = (depth[known] - low) / max(high - low, 1e-12) if high > low else np.zeros(known.sum())
    error = np.abs(back[known] - truth)
    assert np.median(error) < 0.005
    assert np.quantile(error, 0.99) < 0.011
    assert plane.error["median"] == pytest.approx(100 * np.median(error), abs=0.02)


@FEW
@given(SIDES, st.integers(0, 2**32), st.booleans())
def test_normal_error_is_bounded_over_the_whole_sphere(side, seed, holes):
    random = np.random.default_rng(seed)
    normal = random.normal(size=(3, *side))
    normal /= np.linalg.norm(normal, axis=0)
    known = random.random(side) < 0.7 if holes else np.ones(side, bool)
    plane = planes.encode_normals((normal * known).astype(np.float32))
    back = planes.decode_normals(plane.data, plane.meta)
    np.testing.assert_array_equal(np.linalg.norm(back, axis=0) > 0.5, known)
    if known.any():
        error = degrees(back, normal)[known]
        lossless = plane.meta["codec"] == "webp"
        assert error.max() < (1.0 if lossless else 12.0)  # rounding alone: 0.95° at most
        assert np.quantile(error, 0.99) < planes.NORMAL.p99 + 0.01
        if known.sum() > 200:
            assert np.median(error) < 0.5


def test_smooth_labels_stay_within_tolerance_and_what_is_said_is_what_is():
    for seed in range(5):
        truth = smooth_labels(seed, 160)
        coded = encode(truth)
        assert coded["depth"].meta["codec"].startswith("avif") or not planes.HAS_AVIF
        depth = planes.decode_depth(coded["depth"].data, coded["depth"].meta)
        unit = (truth["depth"] - truth["depth"].min()) / np.ptp(truth["depth"])
        assert np.median(np.abs(depth - unit)) < 0.0025
        assert np.abs(depth - unit).max() == pytest.approx(coded["depth"].error["max"] / 100, abs=1e-5)
        normal = planes.decode_normals(coded["normal"].data, coded["normal"].meta)
        error = degrees(normal, truth["normal"])
        assert np.median(error) < 0.5
        assert error.max() == pytest.approx(coded["normal"].error["max"], abs=0.02)
        confidence = planes.decode_confidence(coded["confidence"].data, coded["confidence"].meta)
        assert np.median(np.abs(np.log2(confidence / truth["confidence"]))) < 0.14


def test_axes_are_exact():
    axes = np.concatenate([np.eye(3), -np.eye(3)]).T.reshape(3, 2, 3)
    plane = planes.encode_normals(axes)
    np.testing.assert_allclose(planes.decode_normals(plane.data, plane.meta), axes, atol=1e-7)


@pytest.mark.parametrize("kind", [np.zeros, np.ones])
def test_constant_depth(kind):
    plane = planes.encode_depth(kind((40, 40), np.float32))
    assert (planes.decode_depth(plane.data, plane.meta) == 0).all()


def test_all_unknown():
    coded = encode({"depth": np.full((8, 8), np.nan, np.float32), "normal": np.zeros((3, 8, 8), np.float32)})
    assert np.isnan(planes.decode_depth(coded["depth"].data, coded["depth"].meta)).all()
    assert (planes.decode_normals(coded["normal"].data, coded["normal"].meta) == 0).all()


def write(root: Path, names=("a", "b"), each=5, finish=True) -> LabelWriter:
    writer = LabelWriter(root, {"expert": "truth"}, ["cup", "chair", "lamp"])
    for number, name in enumerate(names):
        with writer.shard(name) as shard:
            for i in range(each):
                shard.add(f"{name}/{i:04d}", encode(smooth_labels(number * 100 + i, 32)), 32 * 32)
    if finish:
        writer.finish(names)
    return writer


def test_store_reads_by_key_in_any_order(tmp_path):
    write(tmp_path)
    store = LabelStore(tmp_path)
    assert len(store) == 10
    assert store.classes == ["cup", "chair", "lamp"]
    for key, seed in (("b/0003", 103), ("a/0000", 0), ("b/0000", 100)):
        maps = store.get(key)
        truth = smooth_labels(seed, 32)
        assert list(maps) == ["seg", "depth", "normal", "confidence"]
        np.testing.assert_array_equal(maps["seg"], truth["seg"])
        assert np.median(degrees(maps["normal"], truth["normal"])) < 0.5
    with pytest.raises(KeyError):
        store.get("a/9999")
    with pytest.raises(KeyError):
        store.get("elsewhere")
    assert [key for key, _ in store] == [f"{name}/{i:04d}" for name in "ab" for i in range(5)]
    assert check_labels(tmp_path) == []


def test_keys_that_do_not_name_their_shard(tmp_path):
    writer = LabelWriter(tmp_path, {})
    for name in ("t-0", "t-1"):
        with writer.shard(name) as shard:
            for i in range(3):
                shard.add(f"images/{name}{i}.jpg", encode({"seg": np.full((4, 4), i, np.uint8)}))
    writer.finish(["t-0", "t-1"])
    assert LabelStore(tmp_path).get("images/t-12.jpg")["seg"][0, 0] == 2


def test_same_labels_same_identity(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert LabelStore(tmp_path / "one").identity == LabelStore(tmp_path / "two").identity
    write(tmp_path / "three", each=4)
    assert LabelStore(tmp_path / "one").identity != LabelStore(tmp_path / "three").identity


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    writer = LabelWriter(tmp_path, {})
    with pytest.raises(RuntimeError), writer.shard("a") as shard:
        shard.add("a/1", encode(smooth_labels(0, 16)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert writer.finished("a") is None


def test_a_key_twice_is_refused(tmp_path):
    writer = LabelWriter(tmp_path, {})
    with pytest.raises(ValueError, match="already"), writer.shard("a") as shard:
        shard.add("k", {})
        shard.add("k", {})


def test_unfinished_store_says_so(tmp_path):
    with pytest.raises(UserError, match="no labels"):
        LabelStore(tmp_path)
    write(tmp_path, finish=False)
    with pytest.raises(UserError, match="not finished"):
        LabelStore(tmp_path)


def test_other_experts_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="other experts"):
        LabelWriter(tmp_path, {"expert": "another"}, ["cup", "chair", "lamp"])


def test_counts(tmp_path):
    writer = LabelWriter(tmp_path, {})
    with writer.shard("a") as shard:
        shard.add("a/0", encode(smooth_labels(0, 16)))
        shard.fail("a/1", "not a readable image")
    manifest = writer.finish(["a"])
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (
        2,
        1,
        [["a/1", "not a readable image"]],
    )
    manifest["pairs_in"] = 3
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert "counts do not agree" in check_labels(tmp_path)[0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_damage_is_found(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("labels")
    writer = write(root, each=2)
    path = writer.path("b")
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(flipped))
    assert check_labels(root)
    with pytest.raises(DamagedShard):
        writer.finished("b")
    assert writer.finished("a") is not None


def test_reading_a_changed_record_says_so(tmp_path):
    writer = write(tmp_path)
    content = bytearray(writer.path("a").read_bytes())
    content[300] ^= 255
    writer.path("a").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"a\.labels has changed on disk; run the same label command again"):
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
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".labels"] == ["a.labels"]
    writer = write(tmp_path, finish=False, names=())
    assert writer.finished("a") is not None
    assert writer.finished("b") is None
    with writer.shard("b"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.labels", "b.labels"]  # nothing left behind


def test_rendered_and_smooth_labels_are_small():
    """The goal is 12 kB for three labels at 224 × 224."""
    sizes = [
        sum(len(plane.data) for name, plane in encode(smooth_labels(seed, 224)).items() if name != "confidence")
        for seed in range(5)
    ]
    assert np.mean(sizes) < 12_000
