"""Training shared by the MMEngine probes: same samples for any workers, exact resume, guards,
curves."""

from __future__ import annotations

import multiprocessing
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from common.errors import NonFiniteLoss
from probes.runner.member import STATE
from probes.runner.sampling import EndlessSampler, SeededSamples
from probes.runner.training import resolved, run_training
from tests.probes.tiny_mmlab import Recorder, context


@DATASETS.register_module()
class ToyImages(BaseDataset):
    """Images of a flat brightness, 'augmented' with noise of all three generators; the target is
    the brightness."""

    def __init__(self, count: int = 10, noise: float = 0.1) -> None:
        self.count, self.noise = count, noise
        super().__init__(serialize_data=False)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"number": i, "brightness": i / self.count} for i in range(self.count)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        info = self.get_data_info(idx)
        image = torch.full((3, 32, 32), info["brightness"])
        if self.noise:
            image += self.noise * (random.random() + np.random.rand() + torch.rand(3, 32, 32))
        return {
            "inputs": image,
            "brightness": torch.tensor(info["brightness"]),
            "number": info["number"],
        }


@MODELS.register_module()
class ToyModel(BaseModel):
    """A frozen backbone and a linear head with dropout and BatchNorm; loss is NaN from
    ``breaks_at`` on."""

    def __init__(self, backbone: dict[str, Any], breaks_at: int = -1) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 1))
        self.breaks_at, self.steps = breaks_at, 0

    def forward(
        self,
        inputs: list[Tensor],
        brightness: list[Tensor],
        number: list[int],
        mode: str = "tensor",
    ) -> Any:
        features = self.backbone(torch.stack(list(inputs)))[-1].mean(dim=(2, 3))
        prediction = self.head(features).squeeze(1)
        if mode == "predict":
            return [
                {"prediction": p, "brightness": b}
                for p, b in zip(prediction, brightness, strict=True)
            ]
        self.steps += 1
        loss = (prediction - torch.stack(list(brightness))).square().mean()
        return {"loss_toy": loss * (float("nan") if self.steps == self.breaks_at else 1.0)}


@METRICS.register_module()
class ToyError(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(abs(s["prediction"] - s["brightness"])) for s in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"error": float(np.mean(results)), "count": len(results)}


def toy_config(max_iters: int = 20, breaks_at: int = -1) -> Config:
    return Config(
        {
            "default_scope": "mmengine",
            "model": {
                "type": "ToyModel",
                "backbone": {"type": "FrozenBackbone", "name": "tiny-cnn", "seed": 3},
                "breaks_at": breaks_at,
            },
            "train_dataloader": {"batch_size": 4, "dataset": {"type": "ToyImages"}},
            "val_dataloader": {"batch_size": 4, "dataset": {"type": "ToyImages", "noise": 0.0}},
            "val_evaluator": {"type": "ToyError"},
            "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.05}},
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 3},
                {
                    "type": "CosineAnnealingLR",
                    "by_epoch": False,
                    "begin": 3,
                    "end": max(4, max_iters),
                    "eta_min": 0.0,
                },
            ],
            "train_cfg": {"max_iters": max_iters},
        }
    )


def head(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trained = run_training(
            toy_config(60), context(tmp_path, recorder=recorder), description="toy"
        )
    assert trained.metrics["count"] == 10
    losses = recorder.curve("train/loss")
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert recorder.curve("train/lr")[0] < max(recorder.curve("train/lr")) == pytest.approx(0.05)
    assert recorder.curve("train/loss_toy") == losses
    assert recorder.started == [("toy", 60), ("toy: evaluation", 3)] and recorder.advanced == 63
    assert trained.cost.seconds["train"] > 0 and trained.cost.seconds["eval"] > 0
    assert not trained.model.training and trained.val_dataset[3]["number"] == 3
    assert capfd.readouterr() == ("", "")  # the log is in the work dir
    assert any("Iter(train)" in path.read_text() for path in tmp_path.rglob("*.log"))


@pytest.mark.parametrize("stop_after", [7, 20])
def test_training_time_includes_that_of_stopped_processes(tmp_path: Path, stop_after: int) -> None:
    recorder = Recorder(die_at=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run_training(toy_config(), context(tmp_path, recorder=recorder), checkpoint_every=2)
    seconds = torch.load(tmp_path / STATE, weights_only=True)["seconds"]
    resumed = run_training(toy_config(), context(tmp_path), checkpoint_every=2)
    assert resumed.cost.seconds["train"] >= seconds > 0


def test_same_seed_same_result_whatever_the_workers(tmp_path: Path) -> None:
    results = {
        (seed, workers): run_training(
            toy_config(), context(tmp_path / f"{seed}-{workers}", seed=seed, workers=workers)
        )
        for seed, workers in ((0, 0), (0, 2), (1, 0))
    }
    assert same(head(results[0, 0].model), head(results[0, 2].model))
    assert results[0, 0].metrics == results[0, 2].metrics
    assert not same(head(results[0, 0].model), head(results[1, 0].model))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("stop_after", [3, 11, 20])
def test_stopped_and_resumed_equals_whole(tmp_path: Path, stop_after: int) -> None:
    expected = run_training(toy_config(), context(tmp_path / "whole"), checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        run_training(
            toy_config(),
            context(tmp_path / "cut", recorder=Recorder(die_at=stop_after)),
            checkpoint_every=2,
        )
    recorder = Recorder()
    resumed = run_training(
        toy_config(), context(tmp_path / "cut", recorder=recorder, workers=1), checkpoint_every=2
    )
    assert resumed.resumed_at == stop_after - stop_after % 2 > 0
    assert same(head(expected.model), head(resumed.model))
    assert expected.metrics == resumed.metrics
    assert (
        recorder.advanced == (20 if stop_after < 20 else 0) + 3
    )  # the bar begins where the run does


def test_killed_and_resumed_equals_whole(tmp_path: Path) -> None:
    """kill -9 in the middle, with a loading process running."""

    def doomed() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        folder = context(tmp_path / "cut", recorder=Recorder(die_at=7, kill=True), workers=1)
        run_training(toy_config(), folder, checkpoint_every=3)

    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    resumed = run_training(toy_config(), context(tmp_path / "cut"), checkpoint_every=3)
    assert resumed.resumed_at == 6
    expected = run_training(toy_config(), context(tmp_path / "whole"))
    assert same(head(expected.model), head(resumed.model)) and expected.metrics == resumed.metrics


def test_finished_training_is_only_evaluated_again(tmp_path: Path) -> None:
    first = run_training(toy_config(), context(tmp_path))
    second = run_training(toy_config(), context(tmp_path))
    assert second.resumed_at == 20 and first.metrics == second.metrics


def test_state_of_another_run_is_not_used(tmp_path: Path) -> None:
    run_training(toy_config(), context(tmp_path))
    reseeded = run_training(toy_config(), context(tmp_path, seed=5))
    assert reseeded.resumed_at == 0
    assert any("starting anew" in path.read_text() for path in tmp_path.rglob("*.log"))


def test_a_damaged_state_is_not_used(tmp_path: Path) -> None:
    first = run_training(toy_config(6), context(tmp_path))
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-100])
    again = run_training(toy_config(6), context(tmp_path))
    assert again.resumed_at == 0 and again.metrics == first.metrics


def test_state_holds_the_head_alone_and_needs_no_pickle(tmp_path: Path) -> None:
    run_training(toy_config(), context(tmp_path))
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert set(state["model"]) == {
        f"head.0.{n}"
        for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    } | {
        "head.2.weight",
        "head.2.bias",
    }
    assert list(tmp_path.glob(".*.tmp")) == []


def test_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"iteration 7 \(loss, loss_toy\)"):
        run_training(toy_config(breaks_at=7), context(tmp_path), checkpoint_every=1)
    assert torch.load(tmp_path / STATE, weights_only=True)["iteration"] == 6


def test_a_loss_is_looked_at_now_and_then_but_before_each_state(tmp_path: Path) -> None:
    """Reading a loss waits for a GPU. It was broken at iteration 7, which shows at 8, when a state
    is due: none is written."""
    with pytest.raises(NonFiniteLoss, match="iteration 7 "):
        run_training(
            toy_config(1500, breaks_at=7),
            context(tmp_path, recorder=(recorder := Recorder())),
            checkpoint_every=8,
        )
    assert not (tmp_path / STATE).exists()
    assert [step for step, _ in recorder.metrics] == [1, 3, 6], "curves have 500 points"


def test_nothing_global_is_left_behind(tmp_path: Path) -> None:
    before = dict(MMLogger._instance_dict)
    descriptors = (
        len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    )
    for i in range(3):
        run_training(toy_config(2), context(tmp_path / str(i), workers=1))
    assert MMLogger._instance_dict == before
    assert multiprocessing.active_children() == []
    if descriptors:
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 3


def test_config_runs_with_plain_mmengine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own checkpoints, in a folder of whoever runs it."""
    monkeypatch.chdir(tmp_path)
    text = resolved(toy_config(4), context(tmp_path / "a")).pretty_text
    assert str(tmp_path) not in text
    runner = Runner.from_cfg(Config.fromstring(text, ".py"))
    runner.train()
    ours = run_training(toy_config(4), context(tmp_path / "b"))
    assert same(head(runner.model), head(ours.model))
    assert resolved(ours.config, ours.context).pretty_text == text
    assert (tmp_path / "work_dirs/toy/iter_4.pth").is_file()


@given(count=st.integers(1, 7), seed=st.integers(0, 2**40), rounds=st.integers(1, 3))
def test_every_round_takes_every_sample_once(count: int, seed: int, rounds: int) -> None:
    samples = SeededSamples(ToyImages(count), seed)
    for epoch in range(rounds):
        assert sorted(samples.index(epoch * count + i) for i in range(count)) == list(range(count))


def test_a_sample_depends_on_its_index_alone_and_leaves_the_generators() -> None:
    samples, again = SeededSamples(ToyImages(), 1), SeededSamples(ToyImages(), 1)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = [samples[i]["inputs"] for i in range(25)]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert all(torch.equal(again[i]["inputs"], first[i]) for i in reversed(range(25)))
    assert len({tuple(x.flatten()[:3].tolist()) for x in first}) == 25


def test_sampler_counts_on_after_a_skip() -> None:
    sampler = EndlessSampler(SeededSamples(ToyImages(), 0))
    sampler.skip(7)
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(3)] == [7, 8, 9]
