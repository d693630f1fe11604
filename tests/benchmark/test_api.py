"""The suite from Python: modules and names in, frames, per-image scores and the report out."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
from torch import nn

from backbones.backbone import DataConfig
from backbones.registry import BACKBONES
from benchmark import compare, evaluate
from cliptex_common.errors import UserError
from reports.report import ReportRequest, build_report
from reports.store import Store
from tests.kit.networks import Patches
from tests.probes.datasets.make import make_camvid, make_imagefolder

pytestmark = pytest.mark.integration

TASKS = ["imagefolder/linear", "camvid/linear"]
IMAGES = DataConfig((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SETTINGS = {"epochs": 1, "size": 32, "max_iters": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Tiny data in two layouts, a store, and what every evaluation here shares."""
    folder = tmp_path_factory.mktemp("api")
    make_camvid(folder / "camvid", n_train=4, n_val=4)
    make_imagefolder(folder / "imagefolder", n_train=8, n_val=12)
    store = f"sqlite:///{folder}/mlflow.db"
    data = {name: folder / name for name in ("camvid", "imagefolder")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CLIPTEX_HOME", str(folder / "home"))
        yield {
            "tracking_uri": store,
            "data": data,
            "settings": SETTINGS,
            "device": "cpu",
            "num_workers": 0,
        }


@pytest.fixture(scope="module")
def results(options):
    return evaluate(Patches(), TASKS, suite="own", images=IMAGES, **options)


def test_a_module_is_probed_and_left_as_it_was(options, results):
    frame = results.frame
    assert (
        set(frame.task) == set(TASKS)
        and set(frame.backbone) == {"patches"}
        and set(frame.status) == {"done"}
    )
    assert frame.value[frame.metric.isin(["top1", "mIoU"])].between(0, 100).all()
    assert "patches" not in BACKBONES
    module = Patches()
    data = [f"{name}={folder}" for name, folder in options["data"].items()]  # as of --data
    again = evaluate(module, TASKS, suite="own", images=IMAGES, **{**options, "data": data})
    assert set(again.frame.status) == {"cached"} and again.table().equals(results.table())
    assert all(each.requires_grad for each in module.parameters())


def test_per_image_scores_and_metrics_of_another_run(options, results):
    scores = results.per_image("imagefolder/linear")
    assert len(scores) == 48 and scores.image.is_unique
    with pytest.raises(UserError, match="imagefolder/linear"):
        results.per_image("imagefolder/lineer")
    with pytest.raises(UserError, match=r"backbone 'pathces'; did you mean patches\?"):
        results.per_image("imagefolder/linear", "pathces")
    mlflow.set_tracking_uri(options["tracking_uri"])
    with mlflow.start_run() as run:
        results.to_mlflow(step=7)
    logged = mlflow.MlflowClient().get_metric_history(run.info.run_id, "camvid/linear/mIoU")
    assert [(each.value, each.step) for each in logged] == [
        (results.table().loc[("camvid/linear", "mIoU"), "patches"], 7)
    ]
    with pytest.raises(UserError, match="no MLflow run is active"):
        results.to_mlflow()


def test_compared_in_one_report(results, tmp_path, options):
    """From inside an event loop, as a notebook has one."""

    async def cell():
        return compare(results, "random", baseline="patches")

    comparison = asyncio.run(cell())
    assert set(comparison.frame.backbone) == {"patches", "random"}
    assert "random" in comparison.verdict()
    power = comparison.power(seeds=[1])
    # of one seed nothing is known; VisBench's seeds say what its kind of task has
    published = "voc/linear, seeds alone, VisBench 0.27.0"
    assert power.noise["camvid/linear"] in ("camvid/linear, 1 comparison", published)
    page = comparison.report(tmp_path).read_text()
    assert "patches" in page and "imagefolder/linear" in page
    runs = Store(options["tracking_uri"]).runs([results.experiment])
    assert {run.run_id for run in runs} >= set(comparison.frame.run)

    images = comparison.per_image("camvid/linear")  # the baseline comes second
    assert images.columns.tolist() == ["image", "random", "patches", "difference", "rank"]
    own = [results.per_image("camvid/linear"), comparison.per_image("camvid/linear", "random")]
    assert sorted(images.image) == sorted(own[0].image) == sorted(own[1].image)
    worst = images.worst(2)
    assert worst["rank"].tolist() == [1, 2] and worst.difference.min() == images.difference.min()
    assert worst.pictures().width > 400
    by_class = comparison.per_image("camvid/linear", by_class=True)
    first = by_class.iloc[0]
    number = comparison.per_class("camvid/linear").index.get_loc(first["class"])
    for each, name in zip(own, ("patches", "random"), strict=True):
        row = each.set_index("image").loc[first.image]
        hit = row.intersection[number]
        union = row.prediction[number] + row.label[number] - hit
        assert first[name] == pytest.approx(100 * hit / union)
    with pytest.raises(UserError, match="no scores of classes"):
        comparison.per_image("imagefolder/linear", by_class=True)
    assert len(comparison.frame.columns) <= 20
    details = comparison.details()
    assert len(details) == len(comparison.frame) and details["cost/seconds"].gt(0).all()
    assert set(details.max_iters.dropna()) == {"4"}


def test_other_weights_of_a_name_have_a_column_of_their_own(options, results):
    other = evaluate(Patches(1), TASKS, suite="own", images=IMAGES, seeds=2, **options)
    comparison = compare(results, other, other)
    first, second = comparison.table().columns
    assert first.startswith("patches@") and second.startswith("patches@")
    for name, each in ((first, results), (second, other)):
        assert comparison.table()[name].equals(each.table()["patches"].rename(name))
    numbers = comparison.build_report().numbers()
    assert {(number.backbone, number.seeds) for number in numbers.values()} == {
        (first, 1),
        (second, 2),
    }


def test_two_labels_of_one_network_share_its_cells(options, results):
    shared = {"suite": "own", "images": IMAGES, **options}
    both = evaluate({"a": Patches(), "b": Patches(), "c": Patches(1)}, TASKS, **shared)
    table = both.table()
    assert list(table.columns) == ["a", "b", "c"] and table.a.equals(table.b)
    expected = results.table().patches
    assert table.a.equals(expected[expected.index.isin(table.index)].rename("a"))
    assert set(both.frame.status[both.frame.backbone != "c"]) == {"cached"}
    numbers = both.build_report().numbers()
    assert {name for name, *_ in numbers} == {"a", "b", "c"}
    again = build_report(ReportRequest([both.experiment], tracking_uri=options["tracking_uri"]))
    assert len({"a", "b"}.intersection(again.backbones)) == 1, "the newer label"


def test_what_is_wrong_is_said(options, results):
    with pytest.raises(UserError, match=r"integer strides of 32 × 32 images, not \(1, 3, 5, 5\)"):
        evaluate(nn.AdaptiveAvgPool2d(5), TASKS, suite="own", images=IMAGES, **options)
    with pytest.raises(UserError, match="no option 'sede'; did you mean seed"):
        evaluate("random", TASKS, sede=1)
    for wrong in (
        {"tasks": 5},
        {"settings": [1]},
        {"settings": {5: 5}},
        {"name": 5, "backbone": Patches()},
        {"images": 5, "backbone": Patches()},
        {"tracking_uri": 5},
        {"plugins": 5},
        {"heads": 5},
        {"backbone": nn.Linear},
        {"backbone": []},
    ):
        name = next(iter(wrong))
        with pytest.raises(UserError, match=f"{name}=.*: (give|must be)"):
            evaluate(**{"backbone": "random", "tasks": TASKS, **wrong})
    for elsewhere in ({"jobs": 2}, {"executor": "ray"}, {"weights": "my.safetensors"}):
        with pytest.raises(UserError, match="in this process"):
            evaluate(Patches(), TASKS, images=IMAGES, **elsewhere)
    with pytest.raises(UserError, match="for modules"):
        evaluate("random", TASKS, name="mine")
    with pytest.raises(UserError, match=r"tasks=\[\]: name tasks"):
        evaluate(Patches(), [], suite="own", images=IMAGES, **options)
    with pytest.raises(UserError, match="modules need labels"):
        evaluate([Patches(), Patches(1)], TASKS, suite="own", **options)
    with pytest.raises(UserError, match="baseline=5: must be"):
        compare(results, baseline=5)
    with pytest.raises(UserError, match="task=5: must be"):
        results.per_class(5)
    with pytest.raises(UserError, match="mean=5: must be"):
        DataConfig((32, 32), mean=5, std=(1, 1, 1))


SCRIPT = """
from benchmark import evaluate

print("started")
options = {"suite": "own", "device": "cpu", "num_workers": 0, "settings": {"size": 32}}
evaluate("random/timm/test_vit", "imagefolder/knn", jobs=2, data_root=".", **options)
"""


@pytest.mark.slow
def test_a_script_needs_no_main_guard(tmp_path):
    make_imagefolder(tmp_path / "imagefolder", n_train=8, n_val=4)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**environment, "CLIPTEX_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert process.stdout.count("started") == 1


async def compute():
    for _ in range(10_000):
        time.sleep(0.01)


async def wait_for_workers():
    await asyncio.sleep(100)


@pytest.mark.parametrize("work", [compute, wait_for_workers])
def test_an_interrupt_in_a_notebook_stops_the_work(work, monkeypatch, tmp_path):
    """A notebook's event loop runs in the main thread already."""
    finished = []

    async def interrupted(options):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        await work()
        finished.append(work)

    monkeypatch.setattr("benchmark.run.run_async", interrupted)

    async def notebook_cell():
        evaluate("random", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(notebook_cell())
    finally:
        signal.signal(signal.SIGINT, handler)
        loop.close()
    assert not finished
