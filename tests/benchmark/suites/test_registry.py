"""A suite that another package brings runs like ours, with data and weights that it makes
itself."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark.__main__ import main
from tests.benchmark.other_package import installed
from tests.probes.datasets.make import make_imagefolder

SOURCE = """
from pathlib import Path
from benchmark.suites.registry import MadeBackbone, Suite, SuiteArtifacts

async def artifacts(stages, names, seeds):
    async def make():
        return MadeBackbone({"name": "random", "seed": 5})
    return SuiteArtifacts({"imagefolder": Path("mine")}, {("random", seed): make for seed in seeds})

SUITE = Suite("my-suite", "mine", {"imagefolder/linear": {"epochs": 2}}, ("random",), artifacts=artifacts)
"""  # noqa: E501


def test_a_suite_from_an_entry_point(tmp_path, monkeypatch, capsys):
    make_imagefolder(tmp_path / "mine", n_train=8, n_val=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    points = "[cliptex_benchmark.suites]\nmy-suite = other_package:SUITE\n"
    with installed(tmp_path / "site", SOURCE, points):
        assert main(["list", "suites", "my-suite"]) == 0
        assert "mine [1 tasks]" in capsys.readouterr().out
        words = [
            "--suite",
            "my-suite",
            "--device",
            "cpu",
            "--num-workers",
            "0",
            "--json",
            "out.json",
        ]
        assert main(["run", *words]) == 0
    results = json.loads(Path("out.json").read_text())
    assert results["suite"] == results["mlflow"]["experiment"] == "my-suite"
    assert set(results["backbones"]["random"]) == {"imagefolder/linear"}
    assert main(["run", "--suite", "my-suite"]) == 2, "it is gone with its package"
    assert "no suite 'my-suite'" in capsys.readouterr().err
