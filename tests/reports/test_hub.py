"""Files for the Hugging Face Hub are those that its own classes read."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from benchmark.parser import main
from reports.report import ReportRequest, build_report
from reports.tracking import Tracker
from tests.reports.synthetic import write_run, write_runs

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('hub')}/mlflow.db"
    tracker = Tracker("paper", uri)
    write_runs(tracker, {"a/b": 0.5, "c": 0.6}, ("voc/linear", "imagenet/linear"), range(2))
    return uri


@pytest.fixture(scope="module")
def numbers(store):
    report = build_report(ReportRequest(["paper"], tracking_uri=store))
    return list(report.numbers().values())


def export(store, tmp_path, *options):
    words = f"results export --experiment paper --tracking-uri {store} --out {tmp_path / 'out'}"
    return main([*words.split(), *options])


def test_community_evaluations(store, numbers, tmp_path):
    hub = "--hub", "voc=org/voc"
    assert export(store, tmp_path, "--format", "hf-eval", *hub) == 0
    files = sorted((tmp_path / "out").rglob("*.yaml"))
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "a-b/.eval_results/voc-linear.yaml",
        "c/.eval_results/voc-linear.yaml",
    ]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[0].read_text()))
    place = "a/b", "voc/linear", "mIoU"
    (number,) = [n for n in numbers if (n.backbone, n.task, n.metric) == place]
    assert (entry.dataset_id, entry.task_id) == ("org/voc", "voc_linear")
    assert entry.value == number.value
    assert number.interval in entry.notes and "2 seeds" in entry.notes


def test_metadata_of_model_cards(store, numbers, tmp_path):
    assert export(store, tmp_path, "--format", "model-index") == 0
    text = (tmp_path / "out/c/model-index.yaml").read_text()
    name, results = model_index_to_eval_results(yaml.safe_load(text)["model-index"])
    assert name == "c"
    expected = {(n.task, n.metric): n.value for n in numbers if n.backbone == "c"}
    assert {(each.task_name, each.metric_type): each.metric_value for each in results} == expected


@pytest.mark.parametrize("format", ["hf-eval", "model-index", "csv", "zip"])
def test_what_was_shortened_is_said(format, store, tmp_path, capsys):
    changed = "size=64 instead of 512, 4 of 81 images of val"
    tags = {"voc/linear": {"changed": changed, "data.partial": "true"}}
    write_run(Tracker(f"toy {format}", store), "c", 0, {"voc/linear": 0.5}, task_tags=tags)
    out = tmp_path / f"out.{format}"
    words = ["results", "export", "--experiment", f"toy {format}", "--tracking-uri", store]
    assert main([*words, "--hub", "voc=org/voc", "--format", format, "--out", f"{out}"]) == 0
    files = [*out.rglob("*.yaml")] if out.is_dir() else []
    if format == "zip":
        assert changed in capsys.readouterr().out and main(["results", "check", f"{out}"]) == 0
        assert f"complete benchmark: voc/linear ({changed})" in capsys.readouterr().out
    elif format == "csv":
        assert set(pd.read_csv(out).shortened) == {changed}
    else:
        text = " ".join(files[0].read_text().split())
        assert f"not a number of the complete benchmark: {changed}" in text


@pytest.mark.parametrize(
    ("options", "count"), [(["hf-eval", "--hub", "voc=org/voc"], 2), (["model-index"], 1)]
)
def test_a_task_under_two_protocols_has_an_entry_for_each(options, count, store, tmp_path):
    for protocol in ("p", "quick"):
        write_runs(Tracker("protocols", store), {"c": 0.5}, protocol=protocol)
    words = f"results export --experiment protocols --tracking-uri {store} --out {tmp_path}"
    assert main([*words.split(), "--format", *options]) == 0
    files = list(tmp_path.rglob("*.yaml"))
    notes = re.findall("conditions ([0-9a-f]{16})", "".join(path.read_text() for path in files))
    assert len(files) == count and len({*notes}) == 2


@pytest.mark.parametrize("name, read", [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_a_row_for_each_number(name, read, store, numbers, tmp_path):
    assert export(store, tmp_path, "--format", name) == 0
    frame = read(tmp_path / "out")
    assert list(frame.value) == pytest.approx([number.value for number in numbers])
    assert list(frame.low) == pytest.approx([number.low for number in numbers], nan_ok=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [("", "--hub DATASET=ORG/NAME"), ("--hub voc=org/voc --hub vok=org/vok", "vok")],
)
def test_repositories_are_of_the_datasets(options, message, store, tmp_path, capsys):
    assert export(store, tmp_path, "--format", "hf-eval", *options.split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
