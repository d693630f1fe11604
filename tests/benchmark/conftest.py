"""A working folder for a test's commands, and a check of what they refuse."""

from __future__ import annotations

import pytest

from benchmark.parser import main
from tests.probes.datasets.make import make_camvid, make_imagefolder


@pytest.fixture
def camvid(workdir):
    """A small dataset in the working folder."""
    return make_camvid(workdir / "camvid", n_train=4, n_val=3)


@pytest.fixture
def imagefolder(workdir):
    """Likewise, of whole images."""
    return make_imagefolder(workdir / "imagefolder", n_train=8, n_val=4)


@pytest.fixture
def refused(capsys):
    """Assert that a command ends with 2 and one line of error with ``message``."""

    def check(command: str, message: str) -> None:
        assert main(command.split()) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error

    return check
