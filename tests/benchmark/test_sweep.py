"""Sweeps from the command line: real trainings on the smoke suite, real probes, a real study, a
real MLflow store."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from backbones.cliptex.training.recipes import read_recipe
from benchmark.sweep.bench import base_recipe, changes
from benchmark.sweep.launch import Trials
from benchmark.sweep.options import SweepOptions
from reports.mlflow.client import Client
from reports.mlflow.run import Tracker
from sweeps.driver import Evaluation
from sweeps.space import LAMBDAS
from sweeps.study import load_sweep, sole_driver
from sweeps.summary import best_trial, run_again, summary
from tests.benchmark.commands import read_json, run_command
from tests.sweeps import cheap

pytestmark = pytest.mark.integration

SMOKE = "sweep launch --suite smoke --task mini-class/zero-shot,mini-retrieval/retrieval"
SMOKE += " --device cpu --seed 7"
LAUNCH = f"{SMOKE} --lambdas seg --values 1,10"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def url(here):
    return f"sqlite:///{here}/sweeps.db"


@pytest.fixture
def tracker(here):
    return Tracker("cheap", f"sqlite:///{here}/mlflow.db")


@pytest.mark.slow
def test_a_sweep_from_launch_to_recipe(here, capsys):
    assert run_command(f"{LAUNCH} --confirm 2") == 0
    shown = capsys.readouterr().out
    assert "smoke-linear: 2 of 2 cells done" in shown
    assert "report: " in shown
    study = optuna.load_study(study_name="smoke-linear", storage="sqlite:///sweeps.db")
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.params["lambda_seg"] for trial in trials) == [1.0, 10.0]
    confirmed = study.best_params["lambda_seg"] != 1.0  # else the base cell won
    assert f"over {2 * confirmed} fresh seeds" in shown
    assert len([key for key in study.user_attrs if key.startswith("again.")]) == 4 * confirmed
    client = Client(study.user_attrs["mlflow"]["uri"])
    experiment = client.get_experiment_by_name("sweep-smoke")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs[study.user_attrs["mlflow"]["run"]]
    stages = [run.data.tags for run in runs.values() if run.data.tags.get("stage") == "train"]
    assert len({tags["train.key"] for tags in stages}) == len(stages), "nothing is trained twice"
    for trial in trials:
        run = runs[trial.user_attrs["mlflow.run"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        if (
            run.data.tags["trained"] == "true"
        ):  # false where a home folder of an earlier session has the weights
            trained = runs[run.data.tags["train.run"]]
            assert trained.data.params["lambda_seg"] == str(trial.params["lambda_seg"])
            assert trained.data.tags["weights.sha256"] == run.data.tags["weights.sha256"]
        assert Path(run.data.tags["weights.file"]).is_file()
        assert run.data.metrics["objective/gain"] == pytest.approx(trial.value)
        for metric in ("mini-class/zero-shot/top1", "mini-retrieval/retrieval/i2t_R_at_1"):
            assert metric in run.data.metrics
    assert {"plots.json", "best_recipe.json", "summary.json"} <= {
        f.path for f in client.list_artifacts(parent.info.run_id)
    }
    recipe = read_recipe(here / "smoke-linear-best.json")
    assert (
        recipe.weight("seg") == study.best_params["lambda_seg"]
        and recipe.epochs == 1.0
        and recipe.batch_size == 32
    )

    assert run_command(f"{LAUNCH} --confirm 2") == 0, "all is done: the table again, and no new run"
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    capsys.readouterr()
    assert run_command("sweep status") == 0
    assert "2 of 2 cells done, 0 running, 0 left" in capsys.readouterr().out
    assert run_command(f"{LAUNCH} --dry-run") == 0
    assert "2 of 2 cells done" in capsys.readouterr().out
    output = {}
    for command in ("status", "best", "show"):
        assert run_command(f"sweep {command} --json") == 0
        output[command] = json.loads(capsys.readouterr().out)
    assert (output["status"]["done"], output["status"]["pending"]) == (2, 0) and len(
        output["show"]
    ) == 2
    assert output["best"]["trials"][0]["trial"] == study.best_trial.number
    assert output["best"]["recipe"]["lambda_seg"] == study.best_params["lambda_seg"]
    assert run_command("sweep best --out best.json") == 0
    assert read_json("best.json")["lambda_seg"] == study.best_params["lambda_seg"]
    assert run_command("sweep show") == 0
    assert "mini-retrieval/retrieval" in capsys.readouterr().out

    assert run_command(f"{LAUNCH} --set epochs=2") == 2
    assert "fixed.epochs: 1.0 → 2.0" in capsys.readouterr().err
    assert run_command(f"{LAUNCH} --values 1,5") == 2
    assert re.search(r"lambda_seg.values: \[1.0, 10.0\] → \[1.0, 5.0\]", capsys.readouterr().err)

    # further cells reuse what is trained: another study with the same recipes trains nothing but
    # its new cell, and its trials go to two processes
    more = f"{LAUNCH} --study more --values 0.1,1,10 --confirm 0 --jobs 2 --storage more.log"
    more += " --objective mini-class/zero-shot/top1"
    assert run_command(more) == 0
    assert capsys.readouterr().out.count("  trial ") == 3, "each trial is told once"
    second = load_sweep("more", "more.log").study
    assert {trial.state for trial in second.get_trials()} == {TrialState.COMPLETE}
    assert sorted(trial.params["lambda_seg"] for trial in second.get_trials()) == [0.1, 1.0, 10.0]
    assert Path("more-best.json").is_file()
    runs = client.search_runs([experiment.experiment_id])
    later = [run for run in runs if run.data.tags.get("stage") == "train"]
    assert len(later) == len(stages) + 1
    assert {run.info.status for run in runs} == {"FINISHED"}

    # a study that another process drives is refused before anything is prepared
    with sole_driver(load_sweep("more", "more.log")):
        assert run_command(more) == 2
    assert "is driven by another process" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_trials_are_stopped_from_the_processes_that_train(here, capsys):
    options = "--search random --trials 4 --confirm 0 --jobs 2 --set epochs=4 --set val_pairs=32"
    assert run_command(f"{SMOKE} {options} --prune val/i2t_R@1") == 0
    assert "4 of 4 cells done" in capsys.readouterr().out
    trials = load_sweep(None, None).trials()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.intermediate_values for trial in trials)


def test_winner_and_base_are_run_again_on_the_same_fresh_seeds(url, tracker):
    """Only once each, and one that breaks is left out."""
    sweep = cheap.start(url, objectives=("seg/linear/mIoU",))
    cheap.finish(sweep, tracker)
    measured = []

    class Cheap:
        async def measure(self, recipe, parent, pruning=None):
            measured.append((recipe.weight("seg"), recipe.seed))
            if recipe.seed == 3 and measured.count((recipe.weight("seg"), 3)) == 1:
                raise RuntimeError("the loss became NaN")
            runs = cheap.measure({f"lambda_{name}": recipe.weight(name) for name in LAMBDAS})
            runs["seg/linear"]["mIoU"] += 0.1 * recipe.seed
            return Evaluation(runs, {"train.run": "there"})

    with tracker.run("sweep") as parent:
        sweeping = Trials(sweep, Cheap(), tracker, parent)
        for count in (1, 2, 3, 3):
            asyncio.run(sweeping.confirm(range(1, 1 + count)))
        assert sorted(set(measured)) == [(cell, seed) for cell in (0.1, 1.0) for seed in (1, 2, 3)]
        assert len(measured) == 8, "seed 3 broke once in each cell"
    base, best = sweep.space.base, best_trial(sweep).params
    assert run_again(sweep, base).keys() == run_again(sweep, best).keys() == {1, 2, 3}
    rows = {row["what"]: row for row in summary(sweep).to_dict("records")}
    assert (
        rows["seg/linear/mIoU"]["confirmed"] == pytest.approx(1.0)
        and rows["seg/linear/mIoU"]["verdict"] == "clear"
    )
    runs = tracker.search("tags.again != ''")
    assert sorted(run.info.status for run in runs) == ["FAILED"] * 2 + ["FINISHED"] * 6
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.id}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--set lamda_seg=1", "no setting 'lamda_seg'; did you mean lambda_seg"),
        ("--set seed=1", "--seed"),
        ("--objective mini-class/zero-shot/mIoU", "did you mean mini-class/zero-shot/top"),
        ("--objective dense", "--objective dense: "),
        ("--prune val/i2t_R@1", "linear search compares finished trials"),
        ("--search tpe --prune val/i2t_R@1", "val_pairs"),
        ("--search cmaes --objective gain,zero-shot", "one objective"),
        ("--init random", "leave out --init"),
        ("--confirm -1", "confirm=-1"),
        ("--values 0 --lambdas clip,seg,depth,normal --search grid", "every lambda is 0"),
        ("--search tpe --vary lr=-1:1", "must be greater than 0"),
        ("--search tpe --prune val/loss", "val/t2i_R@10"),
        ("--storage sweeps.db", "is not supported; use sqlite:"),
        ("--recipe clip", "give cliptex or a recipe file"),
        (
            "--task mini-class/linear --set-task layers=9",
            "layers=9: backbone 'cliptex' has 2 layers",
        ),
    ],
)
def test_wrong_input_is_one_line_before_any_work(here, refused, options, message):
    refused(f"{LAUNCH} {options}", message)
    assert not list(here.glob("*.db")), "nothing was created"


def test_commands_without_a_study(here, capsys, refused):
    for command in ("status", "best", "show"):
        refused(f"sweep {command}", "start one with `sweep launch`")
    assert run_command(f"{LAUNCH} --dry-run") == 0
    assert "smoke-linear: 2 cells to do" in capsys.readouterr().out
    refused("sweep launch --suite paper", "--init, --pairs and --labels")
    assert not list(here.iterdir())


@pytest.mark.parametrize("options", ["--dry-run", "--data-root nowhere"])
def test_the_precision_of_the_tasks_is_said_first(here, capsys, monkeypatch, options):
    monkeypatch.setattr("benchmark.plan.computes_in_bf16", lambda device: True)
    command = "sweep launch --suite paper --task voc/linear --device cpu --init random"
    run_command(f"{command} --pairs pairs --labels labels {options}")
    line = "precision bf16, in which the CPU computes (--set-task precision=fp32)"
    assert capsys.readouterr().out.splitlines()[0] == line
    command += " --set-task precision=fp32"
    run_command(f"{command} --pairs pairs --labels labels {options}")
    assert "precision" not in capsys.readouterr().out


def test_the_base_recipe_is_the_suites_changed_by_a_file_and_by_options(tmp_path):
    (tmp_path / "mine.toml").write_text('lr = 2e-5\nlambda_seg = 5\nexperts = ["seg", "depth"]\n')
    options = SweepOptions(
        suite="smoke",
        recipe=str(tmp_path / "mine.toml"),
        overrides={"epochs": "2", "lambda_normal": "0"},
        seed=3,
    )
    recipe = base_recipe(options)
    expected = {"lr": 2e-5, "epochs": 2.0, "batch_size": 32, "experts": ("seg", "depth")}
    assert changes(recipe) == expected
    assert (recipe.name, recipe.seed) == ("cliptex", 3)
    assert recipe.lambdas == {"clip": 1.0, "seg": 1.0, "depth": 1.0, "normal": 0.0}
