"""The family of dense tasks in docs/examples: one plugin, from the ground truth to the report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.cliptex.tasks import TASKS
from benchmark.parser import main
from cliptex_common import registry
from probes.dense.tasks import DENSE_TASKS
from probes.predictor import load_predictor
from reports.store import open_mlflow
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts.toy_experts import SMALL_UNET
from tests.probes import tiny_coco

pytestmark = pytest.mark.integration

PLUGIN = Path(__file__).parents[3] / "docs/examples/edge_task.py"


@pytest.fixture
def edges(tmp_path, monkeypatch):
    """The plugin, and DIR/edges from a small COCO folder; what it registers is gone after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    registry.load(PLUGIN)
    write = sys.modules[registry.LOADED[PLUGIN].module].write_boundaries
    write(tiny_coco.write(tmp_path / "coco", train=8, val=5, side=48), tmp_path)
    yield DENSE_TASKS["edges"]
    registry.LOADED[PLUGIN].remove()


def run(command: str, *settings: str) -> None:
    changes = [word for setting in settings for word in ("--set", setting)]
    common = f"--plugin {PLUGIN} --device cpu --jobs 1".split()
    assert main([*command.split(), *common, *changes]) == 0


def test_it_is_labelled_learnt_probed_and_reported(edges, tmp_path):
    unet = [f"{name}={value}".lower() for name, value in SMALL_UNET.items()]
    run("experts train edge-unet --data-root . --out expert", *unet, "epochs=1", "batch_size=4")
    toy.write_pairs(Path("pairs"), 16)
    run("labels predict --pairs pairs --experts edge-unet=expert --out labels")
    identity = json.loads(Path("labels/manifest.json").read_text())["identity"]
    assert identity["plugins"] == {"edges": TASKS.origin("edges")["plugin"]}
    learning = ["experts=edges", "lambda_edges=1", "model=tiny", "epochs=1", "batch_size=8"]
    run(
        "train --recipe cliptex --init random --pairs pairs --labels labels --out w.safetensors",
        *learning,
    )
    probing = ["size=48", "max_iters=4", "batch_size=2"]
    task = "--task edges/linear --data-root . --partial --num-workers 0"
    run(f"run --backbone cliptex --weights w.safetensors --only --report {task}", *probing)

    client = open_mlflow(f"sqlite:///{Path('mlflow.db').resolve()}")
    (trained,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert trained.data.metrics["train/loss_edges"] > 0
    (probed,) = client.search_runs(
        [client.get_experiment_by_name("own").experiment_id], "tags.`cliptex.task` != ''"
    )
    assert 0 < probed.data.metrics["ODS"] <= 100
    page = next(Path("mlruns").rglob("report/index.html")).read_text(encoding="utf-8")
    assert "edges/linear" in page and "ODS" in page

    registry.LOADED[PLUGIN].remove()
    assert main(["report", "--out", "without"]) == 0
    without = Path("without/index.html").read_text(encoding="utf-8")
    assert "need the plugin that these runs had" in without
    assert main(["results", "export", "--experiment", "own", "--out", "shared.zip"]) == 2
    assert not Path("shared.zip").exists()
    registry.load(PLUGIN)

    image = next(Path("edges/images/val").iterdir())
    values = load_predictor(probed.info.run_id)(image)
    assert values.shape == np.asarray(Image.open(image)).shape[:2]
    assert 0 <= values.min() <= values.max() <= 1


def test_its_statistics_are_those_of_the_images_of_a_resample(edges):
    target = (torch.rand(6, 1, 24, 24, generator=torch.Generator().manual_seed(0)) > 0.97).float()
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    scores = [edges.score(*pair) for pair in zip(noise, target, strict=True)]
    arrays = {name: np.stack([each[name] for each in scores]) for name in scores[0]}
    times = np.array([2, 0, 1, 1, 0, 2])
    repeated = {name: each.repeat(times, axis=0) for name, each in arrays.items()}
    resample = edges.summary(repeated, np.ones((1, 6)))["ODS"]
    np.testing.assert_allclose(edges.summary(arrays, times[None])["ODS"], resample)
