"""``run`` from the command line: real files, real training, a real MLflow store."""

from __future__ import annotations

import base64
import json
import signal
import zlib

import pytest

from probes.registry import find_task
from reports.store import read_run
from tests.benchmark.run_command import (
    read_json,
    run_command,
    runs_of,
    store,
    with_record_tags,
)
from tests.forks import Fork, command
from tests.imports import HEAVY, run_and_count
from tests.probes.datasets.make import truncate

pytestmark = pytest.mark.integration

TINY = "--set batch_size=2 --set size=32 --device cpu --num-workers"
CAMVID = f"run --suite own --task camvid/linear --backbone random --data-root . {TINY}"
BOTH = f"run --suite own --task camvid/linear,imagefolder/linear --data-root . {TINY} 0"
BOTH += " --set max_iters=3 --set encode_batch_size=4 --set epochs=2 --backbone"
NAMES = "random,efficientnet-lite0"


def test_a_probe_of_images_imports_nothing_of_openmmlab(imagefolder):
    words = f"run --suite own --task imagefolder/linear --backbone random --data-root . {TINY} 0"
    words += " --set epochs=2 --jobs 1"
    openmmlab = "mmengine mmcv cv2 mmseg mmdet open_clip"
    assert "top1" in run_and_count(words, openmmlab, 5200)
    # their features are stored now: no model is loaded, and no library of models
    words = words.replace("epochs=2", "epochs=3")
    assert "top1" in run_and_count(words, f"{openmmlab} timm.models torchvision", 4400)


def table(output: str) -> list[str]:
    """Its rows of numbers."""
    return [line for line in output.splitlines() if "↑" in line and "[" in line]


def test_run_writes_every_number_and_reuses_it(camvid, imagefolder, capsys):
    assert run_command(f"{BOTH} {NAMES} --json out.json") == 0
    document = read_json("out.json")
    assert (document["suite"], document["seed"]) == ("own", 0)
    results, parents = document["backbones"], document["mlflow"]["run_ids"]
    assert set(results) == set(parents) == set(NAMES.split(","))
    client = store()
    for name, run_id in parents.items():
        parent = with_record_tags(client.get_run(run_id))
        assert parent.info.status == "FINISHED" and parent.data.tags["backbone"] == name
        assert {"suite", "seed", "weights.sha256"} <= set(parent.data.tags)
        children = [
            run for run in runs_of("own") if run.data.tags.get("mlflow.parentRunId") == run_id
        ]
        assert {child.data.tags["task"] for child in children} == set(results[name])
        for child in children:
            task = child.data.tags["task"]
            assert read_run(child).declared == dict(find_task(task)[1].metrics)
            for metric, value in results[name][task].items():
                assert child.data.metrics[metric] == pytest.approx(value)
                assert parent.data.metrics[f"{task}/{metric}"] == pytest.approx(value)
            artifacts = {file.path for file in client.list_artifacts(child.info.run_id)}
            assert {"protocol.json", "metrics.json", "per_image.npz"} <= artifacts
            assert child.inputs.dataset_inputs
            assert child.data.tags["preset"] == "own" and "differs" not in child.data.tags
            if task == "camvid/linear":
                assert {"config.py", "pictures", "log"} <= artifacts
                assert client.get_metric_history(child.info.run_id, "train/loss")
    output = capsys.readouterr().out
    assert "camvid/linear" in output and "mIoU" in output
    check_models(results)

    before = len(runs_of("own"))
    # no more than a report needs
    heavy = f"{HEAVY} torch plotly sqlalchemy"
    again = run_and_count(f"{BOTH} {NAMES} --json again.json", heavy, 1300)
    assert "are finished and not run again" in again and "index.html" in again
    assert table(again) == table(output), "with its intervals"
    assert read_json("again.json") == document, "the same runs are named"
    assert len(runs_of("own")) == before
    assert run_command(f"{BOTH} {NAMES} --device tpu") == 2
    for run_id in parents.values():
        assert len(client.get_metric_history(run_id, "camvid/linear/mIoU")) == 1

    assert run_command(f"{BOTH} random --force --json forced.json") == 0
    forced = read_json("forced.json")
    assert forced["backbones"]["random"] == results["random"], "same seed, same metrics"
    assert forced["mlflow"]["run_ids"]["random"] != parents["random"]
    check_models(results)


def check_models(results: dict) -> None:
    """MLflow's Models page has a row for each backbone."""
    client = store()
    experiment = client.get_experiment_by_name("own")
    models = client.search_logged_models([experiment.experiment_id])
    assert sorted(model.name for model in models) == sorted(results), "one for the same weights"
    for model in models:
        assert model.status == "READY" and int(model.params["parameters"]) > 1000
        values = {(entry.dataset_name, entry.key): entry.value for entry in model.metrics}
        for task, metrics in results[model.name].items():
            for metric, value in metrics.items():
                assert values[task, metric] == pytest.approx(value)
    view = json.loads(experiment.tags["mlflow.sharedViewState.cliptex"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    columns = {"metrics.`camvid/linear/mIoU`", "tags.`cliptex.step`", "tags.`cliptex.set`"}
    assert columns <= set(state["selectedColumns"])
    (run, *_) = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert "camvid/linear/mIoU" in run.data.metrics


@pytest.mark.parametrize("can", [True, False])
def test_a_worker_is_asked_for_the_precision_of_a_device_that_this_machine_lacks(
    can, camvid, monkeypatch, capsys
):
    monkeypatch.setattr("benchmark.plan.decide_precision", lambda options: ("auto", ""))
    monkeypatch.setattr("benchmark.cell.prefers_bf16", lambda device: can)
    assert run_command(f"{CAMVID} 0 --set max_iters=1 --set precision=auto") == 0
    precision = "bf16" if can else "fp32"
    assert f"precision {precision} on the workers" in capsys.readouterr().out
    (cell,) = [run for run in runs_of("own") if "cell" in run.data.tags]
    assert cell.data.params["precision"] == precision


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again_gives_the_same(camvid, workdir):
    """No RUNNING run is left, and the metrics are those of an undisturbed run (interrupted ones:
    test_groups)."""
    words = f"{CAMVID} 1 --set max_iters=40"
    assert run_command(f"{words} --json out.json") == 0
    words += " --experiment killed"
    victim = Fork(command, *words.split(), output=workdir / "output")
    victim.wait_for(workdir / "home/work", "*/training-state.pth")
    victim.signal(signal.SIGKILL)
    assert victim.end() == -signal.SIGKILL
    assert run_command(f"{words} --json resumed.json") == 0
    assert read_json("resumed.json")["backbones"] == read_json("out.json")["backbones"]
    runs = runs_of("killed")
    assert [run.info.status for run in runs] == ["FINISHED"] * 2, "parent and cell are resumed"
    (cell,) = [run for run in runs if "cell" in run.data.tags]
    steps = {point.step for point in store().get_metric_history(cell.info.run_id, "train/loss")}
    missing = set(range(1, 41)) - steps  # what a killed process had not sent yet
    assert max(steps) == 40 and len(missing) < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--backbone randum", "did you mean random"),
        ("--data-root /no/such/folder", "camvid"),
        ("--device cuda:77", "this machine has"),
        ("--tracking-uri http://127.0.0.1:9", "cannot use the MLflow store"),
        ("--tracking-uri ./mlruns", "file stores are refused"),
        ("--json .", "is a folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(camvid, refused, options, message):
    defaults = {
        "--suite": "own",
        "--task": "camvid/linear",
        "--backbone": "random",
        "--data-root": ".",
    }
    words = [f"{flag} {value}" for flag, value in defaults.items() if flag not in options]
    refused(f"run {' '.join(words)} {options}", message)


def test_too_many_broken_images_end_the_run_and_are_named(camvid, capsys):
    images = sorted((camvid / "images/train").iterdir())
    truncate(images[0])
    truncate(images[1])
    assert run_command(f"{CAMVID} 0 --set max_iters=3") == 2
    assert images[0].name in capsys.readouterr().err


def test_a_loss_that_is_not_finite_fails_the_run_with_its_reason(camvid, capsys):
    assert run_command(f"{CAMVID} 0 --set max_iters=6 --set lr=1e30") == 1
    runs = runs_of("own")
    assert {run.info.status for run in runs} == {"FAILED"}
    assert any("not finite" in run.data.tags["failure"] for run in runs)
    assert "not finite" in capsys.readouterr().out


def test_other_data_never_join_the_numbers_of_the_first(camvid):
    """One changed image is another protocol: run again, under a parent of its own."""
    assert run_command(f"{CAMVID} 0 --set max_iters=3 --json first.json") == 0
    images = sorted((camvid / "images/val").iterdir())
    images[0].write_bytes(images[1].read_bytes())
    assert run_command(f"{CAMVID} 0 --set max_iters=3 --json second.json") == 0
    first, second = (read_json(f"{name}.json")["mlflow"] for name in ("first", "second"))
    assert first["run_ids"] != second["run_ids"]
    protocols = [run.data.tags["protocol"] for run in runs_of("own") if "task" in run.data.tags]
    assert len(set(protocols)) == len(protocols) == 2
