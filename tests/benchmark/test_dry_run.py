"""``run --dump-config`` and ``run --dry-run`` create nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.__main__ import main, parser
from benchmark.dry_run import duration
from reports.mlflow.client import Client
from tests.probes.datasets.make import make_camvid, make_imagefolder

OWN = ["run", "--suite", "own", "--backbone", "random", "--data-root", "."]
OWN += ["--device", "cpu", "--num-workers", "0"]
LINEAR = [*OWN, "--set", "epochs=2", "--task", "imagefolder/linear"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path


def listing(folder: Path) -> dict[Path, int]:
    """Every path in a folder with its time of change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_dump_config_needs_the_suites_data(folder, capsys):
    before = listing(folder)
    assert main(["run", "--suite", "smoke", "--dump-config"]) == 2
    error = capsys.readouterr().err
    assert "the data of suite 'smoke' do not exist yet" in error and error.count("\n") == 1
    assert listing(folder) == before


def test_dump_config_prints_a_config_that_plain_mmengine_reads(folder, capsys):
    from mmengine.config import Config

    make_camvid(folder / "camvid", n_train=4, n_val=3)
    assert main([*OWN, "--task", "camvid/linear", "--set", "max_iters=2", "--dump-config"]) == 0
    config = Config.fromstring(capsys.readouterr().out, ".py")
    assert config.train_cfg.max_iters == 2
    assert config.model.backbone.type == "FrozenBackbone"


def test_dump_config_prints_the_settings_of_a_probe_without_mmengine(folder, capsys):
    assert main([*LINEAR, "--dump-config"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("// random · imagefolder/linear\n{") and '"epochs": 2' in output
    assert not Path("mlflow.db").exists()


def test_dry_run_on_an_empty_home_names_every_unit(folder, capsys):
    before = listing(folder)
    words = ["run", "--suite", "smoke", "--backbone", "clip-ft,cliptex", "--dry-run"]
    assert main([*words, "--jobs", "1"]) == 0
    assert listing(folder) == before
    lines = capsys.readouterr().out.splitlines()
    pending = [line.removeprefix("  to do · ").partition(":")[0] for line in lines]
    stages = [
        "render the mini world",
        "train expert unet",
        "train expert dpt",
        "train expert nll-angmf",
        "label the pairs",
        "train clip · seed 0",
        "train clip-ft · seed 0",
        "train cliptex · seed 0",
    ]
    assert sorted(pending[: len(stages)]) == sorted(stages)
    assert "cliptex · seed 0 · mini-class/zero-shot" in pending
    assert lines[-1] == "2 backbones × 8 tasks × 1 seeds: 0 done, 16 to do"


def test_dry_run_says_what_units_need(folder, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.execution.local.cores", lambda: 4)
    words = [*LINEAR, "--dry-run", "--executor-arg", "gpus=0,1"]
    assert main(words) == 0
    title = "to do · random · seed 0 · imagefolder/linear"
    assert f"{title}: 1 unit, local, 1 core\n" in capsys.readouterr().out
    assert main([word if word != "cpu" else "auto" for word in words]) == 0
    assert f"{title}: 1 unit, local, 1 GPU and 1 core\n" in capsys.readouterr().out


def test_dry_run_after_a_run_says_what_is_done_and_how_long_the_rest_takes(folder, capsys):
    assert main(LINEAR) == 0
    capsys.readouterr()
    before = listing(folder)
    assert main([*LINEAR, "--dry-run"]) == 0
    assert capsys.readouterr().out == "1 backbones × 1 tasks × 1 seeds: 1 done, 0 to do\n"
    assert main([*LINEAR, "--dry-run", "--seeds", "2"]) == 0
    assert re.search(
        r"to do · random · seed 1 · imagefolder/linear: 1 unit, local, 1 core, about \d+ s\n"
        r"1 backbones × 1 tasks × 2 seeds: 1 done, 1 to do\n$",
        capsys.readouterr().out,
    )
    assert main([*LINEAR, "--dry-run", "--force"]) == 0
    assert "0 done, 1 to do" in capsys.readouterr().out
    assert set(listing(folder)) == set(before)


def test_options_of_a_run_can_be_used_again_and_a_limited_run_is_another(
    folder, capsys, monkeypatch
):
    assert main([*LINEAR, "--limit", "5", "--json", "five.json", "--seed", "3"]) == 0
    client = Client(f"sqlite:///{folder}/mlflow.db")
    (parent,) = json.loads(Path("five.json").read_text())["mlflow"]["run_ids"].values()
    run = client.get_run(parent)
    assert run.data.params["limit"] == "5"
    assert run.info.run_name == "random · own · seed 3 · only 5 images"
    (cell,) = client.search_runs([run.info.experiment_id], "tags.`cell` != ''")
    assert cell.data.tags["data.partial"] == "true"
    path = client.download_artifacts(cell.info.run_id, "per_image.npz", str(folder))
    with np.load(path) as scores:
        images = [str(name) for name in scores["image"]]
    classes = {path.name for path in (folder / "imagefolder/val").iterdir()}
    assert len(images) == 5 and {Path(name).parent.name for name in images} == classes

    options = client.download_artifacts(parent, "options.yaml", str(folder))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    again = ["run", "--config", options, "--device", "cpu", "--num-workers", "0"]
    capsys.readouterr()
    for words, state in (
        ([], "1 done, 0 to do"),
        (["--seed", "4"], "0 done, 1 to do"),
        (["--limit", "12"], "0 done, 1 to do"),  # all of them
        (["--set", "epochs=3"], "0 done, 1 to do"),
    ):
        assert main([*again, "--dry-run", *words]) == 0
        assert f"seeds: {state}\n" in capsys.readouterr().out, words
    parsed = parser("run").parse_args([*again, "--limit", "7"])
    assert (parsed.backbones, parsed.suite, parsed.tasks) == (
        ["random"],
        "own",
        ["imagefolder/linear"],
    )
    assert (parsed.seed, parsed.limit, parsed.only, parsed.data_root) == (3, 7, True, folder)


@pytest.mark.parametrize(
    ("seconds", "text"), [(89, "89 s"), (120, "2 min"), (5400, "1.5 h"), (360_000, "100.0 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
