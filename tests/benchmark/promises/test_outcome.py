"""What README says of the main job, on a smaller world: CLIP learns from pairs, and CLIPTeX adds to
the same CLIP what its experts see, at every seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import evaluate
from benchmark.mini.suite import BACKBONE_SETS

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
    assert len(cliptex) == 3
    top1, mean_iou = ("mini-class/knn", "top1"), ("mini-seg/linear", "mIoU")
    degrees, relative = ("mini-normal/linear", "normal_mean"), ("mini-depth/linear", "abs_rel")
    assert (clip[top1] > random[top1] + 5).all()
    assert (clip[mean_iou] > random[mean_iou]).all()
    assert (cliptex[mean_iou] > clip_ft[mean_iou]).all()
    assert (cliptex[degrees] < clip_ft[degrees]).all()
    # the best constant is a floor beside the score
    assert (cliptex[relative] < cliptex["mini-depth/linear", "floor_abs_rel"]).all()
