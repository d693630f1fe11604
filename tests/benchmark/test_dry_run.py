"""``run --dump-config`` and ``run --dry-run`` look, and make nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.__main__ import main, parser
from reports.mlflow.client import Client
from tests.probes.datasets.make import make_camvid, make_imagefolder

OWN = [
    "run",
    "--suite",
    "own",
    "--backbone",
    "random",
    "--data-root",
    ".",
    "--device",
    "cpu",
    "--num-workers",
    "0",
]
OWN += ["--set", "epochs=2", "--task", "imagefolder/linear"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    return tmp_path


def listing(folder: Path) -> dict[Path, int]:
    """All that is in a folder, and when it was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_dump_config_does_not_make_what_it_lacks(here, capsys):
    before = listing(here)
    for suite in ("mini", "smoke"):
        assert main(["run", "--suite", suite, "--dump-config"]) == 2
        error = capsys.readouterr().err
        assert f"the data of suite '{suite}' are not made yet" in error and error.count("\n") == 1
    assert listing(here) == before


def test_dump_config_prints_a_config_that_plain_mmengine_reads(here, capsys):
    from mmengine.config import Config

    make_camvid(here / "camvid", n_train=4, n_val=3)
    words = [
        *OWN[: OWN.index("--set")],
        "--task",
        "camvid/linear",
        "--set",
        "max_iters=2",
        "--dump-config",
    ]
    assert main(words) == 0
    config = Config.fromstring(capsys.readouterr().out, ".py")
    assert config.train_cfg.max_iters == 2
    assert config.model.backbone.type == "FrozenBackbone"


def test_dump_config_prints_what_a_probe_without_mmengine_is_told(here, capsys):
    assert main([*OWN, "--dump-config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("// random · imagefolder/linear\n{") and '"epochs": 2' in shown
    assert not Path("mlflow.db").exists()


def test_dry_run_on_an_empty_home_names_every_unit_and_makes_nothing(here, capsys):
    before = listing(here)
    assert (
        main(
            ["run", "--suite", "smoke", "--backbone", "clip-ft,cliptex", "--dry-run", "--jobs", "1"]
        )
        == 0
    )
    assert listing(here) == before
    lines = capsys.readouterr().out.splitlines()
    to_do = [
        re.fullmatch(r"  to do · (.*): (\d+) units?, (.*), (.*)", line)
        for line in lines
        if "to do · " in line
    ]
    assert all(to_do) and {match[4] for match in to_do} == {"time unknown"}
    names = [match[1] for match in to_do]
    stages = [
        "render the mini world",
        "train expert unet",
        "train expert dpt",
        "train expert nll-angmf",
        "label the pairs",
    ]
    stages += ["train clip · seed 0", "train clip-ft · seed 0", "train cliptex · seed 0"]
    assert names[: len(stages)] == stages
    assert len(names) == len(stages) + 2 * 8 and "cliptex · seed 0 · mini-class/zero-shot" in names
    units = sum(int(match[2]) for match in to_do)
    assert "2 backbones × 8 tasks × 1 seeds: 0 done, 16 to do" in lines
    assert f"{units} units to do" in lines
    assert lines[-1].startswith(
        "not counted, since no earlier run on this kind of device is in MLflow: render the mini"
        " world,"
    )


def test_dry_run_says_places_and_needs(here, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.execution.local.cores", lambda: 4)
    assert main([*OWN, "--dry-run", "--executor-arg", "gpus=0,1"]) == 0
    shown = capsys.readouterr().out
    assert "to do · random · seed 0 · imagefolder/linear: 1 unit, local, 1 core" in shown
    assert (
        main(
            [
                *[word if word != "cpu" else "auto" for word in OWN],
                "--dry-run",
                "--executor-arg",
                "gpus=0,1",
            ]
        )
        == 0
    )
    assert (
        "imagefolder/linear: 1 unit, local, 1 GPU and 1 core, time unknown"
        in capsys.readouterr().out
    )


def test_dry_run_after_a_run_says_what_is_done_and_how_long_the_rest_takes(here, capsys):
    assert main(OWN) == 0
    capsys.readouterr()
    before = listing(here)
    assert main([*OWN, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 backbones × 1 tasks × 1 seeds: 1 done, 0 to do",
        "nothing is left to do",
    ]
    assert main([*OWN, "--dry-run", "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"to do · random · seed 1 · imagefolder/linear: 1 unit, local, 1 core, about \d+ s\n"
        r"1 backbones × 1 tasks × 2 seeds: 1 done, 1 to do\n"
        r"1 units to do: about \d+ s with 1 at once, .* on disk\n$",
        shown,
    ), shown
    assert main([*OWN, "--dry-run", "--force"]) == 0
    assert "0 done, 1 to do" in capsys.readouterr().out
    assert main([*OWN, "--dry-run", "--seeds", "10000"]) == 0, (
        "seeds that nothing is known of are looked at once"
    )
    shown = capsys.readouterr().out
    assert (
        "seed 9999 · imagefolder/linear and 9998 seeds like it: 9999 units, local, 1 core, about "
        in shown
    )
    assert "1 backbones × 1 tasks × 10000 seeds: 1 done, 9999 to do\n" in shown
    after = listing(here)
    assert set(after) == set(before)


def test_what_a_run_records_can_be_given_back_and_a_limited_one_is_none_on_all_images(
    here, capsys, monkeypatch
):
    assert main([*OWN, "--limit", "5", "--json", "five.json", "--seed", "3"]) == 0
    client = Client(f"sqlite:///{here}/mlflow.db")
    (parent,) = json.loads(Path("five.json").read_text())["mlflow"]["run_ids"].values()
    run = client.get_run(parent)
    assert (
        run.data.params["limit"] == "5"
        and run.info.run_name == "random · own · seed 3 · only 5 images"
    )
    (cell,) = client.search_runs([run.info.experiment_id], "tags.`cell` != ''")
    assert cell.data.tags["data.partial"] == "true"
    with np.load(client.download_artifacts(cell.info.run_id, "per_image.npz", str(here))) as scores:
        images = [str(name) for name in scores["image"]]
    classes = {Path(name).parent.name for name in images}
    assert len(images) == 5 and classes == {
        path.name for path in (here / "imagefolder/val").iterdir()
    }

    options = client.download_artifacts(parent, "options.yaml", str(here))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/mlflow.db")
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
    told = parser("run").parse_args([*again, "--limit", "7"])
    assert (told.backbones, told.suite, told.tasks, told.overrides) == (
        ["random"],
        "own",
        ["imagefolder/linear"],
        ["epochs=2"],
    )
    assert (told.seed, told.limit, told.only, told.data_root) == (3, 7, True, here)


def test_dry_run_says_what_is_wrong(here, capsys):
    assert main([*OWN, "--dry-run", "--data", "imagefolder=/no/where"]) == 2
    assert "/no/where" in capsys.readouterr().err
    assert not Path("mlflow.db").exists()
