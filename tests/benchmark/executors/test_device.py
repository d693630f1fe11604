"""Where a unit of work computes."""

from __future__ import annotations

import pytest
import torch

from benchmark import executor
from benchmark.executor import ExecutionOptions
from benchmark.options import run_options
from benchmark.unit import GPUS
from cliptex_common.errors import UserError

CPU, XPU = torch.device("cpu"), torch.device("xpu")


def test_auto_is_the_accelerator_of_the_machine(monkeypatch):
    monkeypatch.delenv(GPUS, raising=False)
    monkeypatch.setattr("cliptex_common.device.current_device", lambda: XPU)
    assert executor.choose_device("auto") == XPU and executor.choose_device("cpu") == CPU
    monkeypatch.setenv(GPUS, "1")
    assert executor.choose_device("auto") == XPU


def test_a_unit_without_a_gpu_computes_on_the_cpu(monkeypatch):
    """Also where no variable can hide accelerators."""
    monkeypatch.setattr("cliptex_common.device.current_device", lambda: XPU)
    monkeypatch.setenv(GPUS, "0")
    assert executor.choose_device("auto") == CPU


def test_a_unit_with_a_gpu_that_torch_does_not_find_is_an_error(monkeypatch):
    monkeypatch.setattr("cliptex_common.device.current_device", lambda: CPU)
    monkeypatch.setenv(GPUS, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=3.*finds none"):
        executor.choose_device("auto")


def test_devices_that_are_not_here_are_refused():
    with pytest.raises(UserError, match="no device 'gpuu'"):
        run_options(ExecutionOptions(), device="gpuu")
    if not torch.xpu.is_available():
        options = ExecutionOptions(device="xpu")  # a cluster may have one
        with pytest.raises(UserError, match="'xpu' on this machine"):
            executor.choose_device(options.device)
