"""Pairs that the tests of batches and trainings share."""

from __future__ import annotations

import pytest

from backbones.cliptex.pairs import open_pairs
from tests.backbones.cliptex import toy


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return open_pairs(toy.write_pairs(tmp_path_factory.mktemp("pairs"), 48, 2))
