"""Tables of sources are read again from a checkout: rows as in its files, and what has changed."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import subprocess
from functools import partial

import numpy as np
import pandas as pd
import pytest

from benchmark.published import main
from cliptex_common.errors import UserError
from reports.published import table
from reports.published.table import (
    CORPUS,
    PROBES,
    SEED_RECORDS,
    SPEED,
    TIMM,
    VISBENCH_SEEDS,
    ZERO_SHOT,
    read_source,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the tables, which ``read`` changes."""
    copy = tmp_path / "tables"
    shutil.copytree(table.FOLDER, copy)
    monkeypatch.setattr(table, "FOLDER", copy)
    return copy


def write_csv(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_timm(path, top1="80.100"):
    for file in TIMM:
        records = [{"model": "net.x", "img_size": size, "top1": top1} for size in (224, 288)]
        write_csv(path / f"results/results-{file}.csv", *records)
    speed = {"model": "net", "infer_img_size": 224, "infer_samples_per_sec": "1003.5"}
    write_csv(path / SPEED, {**speed, "infer_gmacs": "4.11", "param_count": "25.56"})


def rows_of(source, file="numbers"):
    return [tuple(row.values())[1:] for row in table.read_rows(file) if row["source"] == source]


def sources_in_order():
    return list(dict.fromkeys(row["source"] for row in table.read_rows("numbers")))


def test_open_clip(tmp_path, folder):
    model = {"name": "ViT-Z", "pretrained": "mine"}
    zero_shot = dict.fromkeys([*ZERO_SHOT, "Flickr", "MSCOCO"], "")
    values = {"ImageNet 1k": "0.8437", "MNIST": "1.0", "MSCOCO": "0.6376"}
    columns = itertools.product(("Flickr", "MSCOCO"), ("image", "text"), (1, 5, 10))
    names = [f"{data} {kind} retr. R@{k}" for data, kind, k in columns]
    retrieval = {**dict.fromkeys(names, ""), "Flickr text retr. R@5": "0.9970"}
    profile = {"model": "ViT-Z", "image_size": 224, "image_mparams": 86.19, "image_gflops": 35.1}
    docs = tmp_path / "open_clip/docs"
    write_csv(docs / "openclip_results.csv", {**model, **zero_shot, **values})
    write_csv(docs / "openclip_retrieval_results.csv", {**model, **retrieval})
    write_csv(docs / "model_profile.csv", profile)
    changes = read_source(docs.parent)
    name = "open_clip/ViT-Z/mine"
    assert rows_of("open_clip-zero-shot") == [
        (name, "imagenet1k/zero-shot", "top1", "84.37"),
        (name, "mnist/zero-shot", "top1", "100"),
        (name, f"{table.COCO}/retrieval", "mean_R@1", "63.76"),
    ]
    assert rows_of("open_clip-flickr30k") == [(name, "flickr30k/retrieval", "i2t_R@5", "99.70")]
    assert rows_of("open_clip-costs", "costs") == [
        ("open_clip/ViT-Z@224", "cost", "parameters", "86.19"),
        ("open_clip/ViT-Z@224", "cost", "gflops", "35.1"),
    ]
    assert changes.rows == 8
    assert sum(line.startswith("gone") for line in changes.lines) > 6000
    assert len(rows_of("timm-imagenet")) > 1500  # other sources stay


def test_timm_has_a_model_for_each_size(tmp_path, folder, capsys):
    write_timm(tmp_path / "timm")
    sources = sources_in_order()
    assert main(["read", "--source", str(tmp_path / "timm")]) == 0
    assert "15 numbers" in capsys.readouterr().out
    assert sources_in_order() == sources, "rows stay where they were in the table"
    assert rows_of("timm-imagenet") == [
        ("timm/net.x@224", "imagenet/own-head", "top1", "80.100"),
        ("timm/net.x@288", "imagenet/own-head", "top1", "80.100"),
    ]
    assert rows_of("timm-costs", "costs") == [
        ("timm/net@224", "cost", "parameters", "25.56"),
        ("timm/net@224", "cost", "gflops", "8.22"),
        ("timm/net@224", "cost", "images_per_second", "1003.5"),
    ]


def test_the_best_linear_probe_of_a_grid(tmp_path, folder):
    run = {"model_short": "ViT-Z mine", "dataset": "vtab/dtd", "lp_acc1": 0.5, "fewshot_k": -1}
    runs = [run, {**run, "lp_acc1": 0.625}, {**run, "lp_acc1": 0.9, "fewshot_k": 10}]
    path = tmp_path / "bench" / PROBES
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(runs))
    read_source(tmp_path / "bench")
    assert rows_of("clip_benchmark-linear") == [
        ("open_clip/ViT-Z/mine", "vtab-dtd/linear", "top1", "62.50")
    ]


def write_controls(root):
    """Scores of three backbones and five seeds on each board, in the layout of VisBench's records;
    a frame of them."""
    rng, rows = np.random.default_rng(0), []
    for scale, (board, (*_, metric, _)) in enumerate(VISBENCH_SEEDS.items(), 1):
        lines = []
        for backbone, seed in itertools.product("abc", range(5)):
            score = rng.normal(0.5, 0.01 * scale)
            record = {"backbone": backbone, "seed": seed, "metrics": {metric: score}}
            lines.append(json.dumps(record))
            rows.append({"board": board, "backbone": backbone, metric: score})
        path = root / SEED_RECORDS.format(board)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return pd.DataFrame(rows)


def test_visbench_has_the_newest_record_that_is_not_superseded(tmp_path, folder):
    scores = {"abs_rel": 0.1538, "rmse": 0.5308, "d1": 0.78513, "d2": 0.9, "d3": 1.0}
    weights = "timm/net/tag/224"
    record = {"task": "depth", "backbone": "net", "backbone_key": weights, "metrics": scores}
    corrected = {**record, "backbone_key": f"{weights}/crop1", "timestamp": "2026-09"}
    newest = {**corrected, "timestamp": "2026-10", "metrics": {**scores, "d1": 0.8}}
    dino = {**record, "backbone": "d", "backbone_key": "dinov2/dinov2_vits14/224/7764"}
    other = {**record, "task": "a probe that this suite has not"}
    records = [{**record, "timestamp": "2026-11"}, corrected, newest, {**dino, "timestamp": ""}]
    path = tmp_path / "visbench" / CORPUS
    path.parent.mkdir(parents=True)
    lines = [json.dumps(each) for each in [*records, {**other, "timestamp": "2026-12"}]]
    path.write_text("\n".join(lines))
    controls = write_controls(tmp_path / "visbench")
    assert read_source(tmp_path / "visbench").rows == 10 + len(VISBENCH_SEEDS)
    deviations = controls.groupby(["board", "backbone"]).std().groupby("board").median()
    written = {row["task"]: float(row["value"]) for row in table.read_rows("seeds")}
    for board, task, expected in [
        ("seeds/depth", "nyu-depth/linear", deviations["abs_rel"]),
        ("seeds/semantic_segmentation", "voc/linear", 100 * deviations["miou"]),
    ]:
        assert written[task] == pytest.approx(expected[board], rel=5e-3)
    rows = rows_of("visbench-nyu-depth")
    assert ("timm/net.tag", "nyu-depth/linear", "delta1", "80.00") in rows
    model = "hub/facebookresearch/dinov2:dinov2_vits14"
    assert (model, "nyu-depth/linear", "abs_rel", "0.154") in rows


def write_other_columns(path):
    for file in (*(f"results/results-{name}.csv" for name in TIMM), SPEED):
        write_csv(path / file, {"net": "x"})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "none of the files"),
        (write_other_columns, "not as expected"),
        *((partial(write_timm, top1=value), "not as expected") for value in ("", "n/a", "nan")),
    ],
)
def test_what_is_not_as_expected_changes_nothing(write, message, tmp_path, folder):
    write(tmp_path)
    before = (folder / "numbers.csv").read_bytes()
    with pytest.raises(UserError, match=message):
        read_source(tmp_path)
    assert (folder / "numbers.csv").read_bytes() == before


def test_the_commit_is_that_of_the_checkout_and_not_of_a_repository_around_it(tmp_path, folder):
    git = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git[:3], "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "outer"], check=True)
    write_timm(tmp_path / "timm")
    assert read_source(tmp_path / "timm").commit == ""
    write_timm(tmp_path)
    commit = read_source(tmp_path).commit
    (row,) = (row for row in table.read_rows("sources") if row["source"] == "timm-imagenet")
    assert commit and row["commit"] == commit and commit in row["url"]
