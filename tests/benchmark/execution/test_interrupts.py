"""Signals while modules are imported and while a process leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(10): pass
except BaseException:
    print("swallowed")
whole = True
"""
IMPORTS = """
import time
from benchmark.execution import interrupts
interrupts.install()
try:
    import swallows
    time.sleep(10)
except KeyboardInterrupt:
    import sys
    print("interrupted", interrupts.received(), sys.modules["swallows"].whole)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_import_is_finished_before_a_signal_is_heard(tmp_path, name):
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(name=name))
    here = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == f"interrupted {int(getattr(signal, name))} True\n", ended.stderr


LEAVES = """
import os, signal, time
from benchmark.execution import interrupts
interrupts.install()
interrupts.leave(143)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""


def test_a_second_signal_while_a_process_leaves_is_quiet():
    ended = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, "")


@pytest.mark.parametrize("after", [0.05, 0.3, 0.6, 1.0])
def test_a_command_that_is_interrupted_while_it_starts_ends_with_130(after):
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmark", "list", "protocols"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    started.send_signal(signal.SIGINT)
    told = started.communicate(timeout=60)[1]
    # earlier than its first instruction the interpreter itself is ended; later than its last it is done
    assert started.returncode in (130, -signal.SIGINT, 0)
    assert "AttributeError" not in told and (started.returncode != 130 or "Traceback" not in told)
