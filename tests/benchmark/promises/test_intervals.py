"""From images to a verdict: a real run of three seeds, its report, and SciPy on what was stored."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.benchmark.pinned import scenes
from tests.benchmark.run_command import run_command, runs_of

pytestmark = pytest.mark.slow

BASELINE, OTHER = "random", "efficientnet-lite0"
VERDICTS = {("imagefolder/linear", "top1"): "tie", ("tiny-scenes/linear", "mIoU"): "win"}
RUN = f"run --backbone {BASELINE},{OTHER} --seeds 3 --device cpu --jobs 1 --num-workers 0"
RUN += f" --plugin {Path(scenes.__file__).with_name('plugin.py')}"
RUN += " --task imagefolder/linear,tiny-scenes/linear --data-root . --data imagefolder=digits"
RUN += " --set imagefolder/linear.epochs=2 --set size=96 --set max_iters=60 --set batch_size=8"
RUN += " --set lr=0.003"
LEVEL = 0.05
FIRST_STEP = LEVEL * 3 / 8  # half of what the mean gain leaves to two tasks

Score = Callable[[np.ndarray], np.ndarray]  # of images, by their indices in the last axis


def scorer(path: Path) -> Score:
    """Of the scores that a run has stored."""
    with np.load(path) as file:
        arrays = dict(file)
    if "rank" in arrays:
        return lambda images: 100 * (arrays["rank"][images] == 0).mean(axis=-1)

    def mean_iou(images: np.ndarray) -> np.ndarray:
        hit, predicted, labelled = (
            arrays[name][images].sum(axis=-2) for name in ("intersection", "prediction", "label")
        )
        return 100 * np.nanmean(hit / (predicted + labelled - hit), axis=-1)

    return mean_iou


def variance_over_images(score: Score, count: int) -> float:
    result = stats.bootstrap(
        (np.arange(count),),
        lambda images, axis: score(images),
        n_resamples=4000,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return result.standard_error**2 * count / (count - 1)


def half_width(differences: list[Score], images: int, level: float) -> float:
    """Of an interval as docs/statistics.md defines it; two comparisons make no prior."""
    seeds = len(differences)
    of_mean = variance_over_images(lambda i: sum(each(i) for each in differences) / seeds, images)
    of_one = np.mean([variance_over_images(each, images) for each in differences])
    of_images = max(0, of_mean - max(0, of_one - of_mean) / (seeds - 1))
    of_seeds = np.var([each(np.arange(images)) for each in differences], ddof=1) / seeds
    quantiles = stats.t.isf(level / 2, [seeds - 1, images - 1])
    return quantiles @ [of_seeds, of_images] / np.sqrt(of_seeds + of_images)


def test_a_report_has_the_intervals_and_verdicts_of_scipy(workdir):
    scenes.write(workdir)
    assert run_command(RUN, "--experiment", "paper") == 0
    assert run_command(f"report --experiment paper --baseline {BASELINE} --format csv") == 0
    scores = {
        (run.data.tags["backbone"], run.data.tags["task"], run.data.tags["seed"]): scorer(
            Path(run.info.artifact_uri.removeprefix("file://"), "per_image.npz")
        )
        for run in runs_of("paper")
        if "task" in run.data.tags
    }
    with Path("report/results.csv").open(encoding="utf-8") as file:
        rows = {(row["task"], row["metric"], row["backbone"]): row for row in csv.DictReader(file)}
    for (task, metric), verdict in VERDICTS.items():
        row = rows[task, metric, OTHER]
        images = int(row["images"])
        pairs = [(scores[OTHER, task, seed], scores[BASELINE, task, seed]) for seed in "012"]
        differences = [lambda i, mine=mine, base=base: mine(i) - base(i) for mine, base in pairs]
        values = [mine(np.arange(images)) for mine, _ in pairs]
        assert float(row["value"]) == pytest.approx(np.mean(values))
        assert float(row["standard_error"]) == pytest.approx(stats.sem(values), abs=1e-9)
        difference = np.mean([each(np.arange(images)) for each in differences])
        half = half_width(differences, images, LEVEL)
        ends = float(row["difference_low"]), float(row["difference_high"])
        assert ends == pytest.approx((difference - half, difference + half), abs=0.08 * half)
        assert row["verdict"] == verdict
        if verdict == "tie":
            assert abs(difference) < half
        else:
            assert difference > half_width(differences, images, FIRST_STEP)
