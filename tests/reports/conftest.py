"""A store as the paper's suite leaves it, its report and its page."""

from __future__ import annotations

import math

import pytest

from reports.mlflow.run import Tracker
from reports.render.page import render
from reports.report import Request, build
from tests.reports.synthetic import write_run

TASKS = ("voc/linear", "nyu-depth/linear", "imagenet/linear", "flickr30k/retrieval")


def same(quality: float) -> dict[str, float]:
    return dict.fromkeys(TASKS, quality)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """clip-ft and cliptex with three seeds, clip with a failed task, cliptex-seg with one seed, two
    protocols of voc/linear."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = Tracker("paper", f"sqlite:///{folder}/mlflow.db")
        for seed in range(3):
            write_run(tracker, "clip-ft", seed, same(0.5), pictures=seed == 0)
            write_run(
                tracker,
                "cliptex",
                seed,
                {**same(0.62), "imagenet/linear": 0.5},
                pictures=seed == 0,
                tags={"experts": "seg,depth,normal"},
            )
        write_run(tracker, "clip", 0, same(0.45), failing={"nyu-depth/linear": "loss is nan <b>&"})
        write_run(tracker, "cliptex-seg", 0, {"voc/linear": 0.58}, tags={"experts": "seg"})
        write_run(tracker, "clip-ft", 0, {"voc/linear": 0.3}, protocol="quick")
        with tracker.run(
            "sweep lambdas",
            tags={"study": "lambdas", "stage": "sweep", "directions": "dense:+1,zero-shot:+1"},
        ) as sweep:
            rows = [
                {
                    "what": "dense gain over clip-ft (%)",
                    "metric": "",
                    "sign": 1,
                    "best": "lambda_seg=0.1",
                    "value": 1.1,
                    "base": 0.2,
                    "baseline": 0.0,
                    "confirmed": 0.8,
                    "noise": 0.1,
                    "trial": 1,
                    "verdict": "clear",
                },
                {
                    "what": "voc/linear",
                    "metric": "mIoU",
                    "sign": 1,
                    "best": "lambda_seg=0.1",
                    "value": 41.0,
                    "base": 40.0,
                    "baseline": 38.0,
                    "confirmed": math.nan,
                    "noise": 0.2,
                    "trial": 1,
                    "verdict": "not confirmed",
                },
            ]
            sweep.log_json(rows, "summary.json")
            contour = {
                "data": [
                    {
                        "type": "contour",
                        "x": [0.1, 1],
                        "y": [0.1, 1],
                        "z": [[0.2, 1.1], [1.1, None]],
                    }
                ],
                "layout": {},
            }
            sweep.log_json([{"title": "Contour Plot", "spec": contour}], "plots.json")
        for number_, (seg, depth) in enumerate([(0.1, 0.1), (0.1, 1), (1, 0.1), (1, 1)]):
            values = {"objective/dense": seg + depth, "objective/zero-shot": -seg}
            with tracker.run(
                f"trial {number_}",
                tags={"study": "lambdas", "trial": str(number_)},
                params={"lambda_clip": 1, "lambda_seg": seg, "lambda_depth": depth},
            ) as run:
                if number_ != 3:
                    run.log_metrics(values)
                else:
                    run.fail("NonFiniteLoss: at step 7")
    return tracker


@pytest.fixture(scope="session")
def report(store):
    return build(
        Request(experiments=["paper"], tracking_uri=store.uri, ui_url="http://127.0.0.1:5000")
    )


@pytest.fixture(scope="session")
def page(report):
    return render(report)
