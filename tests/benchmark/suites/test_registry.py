"""A suite that another package brings runs like ours, with data and weights that it makes
itself."""

from __future__ import annotations

import pytest

from tests.benchmark.commands import read_json, run_command
from tests.benchmark.other_package import installed
from tests.probes.datasets.make import make_imagefolder

pytestmark = pytest.mark.integration

SOURCE = """
from pathlib import Path
from benchmark.stages.graph import Stage
from benchmark.suites.registry import BackboneSource, Suite, SuiteArtifacts

async def make(executor):
    return BackboneSource({"name": "random", "seed": 5})

def artifacts(experiment, names, seeds):
    training = Stage("train", find=lambda: None, make=make)
    backbones = {("random", seed): training for seed in seeds}
    return SuiteArtifacts({"imagefolder": Path("mine")}, backbones=backbones)

SUITE = Suite("my-suite", "mine", {"imagefolder/linear": {"epochs": 2}}, ("random",), artifacts=artifacts)
"""  # noqa: E501


def test_a_suite_from_an_entry_point(workdir, refused):
    make_imagefolder(workdir / "mine", n_train=8, n_val=4)
    points = "[cliptex_benchmark.suites]\nmy-suite = other_package:SUITE\n"
    run = "run --suite my-suite --device cpu --num-workers 0"
    with installed(workdir / "site", SOURCE, points):
        assert run_command(f"{run} --json out.json") == 0
    results = read_json("out.json")
    assert results["suite"] == results["mlflow"]["experiment"] == "my-suite"
    assert set(results["backbones"]["random"]) == {"imagefolder/linear"}
    refused(run, "no suite 'my-suite'")
