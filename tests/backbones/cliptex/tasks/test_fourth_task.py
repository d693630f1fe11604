"""The task and the expert of docs/examples, as another package brings them: labelled, trained,
swept and reported like ours."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.cliptex import tasks
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.experts import EXPERTS
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.training import evaluate
from backbones.cliptex.labels.labeller import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.labels.picture import draw_labels
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.recipes import RECIPES, find_recipe, subsets
from backbones.cliptex.training.train import TrainContext, train
from benchmark.__main__ import main
from benchmark.sweep import launch
from benchmark.sweep.bench import SweepOptions, make_recipe
from common.errors import UserError
from reports.mlflow.client import Client
from reports.parts.study import parameter_label
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts.toy_experts import make_expert

ENTRY = metadata.EntryPoint("edges", "my_task:TASK", "cliptex_benchmark.tasks")
EXPERT = metadata.EntryPoint("edge-finder", "my_expert:EdgeExpert", "cliptex_benchmark.experts")
USED = ["experts=seg,edges", "model=tiny", "batch_size=8", "epochs=1.5", "lr=1e-3"]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """As if a package with these entry points were installed; what is registered goes again."""
    entries = {"cliptex_benchmark.tasks": [ENTRY], "cliptex_benchmark.experts": [EXPERT]}
    monkeypatch.setattr("common.registry.entry_points", lambda group: entries.get(group, []))
    yield
    tasks.TASKS.unregister("edges")
    EXPERTS.unregister("edge-finder")


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Pairs, and labels of a segmenter with random weights and of the fourth expert, found by its
    name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pairs = open_pairs(toy.write_pairs(tmp_path / "pairs", 24, 2))
    EXPERTS.find("edge-finder").create(tasks_settings(), ()).freeze().save(tmp_path / "finder")
    experts = [EXPERTS.find("edge-finder").load(str(tmp_path / "finder")), make_expert("unet")]
    writer = labels_writer(pairs, experts, LabelSettings(), tmp_path / "labels")
    for shard in pairs.shards:
        Labeller(pairs, experts, writer, LabelSettings(), batch_size=8).label(shard, Silent())
    return pairs, finish_labels(pairs, writer)


def tasks_settings():
    return EXPERTS.find("edge-finder").settings_type()


def test_it_is_known_without_being_imported():
    assert tasks.task_names() == (*tasks.PAPER, "edges") and "edges" not in tasks.TASKS
    assert len(subsets()) == 15 and subsets()["cliptex-seg-edges"] == ("seg", "edges")
    assert subsets()["cliptex"] == tasks.PAPER == find_recipe("cliptex").tasks, (
        "who does not ask for it has the paper's"
    )
    assert (
        RECIPES["clip-ft"].tasks == () and "lambda_edges" not in find_recipe("cliptex").settings()
    )
    assert find_recipe("cliptex-edges").tasks == ("edges",)
    recipe = find_recipe("cliptex", ["experts=edges,seg", "lambda_edges=0.5"])
    assert (
        recipe.tasks == ("seg", "edges")
        and recipe.weight("edges") == 0.5 == recipe.settings()["lambda_edges"]
    )
    assert recipe.key("i", "p", "l") != find_recipe("cliptex", ["experts=edges,seg"]).key(
        "i", "p", "l"
    )
    with pytest.raises(UserError, match="did you mean lambda_edges"):
        find_recipe("cliptex", ["lambda_edge=1"])


def test_it_is_labelled_and_drawn_and_measured(labelled, tmp_path):
    pairs, manifest = labelled
    assert list(manifest["tasks"]) == ["seg", "edges"]
    assert manifest["tasks"]["edges"] == {"suffix": "edges.png", "lost": "254 steps"}
    label = LabelStore("labels").get(pairs.key(3))["edges"]
    image = torch.from_numpy(toy.scene(int(pairs.key(3).split("/")[1]))[0]).permute(2, 0, 1)[None]
    prediction = EXPERTS.find("edge-finder").load("finder").predict(image)["edges"]
    assert np.abs(label - prediction[0]).max() < 0.5 / 254 + 1e-6 and label.max() > 0.5
    draw_labels(LabelStore("labels").root, pairs, tmp_path / "picture.png", 3)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    samples = [(tmp_path / "image.png", lambda: prediction[0] + 0.25)]
    data = ExpertData("edges", samples, prediction.shape[-1])
    assert evaluate(EXPERTS.find("edge-finder").load("finder"), data) == {
        "edge_error": pytest.approx(0.25)
    }


def test_it_is_trained_and_reported(labelled):
    words = [
        "train",
        "--recipe",
        "cliptex",
        "--init",
        "random",
        "--pairs",
        "pairs",
        "--labels",
        "labels",
    ]
    changes = [word for change in [*USED, "lambda_edges=2"] for word in ("--set", change)]
    assert main([*words, *changes, "--device", "cpu", "--jobs", "1", "--out", "w.safetensors"]) == 0
    client = Client(f"sqlite:///{Path('mlflow.db').resolve()}")  # MLflow keeps stores by URI
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.data.tags["experts"] == "seg,edges" and run.data.params["lambda_edges"] == "2.0"
    assert {"train/loss_edges", "train/grad_norm_edges", "train/lambda_edges"} <= set(
        run.data.metrics
    )
    curve = [
        point.value for point in client.get_metric_history(run.info.run_id, "train/loss_edges")
    ]
    assert curve[-1] < curve[0]
    assert parameter_label("lambda_edges") == "λ edges"


def test_its_lambda_is_swept(labelled, tmp_path):
    """The paper's search over λ of contrast and edges; one cell of it is trained."""
    options = SweepOptions(
        suite="paper",
        tasks=["voc/linear"],
        lambdas=["clip", "edges"],
        overrides=USED,
        init="random",
        pairs="pairs",
        labels="labels",
    )
    plan = launch._plan(options)
    assert [setting.name for setting in plan.space.settings if setting.varied] == [
        "lambda_clip",
        "lambda_edges",
    ]
    cells = {cell.params["lambda_edges"]: cell for cell in plan.space.cells()}
    assert sorted(cells) == [0.1, 1.0, 10.0]
    recipe = make_recipe("cliptex", plan.inputs["fixed"], cells[10.0].params, seed=0)
    assert recipe.tasks == ("seg", "edges") and recipe.weight("edges") == 10
    result = train(
        recipe,
        init="random",
        pairs=labelled[0],
        labels=LabelStore("labels"),
        out=tmp_path / "w.st",
        context=TrainContext(workers=0),
    )
    assert result.metrics["train/loss_edges"] > 0
    with pytest.raises(
        UserError, match="--lambdas edge: choose among clip, seg, depth, normal, edges"
    ):
        launch._plan(SweepOptions(suite="sweep", lambdas=["edge"]))
