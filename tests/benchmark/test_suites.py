"""A suite that another package brings runs like ours, with data and weights that it makes
itself."""

from __future__ import annotations

import pytest

from tests.benchmark.other_package import installed
from tests.benchmark.run_command import read_json, run_command
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.integration

SOURCE = """
from pathlib import Path
import backbones
from benchmark.suites import BackboneSource, Suite

class Mine:
    def __init__(self, executor, experiment):
        self.data = {"imagefolder": Path("mine")}
        print("a pipeline")
    async def make_data(self):
        pass
    def trains(self, name):
        return name == "random"
    def architecture(self):
        return backbones.create("random")
    async def weights(self, name, seed):
        return BackboneSource({"name": "random", "seed": 5})

SUITE = Suite("my-suite", "mine", {"imagefolder/linear": {"epochs": 2}}, ("random",), pipeline=Mine)
"""


def test_a_suite_from_an_entry_point(workdir, refused, capsys):
    make_imagefolder(workdir / "mine", n_train=8, n_val=4)
    points = "[cliptex_benchmark.suites]\nmy-suite = other_package:SUITE\n"
    run = "run --suite my-suite --device cpu --num-workers 0"
    with installed(workdir / "site", SOURCE, points):
        assert run_command(f"{run} --json out.json") == 0
    assert capsys.readouterr().out.count("a pipeline") == 1, "what the suite makes is planned once"
    results = read_json("out.json")
    assert results["suite"] == results["mlflow"]["experiment"] == "my-suite"
    assert set(results["backbones"]["random"]) == {"imagefolder/linear"}
    refused(run, "no suite 'my-suite'")
