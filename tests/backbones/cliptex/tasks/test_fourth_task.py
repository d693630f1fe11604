"""A task as `new task edges` writes it, and the expert of docs/examples, as plugins:
listed, labelled, drawn and measured. (test_edges trains and probes with one.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.cliptex import tasks
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.experts import EXPERTS
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.training import evaluate_expert
from backbones.cliptex.labels.labeller import Labeller, LabelSettings, finish_labels, labels_writer
from backbones.cliptex.labels.picture import draw_labels
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.recipes import find_recipe, subsets
from benchmark.cli.new import template
from cliptex_common import plugins
from cliptex_common.errors import UserError
from cliptex_common.plugins import load_plugins
from sweeps.space import SearchOptions, make_space
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts.toy_experts import make_expert

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[4]


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
    space = make_space(SearchOptions(vary={"lambda_edges": "0.1,10"}), recipe)
    assert [params["lambda_edges"] for params in space.combinations()] == [0.5, 0.1, 10.0]
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
    scores = evaluate_expert(make_expert("edge-unet"), data, Silent())
    assert scores == {"edges_error": pytest.approx(0.25)}
