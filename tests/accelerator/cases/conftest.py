"""Fixtures of the cases, which run on the pretended accelerator or on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cliptex_common.device import current_device, float32_products
from tests.accelerator.pretended.tensor import DEVICE

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.integration, append=False)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The accelerator of this process."""
    return current_device()


@pytest.fixture(autouse=True)
def home(own_home) -> None:
    """Features that one device has encoded are not found by another."""


@pytest.fixture(autouse=True)
def exact_and_deterministic(device, monkeypatch) -> Iterator[None]:
    """A real card computes without TF32, and sums in one order where it can."""
    if device.type == DEVICE.type:
        yield
        return
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with float32_products(tf32=False):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pretended(device) -> torch.device:
    """The pretended accelerator; skips the test on a real one."""
    if device.type != DEVICE.type:
        pytest.skip("only the pretended accelerator can count")
    return DEVICE
