"""Batches are halved where memory ends."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from cliptex_common.device import Halving
from cliptex_common.errors import OutOfMemory

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Pass:
    """Doubles at most ``limit`` rows at once."""

    def __init__(self, limit: int) -> None:
        self.limit, self.sizes, self.intermediates = limit, [], []

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(part))
        doubled = 2 * part
        self.intermediates.append(weakref.ref(doubled))
        if len(part) > self.limit:
            raise torch.OutOfMemoryError(MESSAGE)
        return doubled + 0


def test_it_goes_on_where_it_was_with_smaller_parts():
    notes, batch, limited = [], torch.arange(20.0), Pass(limit=3)
    in_parts = Halving(16, "encoding images", notes)
    assert torch.equal(torch.cat(in_parts(limited, batch)), 2 * batch)
    assert limited.sizes == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    (note,) = notes
    assert "encoding images: at most 2 at once instead of 16" in note
    limited.sizes.clear()
    in_parts(limited, batch[:4])
    assert limited.sizes == [2, 2]  # it stays small


def test_what_a_failed_pass_made_is_freed_before_the_next_one():
    limited = Pass(limit=4)
    gc.disable()
    try:
        Halving(8, "encoding", [])(limited, torch.arange(8.0))
        assert all(reference() is None for reference in limited.intermediates)
    finally:
        gc.enable()


def test_a_single_row_that_does_not_fit_fails_with_one_line():
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 2.00 GiB.*one by one") as caught:
        Halving(8, "encoding images", [])(Pass(limit=0), torch.arange(4.0))
    assert caught.value.__context__ is None  # whose traceback would hold the tensors


def test_other_errors_are_not_touched():
    def fail(part: torch.Tensor) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Halving(8, "encoding", [])(fail, torch.arange(4.0))


def test_on_a_cpu_activations_stay_small():
    """Rows that need 10 MB each: eight of them at once, of rows with half the pixels sixteen."""
    sizes = []

    def compute(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part.new_ones(len(part), 10 * 2**18).mean(1) * part

    batch, in_parts = torch.arange(32.0), Halving(64, "encoding", [], "cpu")
    assert torch.equal(torch.cat(in_parts(compute, batch, pixels=4)), batch)
    assert sizes == [1, 8, 8, 8, 8]
    in_parts(compute, batch, pixels=2)
    assert sizes[5:] == [16, 16]
    sizes.clear()
    Halving(64, "encoding", [])(compute, batch)
    assert sizes == [32], "without a trial"
