"""Training an expert as a unit of work, with its MLflow run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmark.stages import ExpertTraining, expert_unit, make_expert
from cliptex_common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts
from tests.benchmark.run_command import read_json, run_command, runs_of
from tests.executors import run_on

pytestmark = pytest.mark.integration

SETTINGS = {**toy_experts.SMALL_UNET, "epochs": 0.5}


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toy_experts.write_truth(tmp_path / "world")


def test_trained_once_with_a_run_of_its_own(world):
    inputs = ExpertTraining("unet-seg", world, Path("unet-seg").absolute(), SETTINGS, device="cpu")

    async def train(executor):
        return await make_expert(inputs, executor)

    expert = run_on(train)
    assert expert == read_json("unet-seg/expert.json")
    (run,) = runs_of("experts")
    assert (
        run.info.status == "FINISHED"
        and run.data.tags["expert"] == "unet-seg"
        and run.data.tags["stage"] == "experts"
    )
    assert run.data.tags["weights.sha256"] == expert["sha256"]
    assert run.data.metrics["cost/train_flops"] == expert["flops"] > 0
    assert run.data.tags["threads"] == str(expert["threads"]) == "1"
    assert run_on(train) == expert
    assert len(runs_of("experts")) == 1, "found, not trained again"


@pytest.mark.slow
def test_two_processes_that_want_the_same_train_it_once(world):
    inputs = ExpertTraining("unet-seg", world, Path("unet-seg").absolute(), SETTINGS, device="cpu")

    async def both(executor):
        return await asyncio.gather(*(make_expert(inputs, executor) for _ in range(2)))

    first, two = run_on(both, jobs=2)
    assert first == two and len(runs_of("experts")) == 1


def test_from_the_command_line(world, capsys):
    settings = " ".join(f"--set {key}={value}" for key, value in SETTINGS.items())
    options = "--data-root world --out mine --device cpu --experiment mine"
    assert run_command(f"experts train unet-seg {options} {settings}") == 0
    assert "--experts unet-seg=mine" in capsys.readouterr().out
    (run,) = runs_of("mine")
    assert read_json("mine/expert.json")["sha256"] == run.data.tags["weights.sha256"]


def test_a_folder_of_another_expert_is_refused(world):
    inputs = ExpertTraining("unet-seg", world, Path("unet-seg").absolute(), SETTINGS, device="cpu")
    expert_unit(inputs)
    with pytest.raises(UserError, match="holds another expert"):
        expert_unit(ExpertTraining("unet-seg", world, inputs.out, SETTINGS, seed=1, device="cpu"))
