"""Bytes of tensors are counted without computing."""

from __future__ import annotations

import torch
from torch import nn

from cliptex_common.live_bytes import cached_tensors, counting, device_of, fake_copy, real_tensors

GPU = torch.device("cuda:0")  # planned for; this machine need not have one


def test_a_step_is_counted_as_it_is_made_by_hand():
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
    parameters = 4 * (100 * 200 + 200 + 200 * 10 + 10)
    with counting(GPU) as counter:
        copy = fake_copy(model)
        assert counter.now == parameters
        outputs = copy(torch.empty(50, 100))
        # kept for the backward pass: the input, what the ReLU returns (its input is freed)
        kept = 4 * 50 * (100 + 200 + 10)
        assert counter.now == parameters + kept
        assert counter.take_peak() == parameters + 4 * 50 * (100 + 200 + 200)
        outputs.sum().backward()
        del outputs
        assert counter.now == 2 * parameters  # gradients
    assert model[0].weight.grad is None and isinstance(model[0].weight, nn.Parameter)


def test_views_count_once_and_host_tensors_never():
    with counting(GPU) as counter:
        with counter.on_host():
            host = torch.empty(1000)
        part = host[:10] + 1
        views = [part[:5], part.view(2, 5)]
        assert counter.now == 4 * 10
        assert device_of(part) == GPU
        del part, views
        assert counter.now == 0
        with real_tensors():
            assert torch.ones(3).numpy().sum() == 3


def test_values_that_are_not_known_take_the_most_memory():
    with counting(GPU) as counter, torch.inference_mode():
        values = torch.empty(20, 3)
        assert values[values[:, 0] > 0].shape == (20, 3)
        assert (values > 0).nonzero().shape == (60, 2)
        assert bool((values > 0).any())
        assert counter.peak > counter.now >= 4 * 60


def test_tied_weights_stay_tied():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    with counting(GPU) as counter:
        copy = fake_copy(model)
        assert copy[1].weight is copy[0].weight
        assert counter.now == 4 * (16 + 4 + 4)


def test_cached_tensors_are_real_and_without_inference_mode():
    calls = []

    @cached_tensors(maxsize=4)
    def ones(count: int) -> torch.Tensor:
        calls.append(count)
        return torch.ones(count)

    with counting(GPU) as counter:
        fake = ones(3)
        assert counter.now == 4 * 3
    with torch.inference_mode():
        first = ones(3)
    assert type(first) is torch.Tensor and first is not fake and not first.is_inference()
    with counting(GPU):
        assert type(ones(3)) is type(fake)
    assert ones(3) is first and calls == [3] * 3
