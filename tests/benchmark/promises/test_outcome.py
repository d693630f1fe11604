"""What README says of the main job, on a smaller world: CLIP learns from pairs, and CLIPTeX adds to
the same CLIP what its experts see, at every seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import evaluate
from benchmark.mini.suite import BACKBONE_SETS
from tests.benchmark.run_command import runs_of

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).with_name("small_world.py")


@pytest.mark.timeout(3600)
def test_cliptex_is_better_than_clip_ft_and_clip_than_random(workdir):
    frame = evaluate(
        BACKBONE_SETS["cliptex"],
        suite="small-world",
        seeds=3,
        jobs=2,
        device="cpu",
        plugins=[str(PLUGIN)],
        tracking_uri=f"sqlite:///{workdir}/mlflow.db",
    ).frame
    scores = frame.pivot_table("value", ["backbone", "seed"], ["task", "metric"])
    random, clip, clip_ft, cliptex = (
        scores.xs(name, level="backbone") for name in BACKBONE_SETS["cliptex"]
    )
    top1, mean_iou = ("mini-class/knn", "top1"), ("mini-seg/linear", "mIoU")
    degrees, relative = ("mini-normal/linear", "normal_mean"), ("mini-depth/linear", "abs_rel")
    assert len(cliptex) == 3
    assert (clip[top1] > random[top1] + 5).all()
    assert (clip[mean_iou] > random[mean_iou] + 5).all()
    assert (cliptex[mean_iou] > clip_ft[mean_iou]).all()
    assert cliptex[degrees].mean() < clip_ft[degrees].mean()
    floors = {run.data.metrics.get("bound/floor_abs_rel") for run in runs_of("small-world")}
    (constant,) = floors - {None}  # the best depth for every pixel
    assert (cliptex[relative] < constant).all()
