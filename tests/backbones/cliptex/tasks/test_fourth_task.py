"""A task as `new task edges` writes it, and the expert of docs/examples, as plugins: the expert is
trained, the task labelled, learned, swept and reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.cliptex import tasks
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.experts import EXPERTS, load_experts, train_expert
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.training import evaluate
from backbones.cliptex.labels.labeller import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.labels.picture import draw_labels
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.recipes import find_recipe, subsets
from backbones.cliptex.training.trainer import TrainContext
from benchmark.cli.main import main
from benchmark.cli.new import template
from benchmark.sweep import launch
from benchmark.sweep.bench import base_recipe
from benchmark.sweep.options import SweepOptions
from cliptex_common import plugins
from cliptex_common.errors import UserError
from cliptex_common.plugins import load_plugins
from cliptex_common.settings import parse_pairs
from reports.mlflow.client import Client
from reports.parts.study import parameter_label
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts.toy_experts import SMALL_UNET, make_expert

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[4]
USED = ["experts=seg,edges", "model=tiny", "batch_size=8", "epochs=1.5", "lr=1e-3"]


@pytest.fixture(autouse=True)
def loaded(tmp_path):
    """The plugins; they are gone after the test."""
    path = tmp_path / "edges.py"
    path.write_text(template("task", "edges"))
    load_plugins([path, ROOT / "docs/examples/edge_unet.py"])
    yield
    for plugin in list(plugins.LOADED.values()):
        plugin.remove()


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Pairs with labels of random experts, one of them the plug-in's."""
    monkeypatch.chdir(tmp_path)
    pairs = open_pairs(toy.write_pairs(tmp_path / "pairs", 24, 2))
    experts = [make_expert("edge-unet"), make_expert("unet")]
    writer = labels_writer(pairs, experts, LabelSettings(), tmp_path / "labels")
    for shard in pairs.shards:
        Labeller(pairs, experts, writer, LabelSettings(), batch_size=8).label(shard, Silent())
    return pairs, finish_labels(pairs, writer)


def test_it_is_listed_and_has_a_lambda():
    assert tasks.task_names() == (*tasks.PAPER, "edges")
    assert len(subsets()) == 15 and subsets()["cliptex-seg-edges"] == ("seg", "edges")
    assert subsets()["cliptex"] == tasks.PAPER == find_recipe("cliptex").tasks
    assert "lambda_edges" not in find_recipe("cliptex").settings()
    assert find_recipe("cliptex-edges").tasks == ("edges",)
    recipe = find_recipe("cliptex", ["experts=edges,seg", "lambda_edges=0.5"])
    assert recipe.tasks == ("seg", "edges") and recipe.settings()["lambda_edges"] == 0.5
    unweighted = find_recipe("cliptex", ["experts=edges,seg"])
    assert recipe.key("i", "p", "l") != unweighted.key("i", "p", "l")
    with pytest.raises(UserError, match="did you mean lambda_edges"):
        find_recipe("cliptex", ["lambda_edge=1"])


def test_it_is_labelled_and_drawn_and_measured(labelled, tmp_path):
    pairs, manifest = labelled
    assert list(manifest["tasks"]) == ["seg", "edges"]
    assert manifest["tasks"]["edges"] == {"suffix": "edges.png", "lost": "65535 steps of the range"}
    assert manifest["identity"]["plugins"] == {"edges": tasks.TASKS.origin("edges")["plugin"]}
    (expert,) = [each for each in manifest["identity"]["experts"] if each["task"] == "edges"]
    assert expert["plugin"] == EXPERTS.origin("edge-unet")["plugin"]
    label = LabelStore("labels").get(pairs.key(3))["edges"]
    image = torch.from_numpy(toy.scene(int(pairs.key(3).split("/")[1]))[0]).permute(2, 0, 1)[None]
    prediction = make_expert("edge-unet").predict(image)["edges"]
    assert np.abs(label - prediction[0]).max() < 1e-4 and label.max() > label.min() > 0
    draw_labels(LabelStore("labels").root, pairs, tmp_path / "picture.png", 3)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    samples = [(tmp_path / "image.png", lambda: prediction[0] + 0.25)]
    data = ExpertData("edges", samples, prediction.shape[-1])
    scores = evaluate(make_expert("edge-unet"), data, Silent())
    assert scores == {"edges_error": pytest.approx(0.25)}


def test_its_expert_learns_from_folders_of_maps(tmp_path):
    """Here a bright square is one large edge."""
    for split, seeds in (("train", range(16)), ("val", range(100, 104))):
        images, maps = (tmp_path / f"edges/{each}/{split}" for each in ("images", "annotations"))
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for seed in seeds:
            y, x = np.random.default_rng(seed).integers(4, 16, 2)
            edges = np.zeros((32, 32), np.uint8)
            edges[y : y + 12, x : x + 12] = 255
            Image.fromarray(edges // 2 + 60).convert("RGB").save(images / f"{seed}.png")
            Image.fromarray(edges).save(maps / f"{seed}.png")
    fast = {"width": 16, "batch_size": 4, "epochs": 8.0, "lr": 0.03, "color_jitter": 0.0}
    settings = {**SMALL_UNET, **fast}
    out = tmp_path / "expert"
    expert = train_expert("edge-unet", tmp_path, out, TrainContext(), settings)
    assert expert["accuracy"]["edges_error"] < 0.1, "no edge anywhere is an error of 0.14"
    assert expert["plugin"] == EXPERTS.origin("edge-unet")["plugin"]
    assert load_experts([f"edge-unet={out}"])[0].identity()["sha256"] == expert["sha256"]


def test_it_is_trained_and_reported(labelled):
    command = "train --recipe cliptex --init random --pairs pairs --labels labels --device cpu"
    changes = " ".join(f"--set {change}" for change in [*USED, "lambda_edges=2"])
    assert main(f"{command} {changes} --jobs 1 --out w.safetensors".split()) == 0
    client = Client(f"sqlite:///{Path('mlflow.db').resolve()}")  # MLflow keeps stores by URI
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.data.tags["experts"] == "seg,edges" and run.data.params["lambda_edges"] == "2.0"
    curves = {"train/loss_edges", "train/grad_norm_edges", "train/lambda_edges"}
    assert curves <= set(run.data.metrics)
    first, *_, last = client.get_metric_history(run.info.run_id, "train/loss_edges")
    assert last.value < first.value
    assert parameter_label("lambda_edges") == "λ edges"


def test_its_lambda_is_swept(labelled):
    options = SweepOptions(
        suite="paper",
        tasks=["voc/linear"],
        lambdas=["clip", "edges"],
        overrides=parse_pairs(USED),
        init="random",
        pairs="pairs",
        labels="labels",
    )
    plan, _ = launch.make_plan(options)
    varied = [name for name, setting in plan.space.settings.items() if setting.varied]
    assert varied == ["lambda_clip", "lambda_edges"]
    cells = {params["lambda_edges"]: params for params in plan.space.cells().values()}
    assert sorted(cells) == [0.1, 1.0, 10.0]
    recipe = base_recipe(options).changed(cells[10.0])
    assert recipe.tasks == ("seg", "edges") and recipe.weight("edges") == 10
    with pytest.raises(UserError, match="choose among clip, seg, depth, normal, edges"):
        launch.make_plan(SweepOptions(suite="sweep", lambdas=["edge"]))
