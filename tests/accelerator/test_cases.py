"""Runs the cases on the pretended accelerator, in a process of their own: it changes torch.

A machine with an accelerator runs the same cases on it: ``pytest tests/accelerator -m gpu``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator.pretended.backend import unsupported

CASES = Path(__file__).parent / "cases"
ROOT = CASES.parents[2]


# a small one of each family, twenty seconds in all
SMALLEST = [
    "test_probes.py::test_scores_are_those_of_the_cpu[depth/linear]",
    "test_probes.py::test_scores_are_those_of_the_cpu[segmentation/in-context]",
    "test_probes.py::test_scores_are_those_of_the_cpu[classification/linear]",
    "test_probes.py::test_scores_are_those_of_the_cpu[correspondence/keypoints]",
    "test_probes.py::test_a_stored_head_predicts_and_scores_as_on_the_cpu[detection/ssd]",
    "test_probes.py::test_a_stored_head_predicts_and_scores_as_on_the_cpu[classification/linear]",
    "test_waits.py::test_a_step_waits_at_most[segmentation, upsampled]",
    "test_waits.py::test_a_step_waits_at_most[label propagation]",
    "test_in_loop.py::test_a_training_is_the_same_with_it",
    "test_trainings.py::test_a_training_resumes_on_another_device[to-cpu]",
    "test_experts.py::test_labels_are_those_of_the_cpu[unet-seg]",
]


@pytest.mark.skipif(bool(unsupported()), reason=unsupported())
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(SMALLEST, marks=pytest.mark.integration, id="smallest"),
        pytest.param([""], marks=pytest.mark.slow, id="all"),
    ],
)
def test_cases(cases):
    command = [sys.executable, "-m", "pytest", *(f"{CASES / case}" for case in cases)]
    command += ["-p", "tests.accelerator.plugin"]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-5000:]
