"""Interrupted and killed trainings resume to the same bits; losses that are not finite."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.cliptex import train as clip_trainer
from backbones.cliptex.objective import Passes
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.train import TrainResult
from cliptex_common import device
from cliptex_common.errors import NonFiniteLoss
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_train import CLIPTEX, other_tower, run
from tests.forks import Fork

pytestmark = pytest.mark.integration


def newest(folder: Path) -> int:
    """The step of the newest state in a folder; it can be read."""
    newest = max(folder.glob("state-*.pt"))
    return torch.load(newest, weights_only=True)["step"]


def test_interrupted_and_resumed_is_bit_identical(pairs, tmp_path):
    recipe = replace(CLIPTEX, ema=0.9, val_pairs=8)
    complete = run(recipe, pairs, tmp_path / "complete.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, pairs, tmp_path / "cut.safetensors", progress=toy.Recorder(die_at=3))
    states = tmp_path / "cut.safetensors.resume"
    assert newest(states) == 3 and not (tmp_path / "cut.safetensors").exists()
    recorder = toy.Recorder()
    resumed = run(recipe, pairs, tmp_path / "cut.safetensors", progress=recorder)
    assert resumed.sha256 == complete.sha256 and recorder.advanced == 5 and not states.exists()
    for name in ("val/i2t_R@1", "val/t2i_R@5"):
        assert resumed.metrics[name] == complete.metrics[name]


def test_interrupted_within_a_step_leaves_nothing_of_it(tmp_path, pairs, monkeypatch):
    """Such as the statistics of batch norms, which a forward pass changes."""
    init = other_tower(tmp_path, "timm")
    complete = run(CLIPTEX, pairs, tmp_path / "complete.safetensors", init=init)
    calls, backward = [], Passes.backward

    def interrupted(self, *args, **more):
        result = backward(self, *args, **more)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Passes, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(CLIPTEX, pairs, tmp_path / "cut.safetensors", init=init)
    assert newest(tmp_path / "cut.safetensors.resume") == 2
    assert run(CLIPTEX, pairs, tmp_path / "cut.safetensors", init=init).sha256 == complete.sha256


def train_elsewhere(pairs: str, out: Path, kill: bool) -> None:
    progress = toy.Recorder(die_at=4, kill=True) if kill else toy.Recorder()
    print(run(CLIPTEX, open_pairs(pairs), out, progress=progress, save_seconds=0.0).sha256)


def test_killed_and_started_again_is_bit_identical(pairs, tmp_path):
    def start(kill: bool) -> Fork:
        folder = str(pairs.name).removesuffix("/*.tar")
        return Fork(
            train_elsewhere, folder, tmp_path / "a", kill, output=tmp_path / f"output-{kill}.txt"
        )

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
    for epochs, message in (
        (2.0, "in 5 of 6 steps.* last at step 6 .*clip .*lower lr"),
        (10.0, "10 times"),
    ):
        recipe = replace(CLIPTEX, lr=1e30, warmup=0.0, epochs=epochs)
        with pytest.raises(NonFiniteLoss, match=message):
            run(recipe, pairs, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def break_steps(patch: pytest.MonkeyPatch, *steps: int) -> list[int]:
    """Make gradients NaN at ``steps``, from 1; the list that is returned grows by each step."""
    backward, calls = Passes.backward, []

    def broken(self, *args, **more):
        calls.append(1)
        result = backward(self, *args, **more)
        if len(calls) in steps:
            self.model.clip.logit_scale.grad.fill_(float("nan"))
        return result

    patch.setattr(Passes, "backward", broken)
    return calls


def test_steps_that_are_not_finite_are_skipped_and_counted(pairs, tmp_path, monkeypatch):
    complete = run(CLIPTEX, pairs, tmp_path / "complete.safetensors")
    calls = break_steps(monkeypatch, 2, 3)
    recorder = toy.Recorder()
    result = run(CLIPTEX, pairs, tmp_path / "w.safetensors", log=recorder, log_every=1)
    assert result.notes == ["2 of 6 steps were skipped: gradient not finite"] and len(calls) == 6
    assert result.sha256 != complete.sha256
    assert all(torch.isfinite(value).all() for value in load_file(result.path).values())
    assert all(
        math.isfinite(value) for _, metrics in recorder.metrics for value in metrics.values()
    )


def test_steps_are_skipped_on_the_device_as_on_the_host(pairs, tmp_path, monkeypatch):
    """A fused optimizer skips them by itself, which the loop learns of at the next log entry; one
    that would not (on MPS) is not called."""
    step = torch._fused_adamw_

    def fused_adamw(*tensors, found_inf=None, **options):
        step(*tensors, **options)

    def train_with(fused: bool, skips: bool = True) -> TrainResult:
        build = clip_trainer.build_optimizer

        def build_fused(*args, **more):
            optimizer = build(*args, **more)
            for options in (optimizer.defaults, *optimizer.param_groups):
                options["fused"] = fused
            return optimizer

        with monkeypatch.context() as patch:
            break_steps(patch, 2, 3)
            patch.setattr(clip_trainer, "build_optimizer", build_fused)
            if not skips:
                patch.setattr(torch, "_fused_adamw_", fused_adamw)
            device.skips_fused_steps.cache_clear()
            recipe = replace(CLIPTEX, ema=0.9)
            return run(recipe, pairs, tmp_path / f"{fused}-{skips}.safetensors", log_every=100)

    on_host = train_with(fused=False)
    for result in (train_with(fused=True, skips=False), train_with(fused=True)):
        assert result.notes == on_host.notes == ["2 of 6 steps were skipped: gradient not finite"]
        expected = load_file(on_host.path)
        for name, value in load_file(result.path).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_states_and_exported_steps(pairs, tmp_path):
    """At most two states exist, a damaged one is skipped; each second step is exported."""
    counts = []

    class Watch(toy.Recorder):
        def advance(self, steps=1):
            counts.append(len(list((tmp_path / "w.resume").glob("state-*.pt"))))
            super().advance(steps)

    with pytest.raises(KeyboardInterrupt):
        run(
            CLIPTEX, pairs, tmp_path / "w", save_seconds=0.0, progress=Watch(die_at=5), keep_every=2
        )
    assert max(counts) <= 2
    folder = tmp_path / "w.resume"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"state-{step:09d}.pt" for step in (4, 5)
    ]
    (folder / "state-000000005.pt").write_bytes(b"cut")
    resumed = run(CLIPTEX, pairs, tmp_path / "w", keep_every=2)
    assert resumed.sha256 == run(CLIPTEX, pairs, tmp_path / "complete").sha256
    assert not folder.exists()
    exported = sorted((tmp_path / "w.steps").iterdir())
    *steps, last = (int(path.stem.rpartition("-")[2]) for path in exported)
    assert steps == [*range(2, last, 2)]
    digests = [backbones.create("cliptex", weights=path).weights.sha256 for path in exported]
    assert digests[-1] == resumed.sha256 and len({*digests}) == len(digests)
