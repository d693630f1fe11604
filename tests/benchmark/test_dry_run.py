"""``run --dump-config`` and ``run --dry-run`` create nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.executor import EXECUTORS
from benchmark.local import LocalExecutor
from tests.backbones.cliptex import toy
from tests.benchmark.other_package import registries
from tests.benchmark.run_command import listing, read_json, run_command, runs_of, store
from tests.probes.datasets import make

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("imagefolder")]

OWN = "run --suite own --backbone random --data-root . --device cpu --num-workers 0"
KNN = f"{OWN} --set size=32 --task imagefolder/knn"
TRAIN = "train --init random --recipe clip --set model=tiny --pairs pairs --out w.st --device cpu"
LINEAR = f"{OWN} --set epochs=2 --set size=32 --task imagefolder/linear"


def test_dump_config_needs_the_suites_data(workdir, refused):
    before = listing(workdir)
    refused("run --suite smoke --dump-config", "the data of suite 'smoke' do not exist yet")
    assert listing(workdir) == before


def test_dump_config_prints_the_settings_of_a_probe_without_mmengine(capsys):
    assert run_command(f"{LINEAR} --dump-config") == 0
    output = capsys.readouterr().out
    assert output.startswith("// random · imagefolder/linear\n{") and '"epochs": 2' in output
    assert not Path("mlflow.db").exists()


def test_dry_run_on_an_empty_home_names_every_unit(workdir, capsys):
    before = listing(workdir)
    words = "run --suite smoke --backbone clip-ft,cliptex --dry-run --jobs 1"
    assert run_command(words) == 0
    assert listing(workdir) == before
    lines = capsys.readouterr().out.splitlines()
    pending = [line.removeprefix("  to do · ") for line in lines]
    stages = [
        "render the mini world",
        "train expert unet-seg",
        "train expert unet-depth",
        "train expert unet-normals",
        "label the pairs",
        "train clip · seed 0",
        "train clip-ft · seed 0",
        "train cliptex · seed 0",
    ]
    assert sorted(pending[: len(stages)]) == sorted(stages)
    assert "cliptex · seed 0 · mini-class/zero-shot" in pending
    assert "tasks on the same images become one unit" in pending[len(stages)]
    assert len(pending) == len(stages) + 1 + 16 + 3
    assert "16 tasks unknown" in lines[-3] and "16 jobs of 0 GPUs" in lines[-2]
    assert lines[-1] == "2 backbones × 8 tasks × 1 seed: 0 done, 16 to do"


def test_dry_run_says_why_a_task_does_not_apply(workdir, capsys):
    words = f"{OWN} --task imagefolder/zero-shot,imagefolder/knn --dry-run"
    assert run_command(words) == 0
    line = "not applicable · random · seed 0 · imagefolder/zero-shot: no text tower"
    assert line in capsys.readouterr().out


def test_dry_run_after_a_run_shows_what_is_done(workdir, capsys):
    assert run_command(LINEAR) == 0
    capsys.readouterr()
    before = listing(workdir)
    assert run_command(f"{LINEAR} --dry-run") == 0
    done = "  done · random · seed 0 · imagefolder/linear\n"
    totals = "1 backbone × 1 task × 1 seed: 1 done, 0 to do\n"
    assert capsys.readouterr().out == done + totals
    assert run_command(f"{LINEAR} --dry-run --seeds 2") == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{done}  to do · random · seed 1 · imagefolder/linear\n")
    assert re.search(r"encode · at most \d+ images\n  about [\d.e-]+ processor hours", output)
    assert "1 task by earlier cells of the same tasks\n  1 job of 0 GPUs and " in output
    assert output.endswith("1 backbone × 1 task × 2 seeds: 1 done, 1 to do\n")
    assert run_command(f"{LINEAR} --dry-run --force") == 0
    assert "0 done, 1 to do" in capsys.readouterr().out
    assert set(listing(workdir)) == set(before)


def test_options_of_a_run_can_be_used_again_and_a_limited_run_is_another(
    workdir, capsys, monkeypatch
):
    assert run_command(f"{LINEAR} --limit 5 --json five.json --seed 3") == 0
    client = store()
    (parent,) = read_json("five.json")["mlflow"]["run_ids"].values()
    run = client.get_run(parent)
    assert run.data.params["limit"] == "5"
    assert run.info.run_name == "random · own · seed 3 · only 5 images"
    (cell,) = client.search_runs([run.info.experiment_id], "tags.`cliptex.cell` != ''")
    assert cell.data.tags["cliptex.data.partial"] == "true"
    path = client.download_artifacts(cell.info.run_id, "per_image.npz", str(workdir))
    with np.load(path) as scores:
        images = [str(name) for name in scores["image"]]
    classes = {path.name for path in (workdir / "imagefolder/val").iterdir()}
    assert len(images) == 5 and {Path(name).parent.name for name in images} == classes

    options = client.download_artifacts(parent, "options.yaml", str(workdir))
    (workdir / "elsewhere").mkdir()
    monkeypatch.chdir(workdir / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    again = f"run --config {options} --device cpu --num-workers 0"
    capsys.readouterr()
    for words, state in {
        "": "1 done, 0 to do",
        "--seed 4": "0 done, 1 to do",
        "--limit 12": "0 done, 1 to do",  # all of them
        "--set epochs=3": "0 done, 1 to do",
    }.items():
        assert run_command(f"{again} --dry-run {words}") == 0
        assert f"seed: {state}\n" in capsys.readouterr().out, words


def test_a_module_of_a_file_is_described_and_found_again_from_any_folder(
    workdir, capsys, monkeypatch
):
    name = "my-net.py:MyNet(width=8)"
    assert run_command("new backbone my-net") == 0
    for option in ("--dry-run", ""):
        assert run_command(f"{KNN} {option}".replace("random", name)) == 0
        line = f"{name}: 4 feature maps (channels 8, 8, 8, 8; strides 8, 8, 8, 8)"
        assert f"{line}, embedding of 8 (by its encode_image)\n" in capsys.readouterr().out
    before = {run.info.run_id for run in runs_of("own")}
    (parent,) = [run for run in runs_of("own") if "run.key" in run.data.tags]
    assert parent.data.tags["backbone"] == name
    options = store().download_artifacts(parent.info.run_id, "options.yaml", str(workdir))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    (workdir / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = f"run --config {options} --device cpu --num-workers 0 --json out.json"
    assert run_command(again) == 0
    assert [*read_json("out.json")["backbones"]] == [name]
    monkeypatch.chdir(workdir)
    assert {run.info.run_id for run in runs_of("own")} == before, "everything was finished"


class Remote(LocalExecutor):
    is_remote = True


@pytest.mark.parametrize("option", ["", "--dry-run"])
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{KNN} --executor lcoal", "no executor 'lcoal'; did you mean local"),
        (f"{KNN} --executor-arg cups=2", "local has no such setting; did you mean cpus"),
        (f"{KNN} --executor-arg cpus=x", "--executor-arg cpus=x: give an integer"),
        (f"{KNN} --executor ray --executor-arg address=127.0.0.1:1", "no Ray at 127.0.0.1:1"),
        (f"{KNN} --executor remote", "start `mlflow server` and give --tracking-uri"),
        (f"{KNN} --device xpu", "no device 'xpu' on this machine"),
        (f"{KNN} --weights absent", "no weights file absent"),
        (f"{KNN} --backbone cliptex --only", "backbone 'cliptex' has no weights of its own"),
        (f"{KNN} --set layers=99", "layers=99: backbone 'random' has"),
        (f"{LINEAR} --set tune=blocks:99", "tune=blocks:99: backbone 'random' has"),
        (f"{KNN} --data imagefolder=absent", "absent"),
        (f"{OWN} --task imagefolder/zero-shot", "none of these tasks applies"),
        (f"{OWN} --task camvid/linear --partial", "is 48x40: they do not belong together"),
        (
            "run --backbone random --data-root . --task nyu-depth/linear",
            "dataset nyu-depth is not in .",
        ),
        (f"{TRAIN} --set batch_size=999", "batch_size 999 is more than the 8 training pairs"),
        (f"{TRAIN} --recipe cliptex --set batch_size=4", "but has no labels; give --labels DIR"),
        (f"{TRAIN} --executor-arg cups=2", "local has no such setting; did you mean cpus"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(workdir, refused, command, message, option):
    make.make_camvid(workdir / "camvid", n_train=4, n_val=3)
    for path in (workdir / "camvid/annotations/val").iterdir():
        make.save(path, np.zeros((5, 5), np.uint8))
    toy.write_pairs(workdir / "pairs", 8, 1)
    with registries():
        EXECUTORS.register("remote", Remote)
        refused(f"{command} {option}", message)


@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_a_batch_that_holds_every_image_twice(workdir, refused, option):
    make.make_camvid(workdir / "camvid", n_train=4, n_val=3)
    command = f"{OWN} --task camvid/linear --partial --set batch_size=17 {option}"
    message = "batch_size=17, but camvid/linear is trained on 4 images; set at most batch_size=4"
    refused(command, message)
    refused(f"{command} --set train_share=0.5", "2 images")


@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_a_home_where_nothing_can_be_created(option, refused, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", "/proc/home")
    refused(f"{KNN} {option}", "cannot create /proc/home")
