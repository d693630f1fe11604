"""Who ran which code on which machine: the provenance of a result."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cliptex_common.visible_devices import toolkit_versions

PACKAGES = (
    "cliptex-benchmark",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmsegmentation",
    "onedl-mmdetection",
    "mlflow",
    "numpy",
    "pandas",
    "transformers",
)


def origin_tags() -> dict[str, str]:
    """User, command and commit: tags of every run."""
    program, *arguments = sys.argv or [""]
    command = f" {arguments[0]}" if arguments and Path(program).parent.name == "benchmark" else ""
    user = ""
    with contextlib.suppress(Exception):  # a container may have a user without a name
        user = getpass.getuser()
    commit = git_commit()
    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"python -m benchmark{command}",
        "mlflow.source.git.commit": commit.partition("+")[0],
        "git.commit": commit,
    }


@functools.cache
def git_commit(folder: Path | None = None) -> str:
    """The commit of the checkout around ``folder`` (default: this package's), or ''.

    It ends in ``+dirty`` when tracked files have changes.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder or Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        dirty = "+dirty" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return ""


def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        **toolkit_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
        "git.commit": git_commit(),
    }
