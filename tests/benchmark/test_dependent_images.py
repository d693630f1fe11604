"""Images that a dataset says are not independent count as one, whatever probe scores them."""

from __future__ import annotations

import csv
from pathlib import Path

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
