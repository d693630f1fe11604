"""A head that is trained once and scored on other sets, which others share: in commands, in Python,
and in worker processes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
from benchmark import evaluate
from cliptex_common.errors import UserError
from probes.base import Head
from probes.datasets import classification
from probes.datasets.base import PreparedDataset
from probes.predictor import load_predictor, read_head
from probes.registry import DATASETS, find_task
from tests.benchmark.run_command import read_json, run_command, runs_of, store
from tests.probes.datasets.make import make_imagefolder, make_nyu
from tests.probes.datasets.make_shifts import make_imagenet, make_real, make_shift
from tests.probes.datasets.make_sun_rgbd import make_sun_rgbd
from tests.probes.tiny_dense import with_declared

pytestmark = pytest.mark.integration

RUN = "run --suite paper --backbone random --data-root . --device cpu --num-workers 0 --partial"
EPOCHS = "--set epochs=2 --set size=32"
DENSE = "--set max_iters=2 --set batch_size=2 --set size=32 --set lr_grid=()"


@pytest.fixture
def shifts(workdir):
    make_imagenet(workdir / "imagenet")
    make_shift(workdir, "imagenet-a")
    return workdir


def cells(experiment: str = "paper") -> dict[str, list]:
    """Task → its runs in MLflow."""
    tasks: dict[str, list] = {}
    for run in runs_of(experiment):
        if "task" in run.data.tags:
            tasks.setdefault(run.data.tags["task"], []).append(run)
    return tasks


def test_a_head_is_trained_once_and_scored_on_another_set(shifts, capsys):
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet/linear") == 0
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet-a/linear --json a.json") == 0
    tags = {task: [run.data.tags for run in runs] for task, runs in cells().items()}
    (trained,), (scored,) = tags["imagenet/linear"], tags["imagenet-a/linear"]
    assert trained["head.sha256"] == scored["head.sha256"] and trained["cell"] != scored["cell"]
    metrics = read_json("a.json")["backbones"]["random"]
    assert set(metrics) == {"imagenet/linear", "imagenet-a/linear"}
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet-a/linear") == 0
    assert "2 of 2 tasks are finished" in capsys.readouterr().out
    assert {task: len(runs) for task, runs in cells().items()} == dict.fromkeys(metrics, 1)

    (run,) = cells()["imagenet/linear"]
    predict, indices = load_predictor(run.info.run_id), [470, 954]
    hits = [
        np.argmax(predict(path)[indices]) == position
        for position, index in enumerate(indices)
        for path in (shifts / "imagenet-a" / classification.wnids()[index]).iterdir()
    ]
    # the other 198 classes of the set were never trained on
    assert metrics["imagenet-a/linear"]["top1"] == pytest.approx(100 * np.mean(hits))


def test_another_head_is_another_number(shifts):
    for epochs in (1, 2):
        command = f"{RUN} --jobs 1 --task imagenet-a/linear --set size=32"
        command += f" --set imagenet/linear.epochs={epochs}"
        assert run_command(command) == 0
    runs = cells()
    heads = {run.data.tags["head.sha256"] for run in runs["imagenet-a/linear"]}
    assert len(heads) == len(runs["imagenet/linear"]) == 2


def test_without_a_head_the_training_images_are_used_again(shifts):
    command = f"{RUN} --set size=32 --jobs 1 --task imagenet-a/knn,imagenet-a/few-shot"
    assert run_command(command, "--json", "knn.json") == 0
    assert set(cells()) == {"imagenet-a/knn", "imagenet-a/few-shot"}
    metrics = read_json("knn.json")["backbones"]["random"]
    assert metrics["imagenet-a/knn"]["top1"] == 100


def test_a_number_needs_the_head_of_another_task(shifts, monkeypatch):
    def fail(context):
        raise RuntimeError("broken")

    monkeypatch.setattr("probes.image_level.linear.train_on_features", fail)
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet-a/linear --json a.json") == 1
    reasons = read_json("a.json")["holes"]
    assert "imagenet/linear, whose head it uses" in str(reasons)


def test_python_and_the_command_find_each_others_heads(shifts):
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet/linear") == 0
    options = {"suite": "paper", "data_root": ".", "partial": True, "device": "cpu"}
    results = evaluate("random", "imagenet-a/linear", settings={"epochs": 2, "size": 32}, **options)
    status = results.frame.groupby("task").status.first().to_dict()
    assert status == {"imagenet/linear": "cached", "imagenet-a/linear": "done"}


@pytest.mark.parametrize(
    ("is_file", "tier"),
    [(False, ""), (True, ""), (False, ":tune=lora:2")],
    ids=["run", "file", "tuned"],
)
def test_a_stored_head_is_scored_without_the_images_that_it_was_trained_on(shifts, is_file, tier):
    task = f"imagenet-a/linear{tier}"
    words = "--set tune_rates=0.001" if tier else ""
    assert run_command(f"{RUN} {EPOCHS} {words} --jobs 1 --task {task}") == 0
    (trained,), (scored,) = cells()[f"imagenet/linear{tier}"], cells()[task]
    shutil.rmtree("imagenet")
    head = trained.info.run_id
    if is_file:
        head = store().download_artifacts(head, "head/head.safetensors", str(shifts))
    options = {"data_root": ".", "partial": True, "device": "cpu", "experiment": "elsewhere"}
    results = evaluate("random", task, heads=[head], **options)
    assert results.frame.status.tolist() == ["done"] * 2
    (again,) = cells("elsewhere")[task]
    assert set(cells("elsewhere")) == {task}, "nothing is trained"
    for same in ("cell", "protocol", "head.sha256"):
        assert again.data.tags[same] == scored.data.tags[same]
    assert again.data.metrics["top1"] == scored.data.metrics["top1"]
    results = evaluate("random", task, heads=[head], **options)
    assert results.frame.status.tolist() == ["cached"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task imagenet-a/linear --set epochs=3", "was trained with 2"),
        ("--task imagenet-a/linear --seed 1", "no head is of random"),
        ("--task imagenet-a/knn", "no chosen task is scored with the head of imagenet/linear"),
    ],
)
def test_a_stored_head_is_not_used_for_what_it_does_not_fit(shifts, capsys, words, message):
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet/linear") == 0
    (trained,) = cells()["imagenet/linear"]
    assert run_command(f"{RUN} --jobs 1 {words} --head {trained.info.run_id}") == 2
    assert message in capsys.readouterr().err


def test_a_head_that_is_nowhere_is_named(workdir, capsys):
    assert run_command(f"{RUN} --jobs 1 --task imagenet-a/linear --head nope") == 2
    assert "nope is neither a file nor a run" in capsys.readouterr().err


@pytest.mark.parametrize("other_name", ["", "犬"])
def test_other_classes_are_refused_before_the_work(other_name, workdir, capsys, monkeypatch):
    shifted = replace(DATASETS.find("imagefolder"), name="shifted", trained_on="imagefolder")
    monkeypatch.setitem(DATASETS, "shifted", shifted)
    make_imagefolder(workdir / "imagefolder", n_train=8, n_val=12)
    command = "run --backbone random --device cpu --num-workers 0 --jobs 1 --partial"
    command += " --data imagefolder=imagefolder"
    assert run_command(f"{command} {EPOCHS} --task imagefolder/linear") == 0
    (trained,) = cells("own")["imagefolder/linear"]
    shutil.copytree("imagefolder/val", "other/val")
    shutil.rmtree("other/val/red")
    if other_name:
        shutil.copytree("other/val/blue", f"other/val/{other_name}")
    head = f"--head {trained.info.run_id}"
    for words in ("", head):
        assert run_command(f"{command} --data shifted=other --task shifted/linear {words}") == 2
        message = capsys.readouterr().err
        names = f"blue, green, white{other_name and f', {other_name}'}"
        assert f"({names}), what it is scored with has 4 classes (blue, green, red, w" in message
    shutil.rmtree("imagefolder/val")
    shutil.copytree("other/val", "imagefolder/val")
    (Path("imagefolder/train/red")).rename(f"imagefolder/train/{other_name or 'white/more'}")
    assert run_command(f"{command} --task imagefolder/calibration {head}") == 2
    assert "what it is scored with has 4 classes" in capsys.readouterr().err
    same = replace(shifted, same_classes=True)
    monkeypatch.setitem(DATASETS, "shifted", same)
    code = run_command(f"{command} --data shifted=other --task shifted/linear {head}")
    assert code == (0 if other_name else 2)


def test_a_file_that_is_not_of_a_task_s_run_is_named(workdir, capsys):
    about = {"task": "imagenet", "kind": "classification", "classes": (), "backbone": {}}
    about |= {"weights.sha256": "", "seed": 0}
    Head({"weight": torch.zeros(2)}, about).write(Path("my.st"))
    assert run_command(f"{RUN} --jobs 1 --task imagenet-a/linear --head my.st") == 2
    assert "my.st does not hold what it was trained on" in capsys.readouterr().err


def test_a_head_that_was_changed_after_its_run_is_not_scored(shifts, capsys):
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet/linear") == 0
    (trained,) = cells()["imagenet/linear"]
    path = Path(trained.info.artifact_uri, "head/head.safetensors")
    head = read_head(path)
    replace(head, tensors={name: 0 * each for name, each in head.tensors.items()}).write(path)
    assert run_command(f"{RUN} {EPOCHS} --jobs 1 --task imagenet-a/linear") == 2
    assert "the file was changed" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_depth_head_of_nyu_is_scored_on_sun_rgbd(workdir, jobs):
    make_nyu(workdir / "nyu", n_train=2, n_val=1, size=(640, 480))
    depths = make_sun_rgbd(workdir / "sunrgbd")
    command = f"{RUN} {DENSE} --jobs {jobs} --task sun-rgbd/linear --json sun.json"
    assert run_command(command) == 0
    runs = cells()
    (trained,) = runs["nyu-depth/linear"]
    errors = []
    predict = load_predictor(trained.info.run_id)
    for image, depth in depths.items():
        target, prediction = np.minimum(depth, 8.0), np.minimum(predict(image), 8.0)
        valid = np.zeros(depth.shape, bool)
        valid[45:471, 41:601] = True
        valid &= target > 1e-3
        errors.append(np.sqrt(np.square(prediction - target)[valid].mean()))
    metrics = read_json("sun.json")["backbones"]["random"]["sun-rgbd/linear"]
    assert metrics["rmse"] == pytest.approx(np.mean(errors), rel=1e-4)

    shutil.rmtree("nyu")
    words = f"--experiment elsewhere --head {trained.info.run_id} --json again.json"
    assert run_command(f"{RUN} --jobs {jobs} --task sun-rgbd/linear {words}") == 0
    assert read_json("again.json")["backbones"]["random"] == {"sun-rgbd/linear": metrics}


def test_a_probe_that_keeps_nothing_is_refused(workdir):
    spec, probe = find_task("voc/in-context")
    data = with_declared(PreparedDataset(spec.name, workdir, {}), trained_on="ade20k")
    with pytest.raises(UserError, match="keeps nothing"):
        probe.fits(backbones.create("random"), data, probe.settings_type())


@pytest.mark.slow
def test_photographs_of_all_sets(workdir, real_data):
    """Of a real backbone: what is changed is recognised less often, and what is unknown is told
    from what is known."""
    make_real(workdir, real_data)
    command = "run --suite robustness --backbone efficientnet-lite0 --data-root . --partial"
    command += " --set size=96 --set imagenet/linear.epochs=10 --device cpu --num-workers 0"
    assert run_command(f"{command} --jobs 1 --json all.json") == 0
    metrics = read_json("all.json")["backbones"]["efficientnet-lite0"]
    for probe in ("linear", "knn"):
        own = metrics[f"imagenet/{probe}"]["top1"]
        assert metrics[f"imagenet_sketch/{probe}"]["top1"] < own
        assert metrics[f"imagenet-val-a/{probe}"]["top1"] > own, "of fewer classes"
        assert metrics[f"imagenet-c/{probe}"]["mCE"] < 100
        # the border that was added is cut off
        reference = metrics[f"imagenet-val-objectnet/{probe}"]
        assert metrics[f"objectnet/{probe}"] == reference
    assert metrics["imagenet-ood/linear"]["auroc_energy"] > 70
    calibration = metrics["imagenet/calibration"]
    assert calibration["nll_scaled"] < calibration["nll"]
    assert calibration["top1"] == metrics["imagenet/linear"]["top1"]
