"""Sweeps from the command line: real trainings on the smoke suite, real probes, a real study, a
real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from backbones.cliptex.recipes import read_recipe
from benchmark.mini.pipeline import MiniPipeline
from benchmark.sweep import SweepOptions, plan_sweep
from reports.store import open_mlflow
from sweeps.study import create_study, fix_identity, sole_driver, storage_url
from tests.backbones.cliptex import toy
from tests.benchmark.run_command import read_json, run_command, runs_of, with_record_tags
from tests.probes.datasets import make

pytestmark = pytest.mark.integration

SMOKE = "sweep launch --suite smoke --task mini-class/zero-shot,mini-retrieval/retrieval"
SMOKE += " --device cpu --seed 7"
LAUNCH = f"{SMOKE} --vary lambda_seg=1,10"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_from_launch_to_recipe(here, capsys):
    failed = create_study("smoke-linear", storage_url(None))  # a launch before its first trial
    fix_identity(failed, {"recipe": {"epochs": 9.0}})
    assert run_command(f"{LAUNCH} --confirm 2") == 0
    shown = capsys.readouterr().out
    assert "is best by interquartile mean gain over clip-ft" in shown and "report: " in shown
    study = optuna.load_study(study_name="smoke-linear", storage="sqlite:///sweeps.db")
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.params["lambda_seg"] for trial in trials) == [1.0, 10.0]
    client = open_mlflow(f"sqlite:///{here}/mlflow.db")
    experiment = client.get_experiment_by_name("sweep-smoke").experiment_id
    runs = {run.info.run_id: run for run in map(with_record_tags, client.search_runs([experiment]))}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    again = [run.data.tags for run in runs.values() if "again" in run.data.tags]
    assert len(again) == 4 * (study.best_params["lambda_seg"] != 1.0), "else the base is best"
    stages = [run.data.tags for run in runs.values() if run.data.tags.get("stage") == "train"]
    assert len({tags["train.key"] for tags in stages}) == len(stages), "nothing is trained twice"
    parent = runs[study.user_attrs["mlflow.run"]]
    for trial in trials:
        run = runs[trial.user_attrs["mlflow.run"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        # '' where a home folder of an earlier session has the weights
        if trained := runs.get(run.data.tags.get("train.run")):
            assert trained.data.params["lambda_seg"] == str(trial.params["lambda_seg"])
            assert trained.data.tags["weights.sha256"] == run.data.tags["weights.sha256"]
        assert Path(run.data.tags["weights.file"]).is_file()
        assert run.data.metrics["objective"] == pytest.approx(trial.value)
        for metric in ("mini-class/zero-shot/top1", "mini-retrieval/retrieval/i2t_R_at_1"):
            assert metric in run.data.metrics
    recipe = read_recipe(here / "smoke-linear-best.json")
    best = study.best_params["lambda_seg"]
    assert (recipe.loss_weights["seg"], recipe.epochs, recipe.batch_size) == (best, 1.0, 32)

    assert run_command(f"{LAUNCH} --dry-run") == 0
    assert "2 of 2 trials done" in capsys.readouterr().out
    assert run_command("sweep best --json --out best.json") == 0
    output = json.loads(capsys.readouterr().out)
    assert output["trial"] == study.best_trial.number
    assert output["recipe"] == read_json("best.json") == read_json("smoke-linear-best.json")
    assert run_command("report --study smoke-linear --out page") == 0
    assert "λ search: smoke-linear" in Path("page/index.html").read_text()

    assert run_command(f"{LAUNCH} --set epochs=2") == 2
    assert "recipe.epochs: 1.0 → 2.0" in capsys.readouterr().err
    assert run_command(f"{SMOKE} --vary lambda_seg=1,5") == 2
    assert "choices=(1.0, 10.0)" in capsys.readouterr().err

    # another study with the same recipes trains nothing but its new one, in two processes
    more = f"{SMOKE} --vary lambda_seg=0.1,1,10 --study more --confirm 0 --jobs 2"
    assert run_command(more) == 0
    assert capsys.readouterr().out.count("  trial ") == 3, "each trial is told once"
    runs = list(map(with_record_tags, client.search_runs([experiment])))
    later = [run for run in runs if run.data.tags.get("stage") == "train"]
    assert len(later) == len(stages) + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    with sole_driver("more", storage_url(None)):  # refused before anything is prepared
        assert run_command(more) == 2
    assert "is driven by another process" in capsys.readouterr().err


@pytest.mark.parametrize("dry_run", ["", "--dry-run"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--set lamda_seg=1", "no setting 'lamda_seg'; did you mean lambda_seg"),
        ("--search tpe --vary lr=-1:1", "must be greater than 0"),
        ("--init random", "makes its own"),
        ("--suite paper", "needs all three"),
        ("--confirm -1", "confirm=-1"),
        ("--storage sweeps.db", "cannot use the storage"),
        ("--storage sqlite:////proc/x.db", "cannot create /proc"),
        ("--out /proc/best.json", "--out /proc/best.json: cannot write there"),
        ("--recipe clip", "--recipe clip learns from no expert"),
        ("--recipe cliptex-dept", "no recipe 'cliptex-dept'; did you mean cliptex-depth"),
        ("--task mini-class/linear --set-task layers=9", "layers=9: backbone 'cliptex' has 2 lay"),
        ("--executor lcoal", "no executor 'lcoal'; did you mean local"),
        ("--executor-arg cups=2", "local has no such setting; did you mean cpus"),
        ("--device xpu", "no device 'xpu' on this machine"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(
    here, refused, monkeypatch, options, message, dry_run
):
    monkeypatch.setattr(MiniPipeline, "make_data", None)
    refused(f"{LAUNCH} {options} {dry_run}", message)
    assert not list(here.glob("sweeps.db")), "nothing was created"


OWN = "sweep launch --suite own --task imagefolder/knn --data-root . --device cpu --init random"
OWN += " --pairs pairs --labels labels --set model=tiny"
LARGE = f"{OWN} --set experts=seg"
SMALL = f"{LARGE} --set batch_size=4"


@pytest.fixture
def own_pairs(imagefolder, capsys):
    """Images, and pairs with labels."""
    toy.write_pairs(Path("pairs"), 8, 1)
    for index in range(8):
        make.save(Path(f"masks/{index:09d}.png"), toy.scene(index)[2]["seg"])
    Path("names.txt").write_text("\n".join(toy.CLASSES))
    labels = "labels make --pairs pairs --from seg=masks --classes names.txt --out labels"
    assert run_command(labels) == 0
    capsys.readouterr()


@pytest.mark.parametrize("dry_run", ["", "--dry-run"])
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{SMALL} --pairs absent", "absent"),
        (f"{SMALL} --labels absent", "absent"),
        (f"{OWN} --set batch_size=4", "the labels have no depth for pairs such as"),
        (f"{LARGE} --set batch_size=999", "batch_size 999 is more than the 8 training pairs"),
        (f"{SMALL} --vary batch_size=4,999", "batch_size 999 is more than the 8 training pairs"),
        (f"{SMALL} --data imagefolder=absent", "absent"),
        (f"{SMALL} --task camvid/linear", "dataset camvid is not in ."),
    ],
)
def test_data_that_do_not_fit_are_refused_before_any_trial(
    own_pairs, refused, command, message, dry_run
):
    refused(f"{command} {dry_run}", message)
    assert not runs_of("sweep-own")


def test_a_dry_run_prints_what_a_sweep_takes(own_pairs, workdir, capsys):
    before = set(workdir.iterdir())
    assert run_command(f"{SMALL} --vary lambda_seg=1,10 --dry-run --confirm 1") == 0
    output = capsys.readouterr().out
    assert "  to do · trial base\n  to do · trial λseg 10\n  at most 5 trainings:\n" in output
    assert "encode · at most" in output and output.count("  5 jobs of 0 GPUs") == 2
    assert output.endswith("on 1 fresh seed\n") and set(workdir.iterdir()) == before


def test_commands_without_a_study(here, capsys, refused, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(here / "home"))
    refused("sweep best", "start a study with `sweep launch`")
    assert run_command(f"{LAUNCH} --dry-run") == 0
    output = capsys.readouterr().out
    assert "smoke-linear: 0 of 2 trials done" in output
    assert "  to do · train expert unet-seg\n" in output and "trial λseg 10\n" in output
    assert not list(here.iterdir())


def test_a_listed_recipe_is_swept_over_the_losses_that_it_has(here, capsys):
    assert run_command("sweep launch --suite smoke --recipe cliptex-depth --dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    trials = [line.partition("trial ")[2] for line in lines if "to do · trial" in line]
    assert trials == ["base", "λclip 0.1", "λclip 10", "λdepth 0.1", "λdepth 10"]


@pytest.mark.parametrize("options", ["--dry-run", "--data-root nowhere"])
def test_the_precision_of_the_tasks_is_said_first(here, capsys, monkeypatch, options):
    monkeypatch.setattr("benchmark.executor.may_have_accelerator", lambda: True)
    monkeypatch.setattr("cliptex_common.device.prefers_bf16", lambda device: True)
    command = "sweep launch --suite paper --task voc/linear --device auto --init random"
    run_command(f"{command} --pairs pairs --labels labels {options}")
    line = "precision bf16 on the CPU (--set-task precision=fp32)"
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
    recipe = plan_sweep(options).recipe
    assert (recipe.name, recipe.seed, recipe.lr, recipe.epochs) == ("cliptex", 3, 2e-5, 2.0)
    assert (recipe.batch_size, recipe.experts) == (32, ("seg", "depth"))
    assert recipe.lambdas == {"clip": 1.0, "seg": 1.0, "depth": 1.0, "normal": 0.0}
