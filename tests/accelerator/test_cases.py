"""Runs the cases on the pretended accelerator, in a process of their own: it changes torch.

A machine with an accelerator runs the same cases on it: ``pytest tests/accelerator -m gpu``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator.pretended import unsupported

CASES = Path(__file__).parent / "cases"
ROOT = CASES.parents[2]


@pytest.mark.skipif(bool(unsupported()), reason=unsupported())
@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_cases():
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "tests.accelerator.plugin"]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-5000:]
