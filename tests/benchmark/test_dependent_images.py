"""Images that are not independent: what a dataset says belongs together counts as one, whatever
probe scores it; what several datasets have is the same in all."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.run_command import run_command
from tests.probes.datasets import make

pytestmark = pytest.mark.integration

PLUGIN = """
from dataclasses import replace
from functools import partial

from probes.registry import DATASETS, register_dataset


def rooms(list_samples, root):
    '''Two images of val a room, but for the first image, which is in none.'''
    images = [sample.image for sample in list_samples(root, "val")]
    return {image: f"room {number // 2}" for number, image in enumerate(images) if number}


for name, folder in (("imagefolder", "birds"), ("amstertime", "places"), ("camvid", "streets")):
    official = DATASETS[name]
    units = partial(rooms, official.list_samples)
    changes = {"name": folder, "folder": folder, "expected": {}, "units": units, "module": ""}
    register_dataset(replace(official, **changes))
"""
RUN = (
    "run --suite own --task birds/knn,places/retrieval,streets/linear,streets/patch-knn"
    " --backbone random --data-root . --device cpu --num-workers 0 --plugin rooms.py"
    " --set encode_batch_size=4 --set size=32 --set max_iters=2 --set batch_size=2"
)


def test_what_a_dataset_says_belongs_together_counts_as_one_image(workdir):
    Path("rooms.py").write_text(PLUGIN)
    make.make_imagefolder(workdir / "birds", n_val=2)
    make.make_amstertime(workdir / "places")
    make.make_camvid(workdir / "streets", n_val=4)
    assert run_command(RUN) == 0
    assert run_command("report --format csv --plugin rooms.py") == 0
    with Path("report/results.csv").open(newline="") as file:
        images = {row["task"]: int(row["images"]) for row in csv.DictReader(file)}
    # the first image, the second, and pairs
    assert images == {
        "birds/knn": 2 + 6 // 2,
        "places/retrieval": 2 + 6 // 2,
        "streets/linear": 2 + 2 // 2,
        "streets/patch-knn": 2 + 2 // 2,
    }


SUBSET = """
from dataclasses import replace

from probes.registry import DATASETS, register_dataset


def list_most(root, split):
    samples = DATASETS["birds"].list_samples(root, split)
    return [sample for n, sample in enumerate(samples) if split == "train" or n % 20]


birds = replace(DATASETS["imagefolder"], name="birds", folder="birds", module="", image_set="birds")
register_dataset(birds)
register_dataset(replace(birds, name="most-birds", list_samples=list_most))
"""


def half_width(low: str, high: str) -> float:
    return (float(high) - float(low)) / 2


def test_two_datasets_with_the_same_images_are_not_independent_evidence(workdir, capsys):
    """The mean gain over all images and over most of them is as uncertain as each of the two."""
    Path("subset.py").write_text(SUBSET)
    make.make_imagefolder(workdir / "birds", n_train=8, n_val=60, classes=("one", "other"))
    run = (
        "run --suite own --task birds/knn,most-birds/knn --backbone random,random/timm/resnet18"
        " --data-root . --device cpu --num-workers 0 --plugin subset.py --set size=32"
    )
    assert run_command(run) == 0
    capsys.readouterr()
    assert run_command("report --format csv --plugin subset.py --baseline random") == 0
    words = " ".join(capsys.readouterr().out.split()).replace("−", "-")
    ends = re.search(r"mean gain \S+ % \(95 % interval (\S+) to ([+-][\d.]+)", words).groups()
    with Path("report/results.csv").open(newline="") as file:
        rows = {(row["backbone"], row["task"]): row for row in csv.DictReader(file)}
    of_tasks = []
    for task in ("birds/knn", "most-birds/knn"):
        base, mine = (rows[name, task] for name in ("random", "random/timm/resnet18"))
        reach = half_width(mine["difference_low"], mine["difference_high"])
        of_tasks.append(100 * reach / float(base["value"]))
    assert half_width(*ends) == pytest.approx(np.mean(of_tasks), rel=0.1)
