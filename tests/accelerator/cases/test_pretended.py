"""The pretended accelerator itself: every fault that it must notice is made here once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cliptex_common import device as layer
from tests.accelerator.pretended.counters import MEMORY, counting, memory_limit

pytestmark = pytest.mark.usefixtures("pretended")


@pytest.fixture
def square(device):
    """(3, 3) on the device, with positive and negative values."""
    return torch.arange(-4.0, 5, device=device).view(3, 3)


MIXES = [
    lambda square: square + torch.ones(3),
    lambda square: torch.ones(3, 3) @ square,
    lambda square: torch.cat([square[0], torch.ones(1)]),
    lambda square: F.cross_entropy(square, torch.tensor([0, 1, 2])),
    lambda square: square.index_put_((torch.tensor([0]),), torch.ones(1, 3)),
    lambda square: nn.Embedding(3, 2)(square.long().abs()),
]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        *((mix, RuntimeError, "expected all tensors to be on the same device") for mix in MIXES),
        (lambda square: square.numpy(), (RuntimeError, TypeError), ""),
        (lambda square: np.asarray(square), (RuntimeError, TypeError), ""),
        (lambda square: square.to("cpu", non_blocking=True).sum(), RuntimeError, "too early"),
        (lambda square: square.histogram(3), NotImplementedError, "no kernel"),
    ],
)
def test_what_an_accelerator_cannot_is_refused(square, fault, error, message):
    with pytest.raises(error, match=message):
        fault(square)


EVENTS = {
    "wait": [
        lambda square: square.sum().item(),
        lambda square: square.nonzero(),
        lambda square: square[square > 0],
        lambda square: square.unique(),
        lambda square: torch.equal(square, square),
        lambda square: square.repeat_interleave(square[0].long().abs(), dim=0),
        lambda square: torchvision.ops.nms(square.repeat(1, 2)[:, :4], square[0], 0.5),
        lambda square: layer.synchronize(square.device),
    ],
    "blocking copy": [
        lambda square: torch.ones(3).to(square.device),
        lambda square: torch.ones(3).pin_memory().to(square.device),
        lambda square: torch.stack([torch.ones(3).pin_memory()] * 2).to(
            square.device, non_blocking=True
        ),
        lambda square: square.tolist(),
        lambda square: torch.ones(3, 3).copy_(square),
        lambda square: square[[2, 1, 0]],
    ],
    "async copy": [
        lambda square: torch.ones(3).pin_memory().to(square.device, non_blocking=True),
        lambda square: square.copy_(torch.ones(3, 3).pin_memory(), non_blocking=True),
    ],
}


@pytest.mark.parametrize(("kind", "act"), [(kind, act) for kind in EVENTS for act in EVENTS[kind]])
def test_waits_and_copies_are_counted(square, kind, act):
    with counting() as events:
        act(square)
    assert events.number(kind) >= 1, events
    if kind != "wait":
        assert events.number("blocking copy") + events.number("async copy") == 1, events


def test_the_device_has_random_numbers_of_its_own(device):
    torch.manual_seed(1)
    first = torch.rand(4, device=device)
    on_cpu = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), on_cpu), "draws on the device leave the CPU's alone"
    assert torch.equal(torch.rand(4, device=device), first), "and the other way round"


@pytest.mark.parametrize("own_device, wrong_device", [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_generator_of_another_device_is_refused(own_device, wrong_device):
    own = torch.Generator(own_device).manual_seed(1)
    assert torch.rand(3, device=own_device, generator=own).device.type == own.device.type
    with pytest.raises(RuntimeError, match="generator is not of"):
        torch.rand(3, device=own_device, generator=torch.Generator(wrong_device))


def test_bytes_of_tensors(device):
    before = MEMORY.live
    tensor = torch.zeros(100, device=device)
    view = tensor.view(10, 10)
    assert MEMORY.live == before + 400, "a view takes no memory"
    MEMORY.reset_peak()
    _ = view + 1, tensor * 2
    assert MEMORY.peak == before + 1200
    del tensor
    _ = None
    assert MEMORY.live == before + 400, "the view keeps it"
    del view
    assert MEMORY.live == before


def test_a_device_can_be_out_of_memory(device):
    first = torch.zeros(100, device=device)
    with memory_limit(MEMORY.live + 1000):
        assert layer.memory(device) == (1000, MEMORY.live + 1000)
        with pytest.raises(torch.OutOfMemoryError, match=r"cases/test_pretended\.py"):
            torch.zeros(1000, device=device)
        assert first.sum() == 0, "what fits goes on"
    torch.zeros(1000, device=device)
