"""``run`` gives the same numbers whoever computes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark.run_command import read_json, run_command
from tests.probes.datasets.make import make_camvid
from tests.probes.datasets.make_shifts import make_imagenet, make_shift
from tests.servers import mlflow_server

pytestmark = pytest.mark.cluster

RUN = "run --task camvid/linear,imagenet-a/linear --backbone random --data-root ."
RUN += " --set camvid/linear.tune=frozen,blocks:1 --set tune_rates=0.001"
RUN += " --seed 3 --partial --device cpu --num-workers 0 --set epochs=2 --set max_iters=4"
RUN += " --set batch_size=2 --set camvid/linear.size=32"
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_an_executor_gives_the_numbers_of_one_process(executor, workdir, request, monkeypatch):
    """A dense probe, frozen and tuned, one of images, and its head on another set; nothing is
    shared but the data."""
    make_camvid(workdir / "camvid")
    make_imagenet(workdir / "imagenet")
    make_shift(workdir, "imagenet-a")
    if executor == "slurm":
        request.getfixturevalue("slurm")
    else:
        pytest.importorskip("ray", reason="no Ray: pip install 'ray[default]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with mlflow_server(workdir) as address:  # several nodes cannot share a file
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for name, words in {"one": "--jobs 1", "many": f"--executor {executor}"}.items():
            monkeypatch.setenv("CLIPTEX_HOME", str(workdir / name))
            assert run_command(f"{RUN} {words} --experiment {name} --json {name}.json") == 0
    one, many = (read_json(f"{name}.json")["backbones"]["random"] for name in ("one", "many"))
    assert many == one
    assert set(one) == {
        "camvid/linear",
        "camvid/linear:tune=blocks:1",
        "imagenet/linear",
        "imagenet-a/linear",
    }
