"""How a command ends: what the user can mend is one line and 2, work that fails with a reason is
one line and 1, a bug is a traceback, an interruption says how to go on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.commands import looking
from benchmark.parser import main
from cliptex_common.errors import NonFiniteLoss, UserError
from tests.imports import HEAVY, REPORTS, run_and_count

pytestmark = pytest.mark.integration


@pytest.fixture
def command(monkeypatch):
    """Let ``ui`` do something else, and run it."""

    def run(does) -> int:
        monkeypatch.setattr(looking.Ui, "main", lambda options: does())
        return main(["ui"])

    return run


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/weights")


def users():
    raise RuntimeError("the run failed") from UserError("no such\nfolder")


def diverged():
    raise NonFiniteLoss("the loss is not finite at step 3; lower lr")


def interrupted():
    raise KeyboardInterrupt


def exits():
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (full_disk, 2, "error: cannot write /data/weights: No space left on device"),
        (users, 2, "error: no such folder\n"),
        (diverged, 1, "error: NonFiniteLoss: the loss is not finite at step 3; lower lr\n"),
        (exits, 1, "error: a plugin or library called exit(0)\n"),
        (interrupted, 130, "Go on with: python -m benchmark ui\n"),
    ],
)
def test_exit_codes(command, capsys, does, code, message):
    assert command(does) == code
    assert message in capsys.readouterr().err


def test_a_bug_beside_an_error_of_the_disk_is_a_bug(command):
    def bug():
        try:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError:
            {}["key"]

    with pytest.raises(KeyError):
        command(bug)


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "heavy", "most"),
    [
        ("list tasks; list protocols; list backbones", f"{HEAVY} {REPORTS} torch", 700),
        (
            f"list recipes; list experts --plugin {ROOT / 'docs/examples/edge_unet.py'}",
            f"{HEAVY} {REPORTS}",
            1700,
        ),
        ("--help", f"{HEAVY} {REPORTS} torch numpy", 450),
        ("doctor", f"{HEAVY} pandas jinja2", 1800),
    ],
)
def test_commands_that_only_look_import_few_modules_and_nothing_that_computes(words, heavy, most):
    run_and_count(words, heavy, most)


@pytest.mark.parametrize(("output", "code"), [("| true", 141), (">&-", 0)])
def test_a_reader_that_went_ends_a_command_as_it_ends_others(output, code):
    script = f"set -o pipefail; {sys.executable} -m benchmark list tasks {output}"
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=600)
    assert (process.returncode, process.stderr) == (code, "")


@pytest.mark.parametrize(
    "words",
    [
        "data check --data-root /nope",
        "report --ui-url javascript:alert(1)",
        "labels make --pairs pairs.csv --from seg=. --out labels --classes .",
        "labels make --pairs pairs.csv --from seg=. --out labels --classes latin.txt",
        "labels make --pairs pairs.csv --from seg=. --out labels --classes missing.txt",
        "list tasks --json=",
        "run --suite smoke --dry-run CLIPTEX_CACHE_GB=abc",
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    *command, wrong = words.split()
    if wrong.startswith("CLIPTEX_"):
        monkeypatch.setenv(*wrong.split("="))
    else:
        command.append(wrong)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and wrong.strip("=").partition("=")[0] in line


def test_the_console_script_redacts_secrets():
    words = ["list", "tasks", "--limit", "postgresql://me:hunter2@host/db"]
    code = f"import sys; sys.argv[1:] = {words!r}; from benchmark.__main__ import entry; entry()"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 2 and "hunter2" not in process.stderr


def test_no_file_of_the_working_folder_takes_the_place_of_a_package(tmp_path):
    """``python -m`` puts the working folder first on Python's path."""
    (tmp_path / "common.py").write_text("raise RuntimeError('not mine')")
    process = subprocess.run(
        [sys.executable, "-m", "benchmark", "list", "suites"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0 and "paper" in process.stdout, process.stderr
