"""The main job from the command line: real files, real training, a real MLflow store."""

from __future__ import annotations

import base64
import json
import signal
import time
import zlib
from pathlib import Path

import pytest

from benchmark.__main__ import main
from probes.registry import find_task
from reports.metrics import declared
from reports.mlflow.client import Client
from tests.forks import Fork, command
from tests.probes.datasets.make import make_camvid, make_imagefolder, truncate

DENSE = ["--set", "max_iters=3", "--set", "batch_size=2", "--set", "size=32"]
FAST = [
    *DENSE,
    "--set",
    "encode_batch_size=4",
    "--set",
    "epochs=2",
    "--num-workers",
    "0",
    "--device",
    "cpu",
]
CAMVID = [
    "run",
    "--suite",
    "own",
    "--task",
    "camvid/linear",
    "--backbone",
    "random",
    "--data-root",
    ".",
]
TASKS = ["--task", "camvid/linear", "--task", "imagefolder/linear"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small datasets, and a folder whose MLflow store the tests of this module share."""
    folder = tmp_path_factory.mktemp("place")
    make_camvid(folder / "camvid", n_train=4, n_val=3)
    make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def run(*extra: str) -> int:
    return main(["run", "--suite", "own", *TASKS, "--data-root", ".", *FAST, *extra])


@pytest.mark.slow
def test_run_writes_every_number_and_reuses_it(here, capsys):
    assert run("--backbone", "random,efficientnet-lite0", "--json", "out.json") == 0
    document = json.loads(Path("out.json").read_text())
    assert document["suite"] == "own"
    assert document["seed"] == 0
    assert set(document["backbones"]) == {"random", "efficientnet-lite0"}
    client = Client(document["mlflow"]["tracking_uri"])
    experiment = client.get_experiment_by_name("own")
    parents = document["mlflow"]["run_ids"].values()
    for name, run_id in document["mlflow"]["run_ids"].items():
        parent = client.get_run(run_id)
        assert parent.info.status == "FINISHED"
        assert parent.data.tags["backbone"] == name
        assert {"suite", "seed", "weights.sha256"} <= set(parent.data.tags)
        children = client.search_runs(
            [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
        )
        assert {child.data.tags["task"] for child in children} == {
            "camvid/linear",
            "imagefolder/linear",
        }
        for child in children:
            task = child.data.tags["task"]
            assert declared(child.data.tags) == dict(find_task(task)[1].metrics)
            for metric, value in document["backbones"][name][task].items():
                assert child.data.metrics[metric] == pytest.approx(value)
                assert parent.data.metrics[f"{task}/{metric}"] == pytest.approx(value)
            artifacts = {f.path for f in client.list_artifacts(child.info.run_id)}
            assert {"protocol.json", "metrics.json", "per_image.npz"} <= artifacts
            assert child.inputs.dataset_inputs
            assert child.data.tags["preset"] == "own" and "differs" not in child.data.tags
            if task == "camvid/linear":
                assert {"config.py", "pictures", "log"} <= artifacts
                assert client.get_metric_history(child.info.run_id, "train/loss")
    shown = capsys.readouterr().out
    assert "camvid/linear" in shown
    assert "mIoU" in shown
    check_models(client, experiment.experiment_id, document)

    before = len(client.search_runs([experiment.experiment_id]))
    points = {
        run_id: len(client.get_metric_history(run_id, "camvid/linear/mIoU")) for run_id in parents
    }
    started = time.perf_counter()
    assert run("--backbone", "random,efficientnet-lite0", "--json", "again.json") == 0
    assert time.perf_counter() - started < 30
    again = json.loads(Path("again.json").read_text())
    assert again == document, "nothing changed, so nothing is run again and the same runs are named"
    assert len(client.search_runs([experiment.experiment_id])) == before
    assert "are finished and not run again" in capsys.readouterr().out
    assert run("--backbone", "random,efficientnet-lite0", "--device", "tpu") == 2
    for run_id in parents:
        assert (
            len(client.get_metric_history(run_id, "camvid/linear/mIoU")) == points[run_id] == 1
        ), "no point twice"

    assert run("--backbone", "random", "--force", "--json", "forced.json") == 0
    forced = json.loads(Path("forced.json").read_text())
    assert forced["backbones"]["random"] == document["backbones"]["random"], (
        "same seed, same metrics"
    )
    assert forced["mlflow"]["run_ids"] != document["mlflow"]["run_ids"]
    check_models(client, experiment.experiment_id, document)


def check_models(client: Client, experiment: str, document: dict) -> None:
    """MLflow's Models page has one row for each backbone, with its metrics by task; the registry
    its versions."""
    models = client.search_logged_models([experiment])
    assert sorted(model.name for model in models) == ["efficientnet-lite0", "random"], (
        "weights are found again"
    )
    for model in models:
        assert model.status == "READY" and int(model.params["parameters"]) > 1000
        by_task = {
            (metric_entry.dataset_name, metric_entry.key): metric_entry.value
            for metric_entry in model.metrics
        }
        for task, metrics in document["backbones"][model.name].items():
            for metric, value in metrics.items():
                assert by_task[task, metric] == pytest.approx(value)
        registered = client.get_registered_model(model.name)
        assert {"best"} <= set(registered.aliases) <= {"best", "baseline"}
        (version,) = client.search_model_versions(f"name = '{model.name}'")
        assert version.tags["cliptex.weights.sha256"] == model.tags["cliptex.weights.sha256"]
    assert client.get_model_version_by_alias("random", "baseline").version
    view = json.loads(client.get_experiment(experiment).tags["mlflow.sharedViewState.cliptex"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert "metrics.`camvid/linear/mIoU`" in state["selectedColumns"]
    (run, *_) = client.search_runs([experiment], state["searchFilter"])
    assert "camvid/linear/mIoU" in run.data.metrics


KILLED = [
    "run",
    "--suite",
    "own",
    "--task",
    "camvid/linear",
    "--data-root",
    ".",
    "--backbone",
    "random",
]
KILLED += [
    "--set",
    "max_iters=40",
    "--set",
    "batch_size=2",
    "--set",
    "size=32",
    "--num-workers",
    "1",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def undisturbed(folder):
    """What the command that the next test kills gives when nobody kills it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main([*KILLED, "--experiment", "undisturbed", "--json", "undisturbed.json"]) == 0
    return json.loads((folder / "undisturbed.json").read_text())["backbones"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle_and_run_again_gives_the_same(
    here, undisturbed, tmp_path, monkeypatch, number
):
    """A run that is killed leaves no RUNNING run behind, and the second try ends with the metrics
    of an undisturbed one."""
    experiment = f"killed-{number.name}"
    words = [*KILLED, "--experiment", experiment]
    monkeypatch.setenv(
        "CLIPTEX_HOME", str(tmp_path / "home")
    )  # no other run's scratch is to be taken for this one's
    victim = Fork(command, *words, output=tmp_path / "said")
    victim.wait_for(tmp_path / "home/work", "*/training-state.pth")
    victim.signal(number)
    if number == signal.SIGTERM:
        assert victim.end() == 143
        assert "Go on with: python -m benchmark run" in victim.text()
    else:
        assert victim.end() == -signal.SIGKILL
    assert main([*words, "--json", str(tmp_path / "resumed.json")]) == 0
    resumed = json.loads((tmp_path / "resumed.json").read_text())
    assert resumed["backbones"] == undisturbed
    client = Client(resumed["mlflow"]["tracking_uri"])
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert [r.info.status for r in runs] == ["FINISHED"] * 2, (
        "parent and cell went on in their own runs"
    )
    (cell,) = [r for r in runs if "cell" in r.data.tags]
    steps = {m.step for m in client.get_metric_history(cell.info.run_id, "train/loss")}
    missing = set(range(1, max(steps) + 1)) - steps  # what a killed process had not sent yet
    assert max(steps) == 40 and len(missing) < (20 if number == signal.SIGKILL else 1), (
        "the curve is in one piece"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "randum"], "did you mean random"),
        (["--suite", "pper"], "did you mean paper"),
        (["--task", "camvid/lineer"], "did you mean camvid/linear"),
        (["--set", "max_itr=3"], "did you mean max_iters"),
        (["--set", "max_iters"], "key=value"),
        (["--data", "camvid"], "NAME=DIR"),
        (["--data-root", "/no/such/folder"], "camvid"),
        (
            ["--backbone", "random", "--weights", "no-such-file.safetensors"],
            "no-such-file.safetensors",
        ),
        (["--backbone", "a,b", "--weights", "x"], "one by one"),
        (["--device", "cuda:77"], "this machine has"),
        (["--tracking-uri", "http://127.0.0.1:9"], "cannot use the MLflow store"),
        (["--tracking-uri", "./mlruns"], "file stores are refused"),
        (["--device", "tpu"], "no device"),
        (["--json", "."], "is a folder"),
        (["--wrong-option"], "no option --wrong-option; see python -m benchmark run --help"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(here, tmp_path, capsys, arguments, message):
    base = [*CAMVID, *DENSE]
    flags = list(zip(base[1::2], base[2::2], strict=True))
    words = [
        word
        for flag in flags
        if flag[0] not in arguments or flag[0] in ("--set", "--data")
        for word in flag
    ]
    assert main(["run", *words, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert "Traceback" not in captured.err


def test_a_broken_image_is_skipped_and_named_until_there_are_too_many(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    root = make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    images = sorted((root / "images/train").iterdir())
    truncate(images[0])
    truncate(images[1])
    assert main([*CAMVID, *DENSE, "--num-workers", "0"]) == 2
    document = capsys.readouterr().err
    assert images[0].name in document
    assert not (tmp_path / "mlruns").exists(), "nothing is half-written"


def test_a_loss_that_is_not_finite_fails_the_run_with_its_reason(here, capsys):
    wild = [
        "--set",
        "max_iters=6",
        "--set",
        "batch_size=2",
        "--set",
        "size=32",
        "--set",
        "lr=1e30",
        "--num-workers",
        "0",
    ]
    assert main([*CAMVID, *wild, "--experiment", "nan"]) == 1
    client = Client(f"sqlite:///{Path('mlflow.db').resolve()}")  # MLflow keeps stores by URI
    runs = client.search_runs([client.get_experiment_by_name("nan").experiment_id])
    assert {r.info.status for r in runs} == {"FAILED"}
    assert any("not finite" in r.data.tags["failure"] for r in runs)
    assert "not finite" in capsys.readouterr().out


def test_other_data_never_join_the_numbers_of_the_first(tmp_path, monkeypatch):
    """One changed image is another protocol: run again, under a parent of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_camvid(tmp_path / "camvid", n_train=4, n_val=3)
    command = [*CAMVID, *DENSE, "--num-workers", "0", "--json"]
    assert main([*command, "first.json"]) == 0
    images = sorted((root / "images/val").iterdir())
    images[0].write_bytes(images[1].read_bytes())
    assert main([*command, "second.json"]) == 0
    first, second = (json.loads(Path(f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["mlflow"]["run_ids"] != second["mlflow"]["run_ids"]
    client = Client(first["mlflow"]["tracking_uri"])
    runs = client.search_runs(
        [client.get_experiment_by_name("own").experiment_id], "tags.task = 'camvid/linear'"
    )
    assert len({run.data.tags["protocol"] for run in runs}) == len(runs) == 2
