"""``disk``: a disk that fills up during a run, labelling or training.

The disk is a tmpfs where root may mount one, otherwise a limit on the size of a file.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.sandbox import LABEL, RUN_AGAIN, TRAIN, Outcome, Sandbox

COMMANDS = {
    "run": RUN_AGAIN,
    "label": [*LABEL, "--out", "labels2"],
    "train": [*TRAIN, "--set", "lr=0.001", "--out", "w2.safetensors"],
}


def _mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at ``folder`` while in use; yields whether one may be mounted."""
    folder.mkdir(parents=True)
    mounted = shutil.which("mount") is not None and _mount(
        "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(undisturbed: Sandbox, folder: Path, name: str, spare: int) -> str:
    """Run a command with ``spare`` KiB of disk, then again with enough; the fault, or ''."""
    with small_disk(folder) as mounted:
        sandbox = undisturbed.copy(folder)
        used = shutil.disk_usage(folder).used >> 10
        if mounted:
            assert _mount("-o", f"remount,size={used + spare}k", folder)
        result = sandbox.run(COMMANDS[name], largest_file=None if mounted else spare << 10)
        if mounted:
            assert _mount("-o", "remount,size=2g", folder)
        if error := result.error() or (sandbox.leftovers() if result.code == 0 else ""):
            return error
        again = sandbox.run(COMMANDS[name])
        if error := again.error(codes=(0,)) or sandbox.leftovers():
            return f"afterwards: {error}"
        same = name != "run" or sandbox.metrics("after.json") == undisturbed.metrics()
        return "" if same else "afterwards: other metrics"


def points(undisturbed: Sandbox, folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """From almost no space (4 KiB) to nearly enough (8 MiB)."""
    rng = random.Random(seed)
    for index in range(count):
        name = sorted(COMMANDS)[index % 3]
        spare = round(4 * 2 ** (rng.random() * 11))
        yield f"{name} with {spare} KiB", fill_disk(undisturbed, folder / str(index), name, spare)
