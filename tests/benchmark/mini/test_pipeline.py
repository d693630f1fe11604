"""What the mini suites make: nothing waits needlessly, and labels by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import numpy as np
import pytest

from backbones.checkpoint import load_checkpoint
from backbones.cliptex.labels import JoinedLabels
from backbones.cliptex.pairs import decode_image, open_pairs
from benchmark.mini.pipeline import MiniPipeline
from benchmark.mini.solids import draw_picture
from benchmark.mini.world import EXPERTS, SIZES, Sizes, WorldConfig
from benchmark.stages import make_expert
from tests.backbones.cliptex.experts import toy_experts
from tests.executors import run_on

pytestmark = pytest.mark.integration


@pytest.fixture
def home(tmp_path, own_home, monkeypatch) -> Path:
    """An empty home, and the suite ``toy`` with a tiny world and the smallest of models."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    experts = {name: {**toy_experts.SMALL_UNET, "epochs": 0.5} for name in EXPERTS}
    small = {"epochs": 0.4, "batch_size": 16}
    world, clip = WorldConfig(32, 24, 8, 1, 1, 1, 1, 1, 1), {"model": "tiny", **small}
    monkeypatch.setitem(SIZES, "toy", Sizes(world, clip, "random", small, {}, experts))
    return own_home


def test_clip_and_clip_ft_wait_for_neither_experts_nor_labels(home, monkeypatch):
    ready = asyncio.Event()

    async def train_slowly(*arguments, **options):
        await ready.wait()
        return await make_expert(*arguments, **options)

    monkeypatch.setattr("benchmark.mini.pipeline.make_expert", train_slowly)

    async def work(executor):
        pipeline = MiniPipeline("toy", executor, "toy")
        cliptex = asyncio.ensure_future(pipeline.weights("cliptex", 0))
        plain = [pipeline.weights(name, 0) for name in ("clip", "clip-ft")]
        plain = await asyncio.wait_for(asyncio.gather(*plain), 120)
        assert not cliptex.done() and not list(home.glob("labels/*"))
        ready.set()
        return [*plain, await cliptex]

    clip, tuned, cliptex = run_on(work)
    assert len({weights.create_arguments["weights"] for weights in (clip, tuned, cliptex)}) == 3
    assert all(
        Path(weights.create_arguments["weights"]).is_file() for weights in (clip, tuned, cliptex)
    )
    assert cliptex.cost["label_flops"] > 0 and cliptex.cost["experts_seconds"] > 0
    assert "label_seconds" in cliptex.cost and "label_seconds" not in tuned.cost


@pytest.mark.slow
def test_a_tenth_of_the_pairs_has_manual_labels(home):
    """Those of their own scenes; ``cliptex-both`` prefers them to the experts'."""
    names = ("cliptex", "cliptex-manual", "cliptex-both")

    async def work(executor):
        pipeline = MiniPipeline("toy", executor, "toy")
        labels = pipeline.labels(), pipeline.manual_labels()
        trained = [pipeline.weights(name, 0) for name in names]
        return pipeline, await asyncio.gather(*labels, *trained)

    pipeline, (pseudo, manual, *trained) = run_on(work)
    pairs, size = open_pairs(pipeline.pairs), pipeline.sizes.world.size
    assert len(manual) == 3
    for index in range(3):
        _, pixels, target = draw_picture(Random(f"0/pairs/{index}"), "home", size)
        labels, pair = manual.get(pairs.key(index)), pairs[index]
        assert np.abs(decode_image(pair.image) - pixels.astype(float)).mean() < 5
        np.testing.assert_array_equal(labels["seg"], target.semantic)
        assert (labels["normal"] * target.normals.transpose(2, 0, 1)).sum(0).min() > 0.99
    identities = {
        backbone.create_arguments["name"]: load_checkpoint(
            backbone.create_arguments["weights"]
        ).extra["labels"]
        for backbone in trained
    }
    both = JoinedLabels([manual, pseudo]).identity
    assert identities == dict(zip(names, (pseudo.identity, manual.identity, both), strict=True))
    costs = [backbone.cost for backbone in trained]
    assert (
        "experts_seconds" not in costs[1] and costs[2]["label_seconds"] > costs[0]["label_seconds"]
    )
