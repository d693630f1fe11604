"""Labelling: every pair once, nothing lost, the same whatever was killed, resumed or split."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.data.source import decode_image
from backbones.cliptex.labels.labeller import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.labels.picture import draw_labels
from backbones.cliptex.labels.store import LabelStore, check_labels
from backbones.cliptex.protocols import Silent
from common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts
from tests.forks import Fork


def label(pattern: str, out: Path, experts=None, settings=None, notes=None, **more):
    """Every shard in order, in this process; returns the manifest."""
    source, experts, settings = (
        open_pairs(pattern),
        experts or toy_experts.all_experts(),
        settings or LabelSettings(),
    )
    writer = labels_writer(source, experts, settings, out)
    labeller = Labeller(source, experts, writer, settings, **{"batch_size": 4, **more})
    for shard in source.shards:
        labeller.label(shard, Silent(), notes.append if notes is not None else print)
    return finish_labels(source, writer)


@pytest.fixture(autouse=True)
def one_thread():
    """As everything that labels computes with one number of threads: sums depend on it in their
    last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(first: Path, second: Path) -> bool:
    return LabelStore(first).identity == LabelStore(second).identity


@pytest.fixture
def labelled(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs")
    return pattern, tmp_path / "labels", label(pattern, tmp_path / "labels")


def test_every_pair_once_with_every_label(labelled):
    pattern, out, manifest = labelled
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (12, 12, [])
    assert check_labels(out) == []
    store, source = LabelStore(out), open_pairs(pattern)
    experts = toy_experts.all_experts()
    for index in range(len(source)):
        pair = source[index]
        maps = store.get(pair.key)
        number, position = int(pair.key[6:11]), int(pair.key[-4:])
        size = (40, 56 if position % 3 == 2 else 40)
        assert {name: maps[name].shape[-2:] for name in maps} == dict.fromkeys(
            ("seg", "depth", "normal"), size
        ), number
    # what is stored is what the experts say of that very image
    pair = source[4]
    image = torch.from_numpy(decode_image(pair.image)).permute(2, 0, 1)[None]
    maps = store.get(pair.key)
    np.testing.assert_array_equal(maps["seg"], experts[0].predict(image)["seg"][0])
    depth = experts[1].predict(image)["depth"][0]
    unit = (depth - depth.min()) / np.ptp(depth)
    assert np.abs(maps["depth"] - unit).max() < 3e-5
    cosine = (maps["normal"] * experts[2].predict(image)["normal"][0]).sum(0)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1


def test_cost_is_recorded(labelled):
    cost = labelled[2]["cost"]
    assert cost["images"] == 12
    assert (
        set(cost["flops_per_image"]) == set(cost["expert_seconds"]) == {"unet", "dpt", "nll-angmf"}
    )
    assert min(cost["flops_per_image"].values()) > 1e5
    assert cost["flops"] == 12 * sum(cost["flops_per_image"].values())
    assert 0 < sum(cost["expert_seconds"].values()) < cost["seconds"]


def test_again_changes_nothing_and_damage_is_mended(labelled):
    pattern, out, manifest = labelled
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")}
    notes: list[str] = []
    assert label(pattern, out, notes=notes)["shards"] == manifest["shards"]
    assert notes == []
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == {
        n: t for n, (t, _) in before.items()
    }
    damaged = out / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert label(pattern, out, notes=notes)["shards"] == manifest["shards"]
    assert len(notes) == 1
    assert "00001.tar is cut off" in notes[0]
    assert damaged.read_bytes() == before["00001.tar"][1]
    assert (out / "00000.tar").stat().st_mtime_ns == before["00000.tar"][0]


def test_workers_change_nothing(labelled, tmp_path):
    label(labelled[0], tmp_path / "other", num_workers=5)
    assert same(labelled[1], tmp_path / "other")


def test_other_experts_or_settings_are_refused(labelled):
    with pytest.raises(UserError, match="other experts or pairs"):
        label(labelled[0], labelled[1], settings=LabelSettings(label_side=16))


def test_a_corrupt_image_is_named(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "one", corrupt=("000010003",))
    manifest = label(pattern, tmp_path / "labels")
    assert (manifest["pairs_in"], manifest["pairs_out"]) == (12, 11)
    assert [key for key, _ in manifest["failed"]] == ["00001/000010003"]
    assert "not a readable image" in manifest["failed"][0][1]
    assert check_labels(tmp_path / "labels") == []
    with pytest.raises(KeyError):
        LabelStore(tmp_path / "labels").get("00001/000010003")


def test_an_expert_without_a_finite_word_is_named(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs", shards=1, each=2)
    expert = toy_experts.make_expert("dpt")
    predict = expert.predict

    def broken(images):
        labels = predict(images)
        labels["depth"][0] = np.nan
        return labels

    expert.predict = broken
    manifest = label(pattern, tmp_path / "l", [expert], batch_size=3)
    assert manifest["pairs_out"] == 1
    assert manifest["failed"] == [["00000/000000000", "no finite depth from its expert"]]


def test_shards_in_any_order_are_the_same(labelled, tmp_path):
    """By other processes, each with its own experts, too: a shard knows nothing of the others."""
    source, experts, settings = open_pairs(labelled[0]), toy_experts.all_experts(), LabelSettings()
    writer = labels_writer(source, experts, settings, tmp_path / "other")
    for shard in reversed(source.shards):
        done = Labeller(source, toy_experts.all_experts(), writer, settings, batch_size=4).label(
            shard, Silent()
        )
        assert (done.failed, done.images) == ((), 6) and done.seconds > 0
    finish_labels(source, writer)
    assert same(labelled[1], tmp_path / "other")


def test_kill_9_then_the_same_command(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs", shards=6, each=12)
    label(pattern, tmp_path / "whole")
    out = tmp_path / "killed"
    victim = Fork(label, pattern, out, output=tmp_path / "said")
    victim.wait_for(out, "*.tar.json")
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert done
    with pytest.raises(UserError, match="not finished"):
        LabelStore(out)
    label(pattern, out)
    assert same(tmp_path / "whole", out)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert {name: after[name] for name in done} == done  # what was finished was kept
    assert not list(out.glob(".*.tmp"))


def test_picture(labelled, tmp_path):
    from PIL import Image

    keys = draw_labels(labelled[1], open_pairs(labelled[0]), tmp_path / "labels.png", n=4)
    assert len(keys) == 4
    with Image.open(tmp_path / "labels.png") as image:
        assert image.width > 4 * 150
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100


def test_a_picture_is_what_its_name_says(labelled, tmp_path):
    from PIL import Image

    source = open_pairs(labelled[0])
    draw_labels(labelled[1], source, tmp_path / "new" / "folder" / "labels.JPG", n=2)
    with Image.open(tmp_path / "new" / "folder" / "labels.JPG") as image:
        assert image.format == "JPEG"
    for name in ("picture", "labels.xyz", "labels.psd"):
        with pytest.raises(UserError, match="no picture's name"):
            draw_labels(labelled[1], source, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_real_pairs(real_data, tmp_path):
    manifest = label(str(real_data / "cc_pairs" / "train.csv"), tmp_path / "labels", batch_size=16)
    assert manifest["pairs_in"] == 250
    assert manifest["pairs_out"] == 250
    store = LabelStore(tmp_path / "labels")
    source = open_pairs(str(real_data / "cc_pairs" / "train.csv"))
    assert store.get(source.key(249))["depth"].ndim == 2
