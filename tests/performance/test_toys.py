"""Every benchmark runs, at toy size: nobody else notices when `make bench` is broken."""

from __future__ import annotations

import math
from importlib import import_module

import pytest

from tests.performance.harness import BENCHES, MODULES, TOYS, Unavailable


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_benchmarks_run(module):
    module = import_module(f"tests.performance.{module}")
    names = [name for name, bench in BENCHES.items() if bench.__module__ == module.__name__]
    assert names
    for name in names:
        try:
            results = TOYS[name]()
        except Unavailable as reason:
            pytest.skip(str(reason))
        assert results and all(math.isfinite(value) for r in results for value in (r.a, r.b))
