"""Results that threads compute ahead: in order, not too many, errors where they belong."""

from __future__ import annotations

import threading

import pytest

from backbones.cliptex.pairs import computed_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads):
    assert list(computed_ahead(lambda item: item**2, range(20), threads)) == [
        item**2 for item in range(20)
    ]
    assert list(computed_ahead(str, [], threads)) == []


def test_the_next_ones_are_computed_while_one_is_used_but_not_all():
    computed, third = [], threading.Event()

    def compute(item: int) -> int:
        computed.append(item)
        if item == 2:
            third.set()
        return item

    results = computed_ahead(compute, range(100), 1)
    assert next(results) == 0
    assert third.wait(10) and len(computed) <= 3
    results.close()
    assert len(computed) <= 3


def test_an_error_comes_in_its_turn():
    results = computed_ahead(lambda item: 1 // (2 - item), range(4), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
