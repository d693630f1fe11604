"""How a command ends: what the user can mend is one line and 2, a bug is a traceback, an
interruption says how to go on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest

from benchmark.__main__ import COMMANDS, main, parser
from benchmark.cli import ui
from common.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """Let ``ui`` do something else, and run it."""

    def run(does) -> int:
        monkeypatch.setattr(ui, "main", lambda options: does())
        return main(["ui"])

    return run


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/weights")


def users():
    raise RuntimeError("the run failed") from UserError("no such\nfolder")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (
            full_disk,
            2,
            (
                "error: cannot write /data/weights: No space left on device; free some space and"
                " run the command again\n"
            ),
        ),
        (users, 2, "error: no such folder\n"),
        (
            interrupted,
            130,
            "\ninterrupted; what was finished is kept. Go on with: python -m benchmark ui\n",
        ),
    ],
)
def test_exit_codes(command, capsys, does, code, message):
    assert command(does) == code
    assert capsys.readouterr().err == message


def test_a_bug_beside_an_error_of_the_disk_is_a_bug(command):
    def bug():
        try:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError:
            {}["key"]

    with pytest.raises(KeyError):
        command(bug)


def test_a_wrong_word_is_one_line(capsys):
    for words in (["lst"], ["list", "taks"], []):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert set(COMMANDS) >= {"run", "list", "sweep"}
    assert "command" in parser("list").parse_args(["list", "tasks"])


HEAVY = (
    "mmengine",
    "mmcv",
    "mmseg",
    "mmdet",
    "torchvision",
    "timm",
    "open_clip",
    "transformers",
    "mlflow",
    "optuna",
    "ray",
    "submitit",
)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("list tasks", "voc/pspnet +segmentation, mIoU .paper"),
        ("list suites", "paper +the tasks of the CLIPTeX paper"),
        ("list datasets", "ade20k +segmentation: "),
        ("list probes", "zero-shot +for classification: top1, top5"),
        ("list executors", "slurm +"),
        ("list backbones", "dinov2-b14 "),
        ("list experts", "mask-rcnn +semantic maps"),
        ("list recipes", "clip-ft +30 epochs"),
        ("--help", "run +probe backbones"),
    ],
)
def test_what_only_lists_imports_no_library_that_computes(words, line):
    heavy = (
        HEAVY if words in ("list backbones", "list experts", "list recipes") else (*HEAVY, "torch")
    )
    code = (
        f"import sys; from benchmark.__main__ import main\ntry: main({words.split()!r})\nexcept"
        f" SystemExit: pass\nsys.exit(', '.join(name for name in {heavy!r} if name in sys.modules)"
        " or None)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert re.search(line, process.stdout)


def test_a_reader_that_went_ends_a_command_as_it_ends_others():
    script = f"set -o pipefail; {sys.executable} -m benchmark list tasks | true"
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert process.stderr == ""


def test_the_console_script_redacts_secrets():
    words = ["list", "tasks", "--data-root", "postgresql://me:hunter2@host/db"]
    code = f"import sys; sys.argv[1:] = {words!r}; from benchmark.__main__ import entry; entry()"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2 and "hunter2" not in process.stderr
