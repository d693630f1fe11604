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
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (143, "")


@pytest.mark.parametrize("after", [0.0, 0.2, 0.5, 1.0])
def test_a_command_that_is_interrupted_while_it_starts_ends_with_130(after):
    command = [sys.executable, "-X", "importtime", "-m", "benchmark", "list", "protocols"]
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while (
        "common.errors" not in started.stderr.readline()
    ):  # before its first instruction it is the interpreter's
        assert started.poll() is None
    time.sleep(after)
    started.send_signal(signal.SIGINT)
    told = started.communicate(timeout=60)[1]
    assert started.returncode in (130, 0) and "Traceback" not in told  # 0: it was done
