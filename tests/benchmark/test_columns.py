"""Checkpoints as columns under labels of the user's, from the first command to every output."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import constants

from backbones.checkpoint import load_checkpoint, save_checkpoint
from benchmark import evaluate
from reports.records import Cell, ParentRun
from reports.report import ReportRequest, build_report
from reports.store import Store
from tests.backbones.cliptex import toy
from tests.benchmark.run_command import read_json, run_command, runs_of

pytestmark = pytest.mark.integration

TRAIN = "train --recipe clip --init random --pairs pairs --out w.st --device cpu --set model=tiny"
RUN = "run --suite own --task imagefolder/knn --data-root . --device cpu --jobs 1 --num-workers 0"
FILES = ("model.safetensors", "later/w.safetensors")


@pytest.fixture
def sources(imagefolder, monkeypatch):
    """A training whose file is gone, and two checkpoints in the hub's cache, without network."""
    toy.write_pairs(Path("pairs"), 8, 1)
    assert run_command(f"{TRAIN} --set batch_size=4 --set epochs=1") == 0
    checkpoint = load_checkpoint("w.st")
    repository = Path("hub/models--me--net")
    for number, file in enumerate(FILES, 1):
        path = repository / "snapshots/c0ffee" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: value * (1 + number) for name, value in checkpoint.state.items()}
        save_checkpoint(replace(checkpoint, path=path, state=state))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c0ffee")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("hub").absolute()))
    Path("w.st").unlink()
    (training,) = [run for run in runs_of("train") if run.data.tags["stage"] == "train"]
    return {"a": f"run:{training.info.run_id}", "b": "hf:me/net", "c": f"hf:me/net/{FILES[1]}"}


def labels_in_mlflow():
    """Run → its tag."""
    return {run.info.run_id: run.data.tags.get("label") for run in runs_of("own")}


def labelled(sources):
    return ",".join(f"{label}={source}" for label, source in sources.items())


def test_labels_from_a_training_and_a_hub_are_everywhere_and_may_change(sources, capsys, refused):
    command = f"{RUN} --tag who=me --json out.json --backbone"
    assert run_command(command, labelled(sources)) == 0
    document, store = read_json("out.json"), Store()
    assert set(document["backbones"]) == set(document["mlflow"]["run_ids"]) == set(sources)
    runs = store.runs(["own"])
    parents = {run.label: run for run in runs if isinstance(run, ParentRun)}
    assert {name: run.run_id for name, run in parents.items()} == document["mlflow"]["run_ids"]
    assert {run.own_tags["who"] for run in parents.values()} == {"me"}
    assert len({run.network for run in parents.values()}) == 3
    keys = {run.run_id: run.key for run in runs if isinstance(run, Cell)}
    labels = labels_in_mlflow()
    assert {labels[run.run_id] for run in runs if isinstance(run, Cell)} == set(sources)

    capsys.readouterr()
    assert run_command("results label c", "trained longer") == 0
    assert run_command("results label", parents["b"].run_id, "of the hub") == 0
    assert run_command("results list --experiment own") == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    columns = [re.split(r"  +", line)[0] for line in lines]
    assert columns == ["a", "of the hub", "trained longer"]
    assert all(line.endswith("who=me") for line in lines)

    of_cells = {labels_in_mlflow()[run_id] for run_id in keys}
    assert of_cells == {"a", "of the hub", "trained longer"}

    names = dict(zip("abc", columns, strict=True))
    renamed = {names[label]: source for label, source in sources.items()}
    assert run_command(command, labelled(renamed)) == 0
    again = read_json("out.json")["backbones"]
    assert again == {names[old]: numbers for old, numbers in document["backbones"].items()}
    results = evaluate(
        renamed, "imagefolder/knn", suite="own", data_root=".", device="cpu", num_workers=0
    )
    assert set(results.table().columns) == set(renamed)
    assert set(results.frame.status) == {"cached"}
    runs = store.runs(["own"])
    assert {run.run_id: run.key for run in runs if isinstance(run, Cell)} == keys
    assert set(build_report(ReportRequest(["own"])).backbones) == set(renamed)
    assert run_command("results export --experiment own --format csv --out numbers.csv") == 0
    assert set(pd.read_csv("numbers.csv").backbone) == set(renamed)
    assert run_command("results export --experiment own --out shared.zip") == 0
    assert run_command("results page shared.zip --out site") == 0
    page = Path("site/index.html").read_text()
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    assert set(content["columns"][0]["cells"]) == set(renamed)
    refused(
        "results label d e --experiment own", "no backbone or run 'd' has results in experiment"
    )
    taken = f"results label {parents['c'].run_id} a --experiment own"
    refused(taken, "'a' is the name of other results")
    refused(f"{RUN} --backbone a=run:absent", "run:absent: no such run in sqlite:")
    refused(f"{RUN} --backbone a=run:{parents['a'].run_id}", "is no finished training")
    refused(f"{RUN} --backbone a=hf:me/other", "no network for the files of 'hf:me/other'")

    assert run_command(command, labelled(sources)) == 0, "the names of this command count"
    labels = labels_in_mlflow()
    assert {labels[run_id] for run_id in keys} == set(sources)
