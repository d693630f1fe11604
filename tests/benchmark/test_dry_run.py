"""``run --dump-config`` and ``run --dry-run`` create nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.run_command import listing, read_json, run_command, store

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("imagefolder")]

OWN = "run --suite own --backbone random --data-root . --device cpu --num-workers 0"
LINEAR = f"{OWN} --set epochs=2 --task imagefolder/linear"


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
    assert len(pending) == len(stages) + 1 + 16 + 1
    assert lines[-1] == "2 backbones × 8 tasks × 1 seeds: 0 done, 16 to do"


def test_dry_run_says_why_a_task_does_not_apply(workdir, capsys):
    words = f"{OWN} --task imagefolder/zero-shot --dry-run"
    assert run_command(words) == 0
    line = "not applicable · random · seed 0 · imagefolder/zero-shot: no text tower"
    assert line in capsys.readouterr().out


def test_dry_run_after_a_run_shows_what_is_done(workdir, capsys):
    assert run_command(LINEAR) == 0
    capsys.readouterr()
    before = listing(workdir)
    assert run_command(f"{LINEAR} --dry-run") == 0
    done = "  done · random · seed 0 · imagefolder/linear\n"
    totals = "1 backbones × 1 tasks × 1 seeds: 1 done, 0 to do\n"
    assert capsys.readouterr().out == done + totals
    assert run_command(f"{LINEAR} --dry-run --seeds 2") == 0
    assert capsys.readouterr().out == done + (
        "  to do · random · seed 1 · imagefolder/linear\n"
        "1 backbones × 1 tasks × 2 seeds: 1 done, 1 to do\n"
    )
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
        assert f"seeds: {state}\n" in capsys.readouterr().out, words


def test_dry_run_plans_for_the_device_of_another_machine(capsys):
    assert run_command(f"{LINEAR} --dry-run --executor slurm".replace("cpu", "xpu")) == 0
    assert "to do · random · seed 0 · imagefolder/linear\n" in capsys.readouterr().out
