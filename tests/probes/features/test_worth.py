"""``cache=auto``: keeps features where that is quicker, says why, and gives the same numbers either
way."""

from __future__ import annotations

import dataclasses
import json

import pytest

import probes.catalog  # noqa: F401
from probes.dense import group
from probes.dense.config import dense_config
from probes.features import budget, worth
from probes.features.store import room, root
from probes.registry import PROBES
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import Recorder, context

SMALL = {
    "size": 48,
    "batch_size": 4,
    "warmup": 0.0,
    "max_iters": 4,
    "lr": 0.01,
    "feature_stride": 8,
    "fixed_crops": 2,
}
PROBE = PROBES["segmentation/linear"]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path):
    return tiny_dense.make(tmp_path / "data", "segmentation", train=4, val=2)


def made(tmp_path, data, recorder=None, **change):
    return context(tmp_path, data, PROBE.settings_type(**{**SMALL, **change}), recorder=recorder)


def verdict(tmp_path, data, drawn: int) -> tuple[bool, str]:
    around = made(tmp_path, data, cache="fp16")
    return worth.keeping_pays(dense_config(PROBE, around), around, drawn)


def test_it_weighs_encoding_against_the_disk(tmp_path, data, monkeypatch):
    monkeypatch.setattr(worth, "seconds_to_encode", lambda *args: 0.05)
    monkeypatch.setattr(worth, "disk_speed", lambda folder: (1e8, 1e8))
    assert (
        verdict(tmp_path, data, drawn=16)[0] is False
    )  # as many crops as there are to keep: nothing is saved
    keeps, why = verdict(tmp_path, data, drawn=200)
    assert (
        keeps
        and "50.0 ms to encode" in why
        and "100 MB/s: about 1 s with kept features" in why
        and "10 s without" in why
    )
    monkeypatch.setattr(worth, "disk_speed", lambda folder: (1e4, 1e4))
    assert verdict(tmp_path, data, drawn=200)[0] is False
    monkeypatch.setattr(worth, "disk_speed", lambda folder: (1e8, 1e8))
    monkeypatch.setenv("CLIPTEX_CACHE_GB", "0.00001")
    keeps, why = verdict(tmp_path, data, drawn=10**6)
    assert not keeps and "there is room for 0.0 MB" in why


def test_both_ways_give_the_same_and_say_so(tmp_path, data, monkeypatch):
    results = {}
    for keeps in (True, False):
        monkeypatch.setattr(group, "keeping_pays", lambda *args, keeps=keeps: (keeps, "a test"))
        recorder = Recorder()
        results[keeps] = PROBE.run(made(tmp_path / str(keeps), data, recorder))
        encoded = [name for name, _ in recorder.started if name.startswith("encoding")]
        assert bool(encoded) is keeps
    assert "cache=auto: features are kept: a test" in results[True].notes
    assert "cache=auto: features are encoded each time: a test" in results[False].notes
    assert results[True].metrics["mIoU"] == pytest.approx(results[False].metrics["mIoU"], abs=0.02)
    assert "rounded='fp16'" in results[False].config


def test_what_was_decided_stays(tmp_path, data, monkeypatch):
    asked = []
    monkeypatch.setattr(
        group, "keeping_pays", lambda *args: asked.append(args[2]) or (True, "a test")
    )
    around = made(tmp_path / "w", data)
    for _ in range(2):
        ((_, decided),), said = group.decided([(PROBE, around)])
        assert decided.settings.cache == "fp16" and said
    assert asked == [4 * 4] and json.loads((around.work_dir / "cache.json").read_text()) == [
        True,
        "a test",
    ]


def test_there_is_nothing_to_decide_where_nothing_repeats(tmp_path, data):
    for change in ({"fixed_crops": 0}, {"cache": "none"}, {"cache": "fp16"}, {"flip_test": True}):
        around = made(tmp_path, data, **change)
        assert group.decided([(PROBE, around)]) == ([(PROBE, around)], [])
        assert "rounded" not in str(dense_config(PROBE, dataclasses.replace(around)).model)


def test_features_that_are_there_are_used(tmp_path, data):
    PROBE.run(made(tmp_path / "w", data, cache="fp16"))
    assert verdict(tmp_path, data, drawn=1) == (True, "they are there")


def test_the_disk_and_the_backbone_are_really_measured(tmp_path, data):
    write, read = worth.disk_speed(root())
    assert write > 0 and read > 0 and not list(root().iterdir())
    keeps, why = verdict(tmp_path, data, drawn=10**6)
    assert keeps and "ms to encode" in why
    assert 0 < room() <= budget.budget(root())
