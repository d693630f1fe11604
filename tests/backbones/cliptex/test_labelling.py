"""Labelling: every pair once, and the same bytes when killed, resumed or split."""

from __future__ import annotations

import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from backbones.cliptex.labelling import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.labels import LabelStore, check_labels
from backbones.cliptex.pairs import decode_image, open_pairs
from cliptex_common.errors import UserError
from cliptex_common.progress import Silent
from tests.backbones.cliptex.experts import toy_experts
from tests.forks import Fork

pytestmark = pytest.mark.integration


def label(pattern: str, out: Path, experts=None, notes=None, **more):
    """Every shard in order, in this process; returns the manifest."""
    source, settings = open_pairs(pattern), LabelSettings()
    experts = experts or toy_experts.all_experts()
    writer = labels_writer(source, experts, settings, out)
    labeller = Labeller(source, experts, writer, settings, **{"batch_size": 4, **more})
    for shard in source.shards:
        labeller.label(shard, Silent(), notes.append if notes is not None else print)
    return finish_labels(source, writer)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on the number of threads in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(first: Path, second: Path) -> bool:
    return LabelStore(first).identity == LabelStore(second).identity


def modified(out: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}


@pytest.fixture
def labelled(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs")
    return pattern, tmp_path / "labels", label(pattern, tmp_path / "labels")


def test_large_images_reach_experts_at_their_own_size_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("backbones.cliptex.labelling.IMAGE_PIXELS", 40 * 40 // 2)
    pattern = toy_experts.write_shards(tmp_path / "pairs", shards=1)
    expert = toy_experts.make_expert("unet-depth")
    with patch.object(expert, "predict", wraps=expert.predict) as predict:
        label(pattern, tmp_path / "labels", [expert])
    shapes = {tuple(call.args[0].shape) for call in predict.call_args_list}
    assert shapes - {(1, 3, 40, 40)} == {(2, 3, 40, 40), (2, 3, 40, 56)}


def test_images_that_do_not_fit_together_are_labelled_in_parts(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs")
    expert = toy_experts.make_expert("unet-depth")
    label(pattern, tmp_path / "complete", [expert])
    predict, sizes = expert.predict, []

    def limited(images):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return predict(images)

    expert.predict = limited
    label(pattern, tmp_path / "parts", [expert])
    assert max(sizes) > 2 and sizes.count(max(sizes)) == 1  # it stays small
    complete, parts = (LabelStore(tmp_path / name) for name in ("complete", "parts"))
    for pair in open_pairs(pattern):
        np.testing.assert_allclose(
            parts.get(pair.key)["depth"], complete.get(pair.key)["depth"], atol=1e-4
        )


def test_every_pair_once_with_every_label(labelled):
    pattern, out, manifest = labelled
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (12, 12, [])
    assert check_labels(out) == []
    store, source = LabelStore(out), open_pairs(pattern)
    experts = toy_experts.all_experts()
    for index in range(len(source)):
        pair = source[index]
        maps = store.get(pair.key)
        size = (40, 56 if int(pair.key[-4:]) % 3 == 2 else 40)
        assert [maps[name].shape[-2:] for name in ("seg", "depth", "normal")] == [size] * 3
    pair = source[4]
    image = torch.from_numpy(decode_image(pair.image)).permute(2, 0, 1)[None]
    maps = store.get(pair.key)
    np.testing.assert_array_equal(maps["seg"], experts[0].predict(image)["seg"][0])
    depth = experts[1].predict(image)["depth"][0]
    unit = (depth - depth.min()) / np.ptp(depth)
    assert np.abs(maps["depth"] - unit).max() < 3e-5
    cosine = (maps["normal"] * experts[2].predict(image)["normal"][0]).sum(0)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1


def test_labels_that_are_not_finite_are_failures(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs", shards=1, each=2)
    expert = toy_experts.make_expert("unet-depth")
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
    """Also with other workers and newly loaded experts."""
    source, experts, settings = open_pairs(labelled[0]), toy_experts.all_experts(), LabelSettings()
    writer = labels_writer(source, experts, settings, tmp_path / "other")
    for shard in reversed(source.shards):
        labeller = Labeller(source, toy_experts.all_experts(), writer, settings, 4, num_workers=5)
        done = labeller.label(shard, Silent())
        assert (done.failed, done.images) == ([], 6) and done.seconds > 0
    finish_labels(source, writer)
    assert same(labelled[1], tmp_path / "other")


def test_kill_9_then_the_same_command(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs", shards=6, each=12)
    label(pattern, tmp_path / "complete")
    out = tmp_path / "killed"
    victim = Fork(label, pattern, out, output=tmp_path / "output.txt")
    victim.wait_for(out, "*.tar.json")
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    done = modified(out)
    assert done
    with pytest.raises(UserError, match="not finished"):
        LabelStore(out)
    label(pattern, out)
    assert same(tmp_path / "complete", out)
    assert modified(out).items() >= done.items()
    assert not list(out.glob(".*.tmp"))


def test_pairs_are_not_overwritten(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs")
    before = modified(tmp_path / "pairs")
    with pytest.raises(UserError, match="holds the pairs"):
        label(pattern, tmp_path / "pairs")
    assert modified(tmp_path / "pairs") == before
