"""Who started what, of which code, on what machine: what a result needs to be believed later."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def provenance() -> dict[str, str]:
    """Who started what, of which code: tags of every run."""
    place, *words = sys.argv or [""]
    command = f" {words[0]}" if words and Path(place).parent.name == "benchmark" else ""
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
    """The commit of the checkout that ``folder`` (default: this package's) is in, ``+dirty`` when
    it has changes, or ''."""
    git = shutil.which("git")
    if not git:
        return ""
    command = [git, "-C", str(folder or Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changes = subprocess.run(
            [*command, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what a result needs to be believed later."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in (
        *(
            "cliptex-benchmark",
            "torch",
            "torchvision",
            "open_clip_torch",
            "timm",
            "onedl-mmengine",
            "onedl-mmcv",
        ),
        *("onedl-mmsegmentation", "onedl-mmdetection", "mlflow", "numpy", "pandas", "transformers"),
    ):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    torch = sys.modules.get("torch")  # there where something computes
    return {
        "cuda": torch.version.cuda if torch else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
        "git.commit": git_commit(),
    }
