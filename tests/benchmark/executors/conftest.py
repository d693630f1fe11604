import io

import pytest

from benchmark.progress import console
from cliptex_common.files import home
from tests.cluster import ray_cluster, slurm, slurm_config

__all__ = ["ray_cluster", "slurm", "slurm_config"]


@pytest.fixture
def output(monkeypatch):
    """A function that returns what was printed to the console."""
    file = io.StringIO()
    monkeypatch.setattr(console, "_file", file)
    return file.getvalue


@pytest.fixture(autouse=True)
def no_leftover_folders(cliptex_home):
    before = set((home() / "tasks").glob("[!.]*"))
    yield
    assert not set((home() / "tasks").glob("[!.]*")) - before, "a unit's folder goes with the unit"
