"""Which accelerators a process sees."""

from __future__ import annotations

import pytest

from cliptex_common import visible_devices


@pytest.mark.parametrize(
    "name, expected", [("auto", False), ("cpu", False), ("cuda:1", True), ("mps", True)]
)
def test_names_of_accelerators(name, expected):
    assert visible_devices.is_accelerator_name(name) is expected


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
    for names in visible_devices.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert visible_devices.accelerator_ids(kind, 2) == expected
    assert all(
        f"{name}={value}" in visible_devices.describe_variables()
        for name, value in environment.items()
    )


def test_one_or_all_are_hidden_by_the_variables_of_their_type():
    restrict = visible_devices.restrict_accelerators
    assert restrict("xpu", "3") == {"ZE_AFFINITY_MASK": "3"} and restrict("mps", "0") == {}
    assert restrict("cuda", "3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert restrict() == {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
