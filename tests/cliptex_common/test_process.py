"""Which accelerators a process sees, and the memory that it keeps."""

from __future__ import annotations

import platform
from mmap import PAGESIZE
from pathlib import Path

import pytest

from cliptex_common import process
from cliptex_common.process import keep_freed_memory, return_freed_memory


def resident() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGESIZE / 2**20


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a function of glibc")
def test_freed_memory_is_kept_for_the_next_batch_until_it_is_returned():
    return_freed_memory()
    keep_freed_memory()
    b"1" * 2**24  # 16 MiB
    before = resident()
    return_freed_memory()
    assert before - resident() > 8


@pytest.mark.parametrize(
    "name, expected", [("auto", False), ("cpu", False), ("cuda:1", True), ("mps", True)]
)
def test_names_of_accelerators(name, expected):
    assert process.is_accelerator_name(name) is expected


@pytest.mark.parametrize(
    "environment, kind, expected",
    [
        ({}, "cuda", ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "4,7,9"}, "cuda", ["4", "7"]),
        ({"CUDA_VISIBLE_DEVICES": "4,7", "HIP_VISIBLE_DEVICES": "2,3"}, "cuda", ["2", "3"]),
        ({"ZE_AFFINITY_MASK": "0.1,1.0"}, "xpu", ["0.1", "1.0"]),
        ({"CUDA_VISIBLE_DEVICES": "4,7"}, "mps", ["0", "1"]),
    ],
)
def test_a_part_of_what_a_process_sees_is_named_as_the_process_got_it(
    environment, kind, expected, monkeypatch
):
    for names in process.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process.accelerator_ids(kind, 2) == expected
    assert all(
        f"{name}={value}" in process.describe_variables() for name, value in environment.items()
    )


def test_one_or_all_are_hidden_by_the_variables_of_their_type():
    restrict = process.restrict_accelerators
    assert restrict("xpu", "3") == {"ZE_AFFINITY_MASK": "3"} and restrict("mps", "0") == {}
    assert restrict("cuda", "3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert restrict() == {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
