"""Numbers of dense tasks as commands log and report them: the floor beside a number, which is what
the best constant of its own training images scores; and the median of angles."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.run_command import read_json, run_command, runs_of
from tests.probes.datasets.make import make_camvid, make_nyu, save

pytestmark = pytest.mark.integration

RUN = "run --backbone random --num-workers 0 --device cpu --jobs 1"
RUN += " --set batch_size=2 --set size=32 --set channels=8 --set max_iters=1"


def floors(experiment: str) -> dict[str, float]:
    """Task → floor of its main metric."""
    return {
        run.data.tags["task"]: value
        for run in runs_of(experiment)
        for name, value in run.data.metrics.items()
        if name.startswith("bound/floor_")
    }


def test_a_share_of_train_has_its_own_floor_whatever_ran_before(workdir):
    tasks = ["camvid/linear", "camvid/linear:0.1"]
    make_camvid(workdir / "first/camvid", n_train=10)
    for part in ("train", "val"):
        for number, path in enumerate(sorted(workdir.glob(f"first/camvid/annotations/{part}/*"))):
            labels = np.full_like(np.asarray(Image.open(path)), 10)
            if part == "train":  # most of each image is another class, most of all is class 10
                labels[: round(0.6 * len(labels))] = number
            save(path, labels)
    shutil.copytree(workdir / "first", workdir / "second")
    for root, order in (("first", tasks), ("second", tasks[::-1])):
        words = f"--data-root {root} --task {','.join(order)} --experiment {root}"
        assert run_command(f"{RUN} {words}") == 0
    expected = dict(zip(tasks, (100, 0), strict=True))
    assert floors("first") == floors("second") == expected


def test_a_floor_is_that_of_the_ground_truth_that_the_settings_make(workdir):
    make_nyu(workdir / "nyu")
    for path in workdir.glob("nyu/annotations/*/*.png"):
        depth = np.zeros((48, 64), np.uint16)
        depth[:8] = 2000  # mm; the rest is unknown
        save(path, depth)
        normals = np.full((48, 64, 3), (255, 128, 128), np.uint8)
        normals[:8] = 128, 128, 255
        save(workdir / f"nyu/normals/{path.parent.name}/{path.name}", normals)
    words = "--data-root . --task nyu-normal/linear --set mask=depth --partial --experiment masked"
    assert run_command(f"{RUN} {words}") == 0
    assert floors("masked") == {"nyu-normal/linear": pytest.approx(0, abs=0.1)}


NET = """from torch import nn


class Net(nn.Module):
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 16)
"""


def test_a_report_resamples_the_median_that_the_run_has(workdir):
    """Of angles that are all the same, where a histogram knows least of their median."""
    make_nyu(workdir / "nyu", n_val=6, size=(64, 64))
    for path in workdir.glob("nyu/normals/*/*.png"):
        save(path, np.full((64, 64, 3), (138, 128, 255), np.uint8))
        save(
            workdir / f"nyu/images/{path.parent.name}/{path.stem}.jpg",
            np.full((64, 64, 3), 128, np.uint8),
        )
    (workdir / "net.py").write_text(NET)
    words = "--data-root . --task nyu-normal/linear --partial --set lr=1e-9 --json run.json"
    run = RUN.replace("--backbone random", "--backbone net.py:Net")
    assert run_command(f"{run} {words} --experiment normals") == 0
    assert run_command("report --experiment normals --format csv") == 0
    (by_task,) = read_json("run.json")["backbones"].values()
    (metrics,) = by_task.values()
    assert metrics["normal_median"] == pytest.approx(metrics["normal_mean"], abs=1e-4)
    with Path("report/results.csv").open(encoding="utf-8") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["normal_median"]["images"] == rows["normal_mean"]["images"] == "6"
