"""Runs the cases on the pretended accelerator, in a process of their own: it changes torch.

A machine with an accelerator runs the same cases on it: ``pytest tests/accelerator -m gpu``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.accelerator.pretended import unsupported

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(unsupported()), reason=unsupported()),
    pytest.mark.timeout(3600),  # the first test waits for all cases
]
CASES = Path(__file__).parent / "cases"
ROOT = CASES.parents[2]
FILES = sorted(path.stem for path in CASES.glob("test_*.py"))
Outcomes = dict[str, list[ElementTree.Element]]  # of a file: its cases


@pytest.fixture(scope="module", params=["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def outcomes(tmp_path_factory, request) -> Outcomes:
    """The outcome of each case."""
    report = tmp_path_factory.mktemp("cases") / "report.xml"
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "tests.accelerator.plugin"]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-m", request.param]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert report.is_file(), process.stdout[-5000:] + process.stderr[-5000:]
    results: Outcomes = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        path = case.get("classname") or case.get("name") or ""  # of a file that cannot be imported
        results[path.rpartition(".")[2]].append(case)
    return results


@pytest.mark.parametrize("file", FILES)
def test_cases(file, outcomes):
    failures = []
    for case in outcomes[file]:
        failures += [
            f"{case.get('name')}: {problem.text}"
            for problem in (*case.iter("failure"), *case.iter("error"))
        ]
    assert not failures, "\n\n".join(failures)
    if not outcomes[file]:
        pytest.skip("it has no such case")
