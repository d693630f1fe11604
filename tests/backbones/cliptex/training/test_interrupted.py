"""A training that is interrupted, killed or not finite: it goes on to the same bits, or says why it
stopped."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.training.step import TrainStep
from common.errors import NonFiniteLoss
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.training.test_train import CLIPTEX, other_tower, run
from tests.forks import Fork


def newest(folder: Path) -> int:
    """The step of the newest state in a folder; it can be read."""
    newest = max(folder.glob("state-*.pt"))
    return torch.load(newest, weights_only=True)["step"]


def test_interrupted_and_resumed_is_bit_identical(pairs, tmp_path):
    recipe = replace(CLIPTEX, ema=0.9, val_pairs=8)
    complete = run(recipe, pairs, tmp_path / "whole.safetensors")

    class Interrupt(toy.Recorder):
        def advance(self, steps=1):
            super().advance(steps)
            if self.bars[-1][0].startswith("train") and self.steps == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, pairs, tmp_path / "cut.safetensors", progress=Interrupt())
    states = tmp_path / "cut.safetensors.resume"
    assert newest(states) == 3 and not (tmp_path / "cut.safetensors").exists()
    recorder = toy.Recorder()
    resumed = run(recipe, pairs, tmp_path / "cut.safetensors", progress=recorder)
    assert resumed.sha256 == complete.sha256 and recorder.steps == 5 and not states.exists()
    assert {k: v for k, v in resumed.metrics.items() if k.startswith("val/")} == {
        k: v for k, v in complete.metrics.items() if k.startswith("val/")
    }


def test_interrupted_within_a_step_leaves_nothing_of_it(tmp_path, pairs, monkeypatch):
    """A forward pass changes the statistics of batch norms; that of a step which was not finished
    must not be kept."""
    init = other_tower(tmp_path, "timm")
    complete = run(CLIPTEX, pairs, tmp_path / "whole.safetensors", init=init)
    calls, backward = [], TrainStep.backward

    def interrupted(self, *args, **more):
        result = backward(self, *args, **more)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(TrainStep, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(CLIPTEX, pairs, tmp_path / "cut.safetensors", init=init)
    assert newest(tmp_path / "cut.safetensors.resume") == 2
    assert run(CLIPTEX, pairs, tmp_path / "cut.safetensors", init=init).sha256 == complete.sha256


class Kill(toy.Recorder):
    """kill -9 of itself at the fourth step."""

    def advance(self, steps=1):
        super().advance(steps)
        if self.bars[-1][0].startswith("train") and self.steps == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def train_elsewhere(pairs: str, out: Path, kill: bool) -> None:
    progress = Kill() if kill else toy.Recorder()
    print(run(CLIPTEX, open_pairs(pairs), out, progress=progress, save_seconds=0.0).sha256)


def test_killed_and_started_again_is_bit_identical(pairs, tmp_path):
    def start(kill: bool) -> Fork:
        folder = str(pairs.name).removesuffix("/*.tar")
        return Fork(train_elsewhere, folder, tmp_path / "a", kill, output=tmp_path / f"said-{kill}")

    assert start(kill=True).end() == -signal.SIGKILL
    assert newest(tmp_path / "a.resume") in (3, 4)  # the last may not have been written yet
    resumed = start(kill=False)
    assert resumed.end() == 0, resumed.text()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    complete = run(CLIPTEX, pairs, tmp_path / "b")
    torch.set_num_threads(threads)
    assert resumed.text().split()[-1] == complete.sha256


def test_non_finite_loss_stops_with_its_reason(pairs, tmp_path):
    with pytest.raises(
        NonFiniteLoss, match=r"NaN or infinite 5 times in a row, last at step 6 .*clip .*lower lr"
    ):
        run(replace(CLIPTEX, lr=1e30, warmup=0.0), pairs, tmp_path / "w.safetensors")
    with pytest.raises(NonFiniteLoss, match=r"infinite 10 times in a row, last at step 11 "):
        run(replace(CLIPTEX, lr=1e30, warmup=0.0, epochs=10.0), pairs, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_steps_that_are_not_finite_are_skipped_counted_and_told(pairs, tmp_path, monkeypatch):
    complete = run(CLIPTEX, pairs, tmp_path / "whole.safetensors")
    calls, backward = [], TrainStep.backward

    def broken(self, *args, **more):
        result = backward(self, *args, **more)
        calls.append(1)
        if len(calls) in (2, 3):
            self.model.clip.logit_scale.grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(TrainStep, "backward", broken)
    recorder = toy.Recorder()
    result = run(CLIPTEX, pairs, tmp_path / "w.safetensors", log=recorder, log_every=1)
    assert result.notes == ["2 of 6 steps were skipped: gradient not finite"] and len(calls) == 6
    assert result.sha256 != complete.sha256
    assert all(torch.isfinite(value).all() for value in load_file(result.path).values())
    assert all(
        math.isfinite(value) for _, metrics in recorder.metrics for value in metrics.values()
    )


def test_states_and_weights_that_are_kept(pairs, tmp_path):
    """Two states at most while it trains, a damaged one is passed over; the weights of every second
    step are whole backbones."""
    seen = []

    class Watch(toy.Recorder):
        def advance(self, steps=1):
            super().advance(steps)
            seen.append({path.name for path in (tmp_path / "w.resume").glob("state-*.pt")})
            if self.steps == 5 and self.bars[-1][0].startswith("train"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CLIPTEX, pairs, tmp_path / "w", save_seconds=0.0, progress=Watch(), keep_every=2)
    assert max(map(len, seen)) <= 2
    folder = tmp_path / "w.resume"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"state-{step:09d}.pt" for step in (4, 5)
    ]
    (folder / "state-000000005.pt").write_bytes(b"cut")
    recorder = toy.Recorder()
    resumed = run(CLIPTEX, pairs, tmp_path / "w", progress=recorder, keep_every=2)
    assert resumed.sha256 == run(CLIPTEX, pairs, tmp_path / "whole").sha256
    assert not folder.exists()
    exported = sorted((tmp_path / "w.steps").iterdir())
    assert [path.name for path in exported] == [
        "step-000000002.safetensors",
        "step-000000004.safetensors",
    ]
    digests = {backbones.create("cliptex", weights=path).weights.sha256 for path in exported}
    assert len(digests | {resumed.sha256}) == 3
