"""Interrupted and killed trainings resume to the same bits; losses that are not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.cliptex import train as clip_trainer
from backbones.cliptex.objective import Passes
from cliptex_common import device
from cliptex_common.errors import NonFiniteLoss
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_train import CLIPTEX, other_tower, run

pytestmark = pytest.mark.integration


def newest(folder: Path) -> int:
    """The step of the newest state in a folder; it can be read."""
    newest = max(folder.glob("state-*.pt"))
    return torch.load(newest, weights_only=True)["step"]


def test_interrupted_and_resumed_is_bit_identical(pairs, tmp_path):
    recipe = replace(CLIPTEX, ema=0.9, val_pairs=8)
    complete = run(recipe, pairs, tmp_path / "complete.safetensors")
    out, recorder = tmp_path / "cut.safetensors", toy.Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(recipe, pairs, out, progress=toy.Recorder(die_at=3))
    states = tmp_path / "cut.safetensors.resume"
    assert newest(states) == 3 and not out.exists()
    resumed = run(recipe, pairs, out, progress=recorder)
    assert resumed.sha256 == complete.sha256 and recorder.advanced == 5 and not states.exists()
    for name in ("val/i2t_R@1", "val/t2i_R@5"):
        assert resumed.metrics[name] == complete.metrics[name]


def test_interrupted_within_a_step_leaves_nothing_of_it(tmp_path, pairs, monkeypatch):
    """Such as the statistics of batch norms, which a forward pass changes."""
    init, out = other_tower(tmp_path, "timm"), tmp_path / "cut.safetensors"
    complete = run(CLIPTEX, pairs, tmp_path / "complete.safetensors", init=init)
    calls, backward = count(1), Passes.backward

    def interrupted(self, *args, **more):
        result = backward(self, *args, **more)
        if next(calls) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Passes, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(CLIPTEX, pairs, out, init=init)
    assert newest(tmp_path / "cut.safetensors.resume") == 2
    assert run(CLIPTEX, pairs, out, init=init).sha256 == complete.sha256


def test_non_finite_loss_stops_with_its_reason(pairs, tmp_path):
    for epochs, message in (
        (2.0, "in 5 of 6 steps.* last at step 6 .*clip .*lower lr"),
        (10.0, "10 times"),
    ):
        recipe = replace(CLIPTEX, lr=1e30, warmup=0.0, epochs=epochs)
        with pytest.raises(NonFiniteLoss, match=message):
            run(recipe, pairs, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def break_steps(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make gradients NaN at ``steps``, from 1."""
    backward, calls = Passes.backward, count(1)

    def broken(self, *args, **more):
        result = backward(self, *args, **more)
        if next(calls) in steps:
            self.model.clip.logit_scale.grad.fill_(float("nan"))
        return result

    patch.setattr(Passes, "backward", broken)


def test_steps_that_are_not_finite_are_skipped_on_the_device_as_on_the_host(
    pairs, tmp_path, monkeypatch
):
    """A fused optimizer skips them by itself, which the loop learns of at the next log entry; one
    that would not (on MPS) is not called."""
    step, recorder = torch._fused_adamw_, toy.Recorder()

    def fused_adamw(*tensors, found_inf=None, **options):
        step(*tensors, **options)

    def train_with(fused: bool, skips: bool = True, **context) -> dict[str, torch.Tensor]:
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
            out = tmp_path / f"{fused}-{skips}.safetensors"
            result = run(replace(CLIPTEX, ema=0.9), pairs, out, **context)
        assert result.notes == ["2 of 6 steps were skipped: gradient not finite"]
        return load_file(result.path)

    on_host = train_with(fused=False, log=recorder, log_every=1)
    assert all(math.isfinite(value) for _, each in recorder.metrics for value in each.values())
    assert all(torch.isfinite(value).all() for value in on_host.values())
    for skips in (False, True):
        for name, value in train_with(fused=True, skips=skips, log_every=100).items():
            torch.testing.assert_close(value, on_host[name], rtol=1e-4, atol=1e-6)


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
