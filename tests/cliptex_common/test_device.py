"""What is asked of devices. None of these tests needs an accelerator: backends are played."""

from __future__ import annotations

from contextlib import nullcontext
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch

from cliptex_common import device
from cliptex_common.errors import OutOfMemory, UserError

CPU, GPU = torch.device("cpu"), torch.device("xpu", 1)
CACHED = [each for each in vars(device).values() if hasattr(each, "cache_clear")]


@pytest.fixture
def backend(monkeypatch):
    """An XPU's module, as far as a test gives it functions."""
    module = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    get_module = torch.get_device_module
    monkeypatch.setattr(
        torch, "get_device_module", lambda of: module if "xpu" in str(of) else get_module(of)
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for function in CACHED:
        function.cache_clear()
    yield module
    for function in CACHED:
        function.cache_clear()


def test_which_devices_there_are(backend, monkeypatch):
    assert device.current_device() == torch.device("xpu") and device.device_count() == 2
    assert device.is_available("xpu:1") and device.is_available("cpu")
    assert not device.is_available("xpu:2")
    with pytest.raises(UserError, match="no device 'gpuu'"):
        device.is_available("gpuu")
    assert device.device_name(torch.device("xpu", 0)).startswith("xpu of ")
    backend.get_device_name = lambda of: f"Arc {of.index}"
    assert device.device_name(GPU) == "Arc 1"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device.current_device() == CPU
    assert device.device_count() == 0, "its library may be there without a device"


def test_the_random_state_of_a_device_and_the_cpu(backend):
    states = {"state": torch.tensor([1]), "current": 0}

    def use(selected):
        states["current"] = selected.index
        return nullcontext()

    backend.device = use
    backend.get_rng_state = lambda: states["state"]
    backend.set_rng_state = lambda state: states.update(state=state)
    before = device.random_state(GPU)
    assert states["current"] == 1, "that of the device itself"
    draw = torch.rand(1)
    states["state"] = torch.tensor([2])
    device.set_random_state(before, GPU)
    assert states["state"].item() == 1 and torch.rand(1) == draw
    assert len(device.random_state(CPU)) == 1


@pytest.mark.parametrize("in_use", [False, True])
def test_only_accelerators_in_use_are_seeded(backend, monkeypatch, in_use):
    seeds = []
    backend.is_initialized = lambda: in_use
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    device.seed_devices(3)
    assert seeds == [3] * in_use


def test_memory_where_the_backend_can_tell(backend):
    assert device.memory(GPU) is None
    assert device.peak_memory(GPU) is None and device.peak_memory(CPU) is None
    backend.recommended_max_memory, backend.driver_allocated_memory = lambda: 10, lambda: 4
    assert device.memory(GPU) == (6, 10)
    backend.mem_get_info = lambda of: (of.index, 8)
    assert device.memory(GPU) == (1, 8)
    backend.mem_get_info = lambda of: torch.empty(-1)
    assert device.memory(GPU) is None, "an integrated GPU cannot tell"
    backend.max_memory_allocated = lambda of: 7
    assert device.peak_memory(GPU) == 7


@pytest.mark.parametrize(
    ("error", "can"),
    [(None, True), (TypeError("xpu has no bf16"), False), (torch.OutOfMemoryError(), None)],
)
def test_what_a_device_computes_in_is_tried(backend, monkeypatch, error, can):
    def ones(*shape, dtype, device):
        if error:
            raise error
        return 0

    monkeypatch.setattr(torch, "ones", ones)
    if can is None:  # a full device is not one that cannot
        with pytest.raises(type(error)):
            device.prefers_bf16(GPU)
        return
    assert device.prefers_bf16(GPU) is can and not device.prefers_bf16(CPU)
    assert device.float64_device(GPU) == (GPU if can else CPU) and device.float64_device(CPU) == CPU


def test_bf16_is_not_preferred_where_it_is_emulated_and_is_elsewhere(backend):
    backend.is_bf16_supported = lambda including_emulation: including_emulation
    assert not device.prefers_bf16(GPU)
    assert device.prefers_bf16("xpu:9"), "work for another machine"


@pytest.mark.parametrize("pins", [False, True])
def test_a_copy_is_waited_for_where_memory_is_not_pinned(backend, monkeypatch, pins):
    def pin_memory(self):
        if not pins:
            raise RuntimeError("cannot pin")
        return self

    waited = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, to, non_blocking=False: waited.append(not non_blocking)
    )
    device.upload(torch.ones(1), GPU)
    assert waited == [not pins] and not device.takes_pinned_memory(CPU)


MEMORY_ENDED = (
    "MPS backend out of memory (MPS allocated: 1.00 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "GET was unable to find an engine to execute this computation",
    "level_zero backend failed: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
    "Invalid buffer size: 24.00 GiB",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "NCCL error\nLast error:\nCuda failure 2 'out of memory'",
    "NCCL error\nLast error:\nFailed to CUDA calloc 6291456 bytes",
)
OTHERS = (
    RuntimeError("NCCL error\nLast error:\nCuda failure 1 'invalid argument'"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    OutOfMemory("out of memory on the device (CUDA error: out of memory)"),
    None,
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        *map(RuntimeError, MEMORY_ENDED),
        *OTHERS,
    ],
)
def test_errors_that_say_that_memory_ended(error):
    assert device.is_out_of_memory(error) is (error not in OTHERS)


@pytest.mark.parametrize("can", [False, True])
def test_whether_fused_steps_are_skipped_is_tried(backend, monkeypatch, can):
    ones, step = torch.ones, torch._fused_adamw_

    def fused_adamw(*tensors, found_inf, **options):
        step(*tensors, found_inf=found_inf if can else None, **options)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setattr(torch, "_fused_adamw_", fused_adamw)
    assert device.skips_fused_steps(GPU) is can


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_products_of_matrices_and_convolutions(tf32):
    def rounded():
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision() != "highest"

    before = rounded()
    with device.float32_products(tf32=tf32):
        assert rounded() == (tf32, tf32)
    assert rounded() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("name", ["", "cuda.matmul", "cudnn.conv", "mkldnn"])
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_products_where_the_older_switches_cannot_be_read(name, tf32):
    parts = ["", "mkldnn", *device.PRODUCTS]
    switches = {
        part: attrgetter(part)(torch.backends) if part else torch.backends for part in parts
    }

    def state():
        return {part: switch.fp32_precision for part, switch in switches.items()}

    untouched = state()
    try:
        switches[name].fp32_precision = "tf32"
        before = state()
        with device.float32_products(tf32=tf32):
            inside = state()
        assert state() == before
        assert inside["cudnn.conv"] == inside["cuda.matmul"] == ("tf32" if tf32 else "ieee")
        assert inside["mkldnn.conv"] == "ieee"
        switches[name].fp32_precision = "ieee"
        if not name:
            assert state()["mkldnn.conv"] == "ieee", "it inherits as before"
    finally:
        for part, precision in untouched.items():
            switches[part].fp32_precision = precision
