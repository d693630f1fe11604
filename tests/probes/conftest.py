"""What every test of the probes gets: a home of its own, and no leftovers of mmengine."""

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

import probes.catalog  # noqa: F401  registers every dataset, probe and protocol

torch.set_num_threads(1)  # such small maps only wait for one another on several


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """Caches of one test are not found by the next."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def no_scope_left_behind() -> Iterator[None]:
    """mmengine's default scope is global, and a Runner of a test or ``init_default_scope`` sets it
    for good."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
