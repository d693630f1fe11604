"""Fixtures of the cases, which run on the pretended accelerator or on a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cliptex_common.device import current_device
from tests.accelerator.pretended import DEVICE

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


@pytest.fixture
def pretended(device) -> torch.device:
    """The pretended accelerator; skips the test on a real one."""
    if device.type != DEVICE.type:
        pytest.skip("only the pretended accelerator can count")
    return DEVICE
