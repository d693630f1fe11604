"""Training shared by the MMEngine probes: same samples for any workers, exact resume, guards,
curves."""

import math
import multiprocessing
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from cliptex_common.errors import NonFiniteLoss
from probes.dense.config import dense_config
from probes.dense.heads import LinearHead
from probes.registry import PROBES
from probes.train.loop import SAVES, STATE_FILE, resolved, run_training
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dense.make(tmp_path_factory.mktemp("data"), "depth", train=10, val=4)


def config_and_task(data, folder, max_iters=20, **options):
    """Of a linear head with dropout and batch norm on random crops."""
    probe = PROBES["depth/linear"]
    settings = probe.settings_type(
        size=32,
        batch_size=4,
        lr=0.05,
        warmup=0.15,
        dropout=0.3,
        scale_range=(0.7, 1.5),
        max_iters=max_iters,
    )
    task = context(folder, data, settings, **options)
    return dense_config(probe, task), task


def train(data, folder, max_iters=20, checkpoint_every=None, **options):
    config, task = config_and_task(data, folder, max_iters, **options)
    states = max_iters // checkpoint_every if checkpoint_every else SAVES
    with patch("probes.train.loop.SAVES", states):
        return run_training(config, task, "toy")


def same_head(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_reports(data, tmp_path, capfd):
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trained = train(data, tmp_path, 60, recorder=recorder)
    losses = recorder.curve("train/loss")
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert recorder.curve("train/lr")[0] < max(recorder.curve("train/lr")) == pytest.approx(0.05)
    assert recorder.curve("train/decode.loss_silog") == losses
    assert recorder.started == [("toy", 60), ("toy: evaluation", 3)], "two images go together"
    assert trained.cost.seconds["train"] > 0 and trained.cost.seconds["eval"] > 0
    assert not trained.model.training and recorder.advanced == 63
    assert capfd.readouterr() == ("", "")  # the log is in the work dir
    assert any("Iter(train)" in path.read_text() for path in tmp_path.rglob("*.log"))


def test_a_state_of_another_run_or_a_damaged_one_is_not_used(data, tmp_path):
    first = train(data, tmp_path, 6)
    assert train(data, tmp_path, 6, seed=5).resumed_at == 0
    assert any("starting anew" in path.read_text() for path in tmp_path.rglob("*.log"))
    state = tmp_path / STATE_FILE
    state.write_bytes(state.read_bytes()[:-100])
    again = train(data, tmp_path, 6)
    assert again.resumed_at == 0 and again.metrics == first.metrics


@pytest.fixture
def broken_head(monkeypatch):
    """Its outputs are NaN in the seventh iteration."""
    calls, forward = [], LinearHead.forward

    def broken(self, inputs):
        calls.append(1)
        return forward(self, inputs) * (math.nan if len(calls) == 7 else 1.0)

    monkeypatch.setattr(LinearHead, "forward", broken)


def test_a_loss_is_looked_at_now_and_then_but_before_each_state(data, tmp_path, broken_head):
    """Reading a loss waits for a GPU. It was broken at iteration 7, which shows at 8, when a state
    is due: none is written."""
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match="iteration 7 "):
        train(data, tmp_path, 1500, checkpoint_every=8, recorder=recorder)
    assert not (tmp_path / STATE_FILE).exists()
    assert [step for step, _ in recorder.metrics] == [1, 3, 6], "curves have 500 points"


def test_nothing_global_is_left_behind(data, tmp_path):
    before = dict(MMLogger._instance_dict)
    descriptors = Path("/proc/self/fd")
    count = len(list(descriptors.iterdir()))
    for i in range(3):
        train(data, tmp_path / str(i), 2, workers=1)
    assert MMLogger._instance_dict == before
    assert multiprocessing.active_children() == []
    assert len(list(descriptors.iterdir())) <= count + 3


def test_config_runs_with_plain_mmengine(data, tmp_path, monkeypatch):
    """In a folder of whoever runs it."""
    monkeypatch.chdir(tmp_path)
    text = resolved(*config_and_task(data, tmp_path / "a", 4)).pretty_text
    assert str(tmp_path) not in text
    runner = Runner.from_cfg(Config.fromstring(text, ".py"))
    runner.train()
    ours = train(data, tmp_path / "b", 4)
    assert same_head(runner, ours)
    assert resolved(ours.config, ours.context).pretty_text == text
