"""Signals while modules are imported and while a process leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(10): pass
except BaseException:
    print("swallowed")
complete = True
"""
IMPORTS = """
import sys, time
from benchmark import unit as interrupts
interrupts.handle_signals()
try:
    import swallows
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted", interrupts.received(), sys.modules["swallows"].complete)
"""
ENDS = """
import os, signal, sys
from benchmark.__main__ import entry
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{name}):
        kill(pid, number)
last = Last()
sys.argv[1:] = {arguments}
entry()
"""


ASYNC = """
import asyncio, os, signal
from benchmark import unit as interrupts
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
interrupts.handle_signals()
async def stop():
    os.kill(os.getpid(), signal.{name})
async def wait(task):
    await task
async def main():
    task = asyncio.ensure_future(stop())
    await asyncio.gather(*(wait(task) for _ in range(3)))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    for number in {{*interrupts.STOP_SIGNALS}} - ({{signal.SIGINT}} & {{signal.{name}}}):
        os.kill(os.getpid(), number)
    print("saved", interrupts.received())
"""


SWALLOWED = """
import os, signal
from types import SimpleNamespace
from benchmark import parser
def swallow():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10): pass
    except BaseException:
        return 0
parser.parse = lambda argv: SimpleNamespace(main=swallow)
raise SystemExit(parser.main(["report"]))
"""


def run_script(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_the_end_of_an_import(tmp_path, name):
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(name=name))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    done = run_script(IMPORTS, PYTHONPATH=path)
    assert done.stdout == f"interrupted {int(getattr(signal, name))} True\n", done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_tasks_end_without_tracebacks_and_another_signal_does_not_disturb_the_saving(name):
    done = run_script(ASYNC.format(name=name))
    assert (done.stdout, done.stderr) == (f"saved {int(getattr(signal, name))}\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["list", "nothing"], 2)], ids=["done", "refused"]
)
def test_a_signal_while_python_ends_keeps_the_exit_code(name, arguments, code):
    assert run_script(ENDS.format(name=name, arguments=arguments)).returncode == code


def test_a_command_whose_library_swallows_the_signal_was_interrupted():
    done = run_script(SWALLOWED)
    assert done.returncode == 130 and "interrupted" in done.stderr


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_a_command_interrupted_while_it_starts_exits_with_130(after):
    command = [sys.executable, "-X", "importtime", "-m", "benchmark", "list", "protocols"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    # until then Python itself handles it
    while "benchmark.progress" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=600)[1]
    assert process.returncode in (130, 0) and "Traceback" not in stderr  # 0: it was done
