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


def modified(out: Path) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}


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


def test_every_pair_once_with_every_label(tmp_path):
    pattern, out = toy_experts.write_shards(tmp_path / "pairs"), tmp_path / "labels"
    manifest = label(pattern, out, num_workers=5)
    assert (manifest["pairs_in"], manifest["pairs_out"], manifest["failed"]) == (12, 12, [])
    assert check_labels(out) == []
    store, source = LabelStore(out), open_pairs(pattern)
    for pair in source:
        maps = store.get(pair.key)
        size = (40, 56 if int(pair.key[-4:]) % 3 == 2 else 40)
        assert [maps[name].shape[-2:] for name in ("seg", "depth", "normal")] == [size] * 3
    image = torch.from_numpy(decode_image(source[4].image)).permute(2, 0, 1)[None]
    maps, expected = store.get(source[4].key), {}
    for expert in toy_experts.all_experts():
        expected[expert.task] = expert.predict(image)[expert.task][0]
    np.testing.assert_array_equal(maps["seg"], expected["seg"])
    depth = expected["depth"]
    assert np.abs(maps["depth"] - (depth - depth.min()) / np.ptp(depth)).max() < 3e-5
    assert (maps["normal"] * expected["normal"]).sum(0).min() > np.cos(np.radians(1))


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
    assert LabelStore(tmp_path / "complete").identity == LabelStore(out).identity
    assert modified(out).items() >= done.items()
    assert not list(out.glob(".*.tmp"))


def test_pairs_are_not_overwritten(tmp_path):
    pattern = toy_experts.write_shards(tmp_path / "pairs")
    before = modified(tmp_path / "pairs")
    with pytest.raises(UserError, match="holds the pairs"):
        label(pattern, tmp_path / "pairs")
    assert modified(tmp_path / "pairs") == before
