"""``disk``: a disk that fills at any stage of a run, of labelling and of training: a tmpfs where
root may mount one, else a limit on how large a file may become."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.place import LABEL, RANDOM, TRAIN, Place, Point

COMMANDS = {
    "run": [*RANDOM, "--experiment", "again", "--json", "after.json"],
    "label": [*LABEL, "--out", "labels2"],
    "train": [*TRAIN, "--set", "lr=0.001", "--out", "w2.safetensors"],
}


def _mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at ``folder`` while in use; yields whether one may be mounted."""
    folder.mkdir(parents=True)
    try:
        mounted = bool(shutil.which("mount")) and _mount(
            "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder
        )
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def point(whole: Place, folder: Path, name: str, spare: int) -> str:
    """A command with so many KiB to spare, then again with enough."""
    with small_disk(folder) as mounted:
        place = whole.copy(folder)
        used = shutil.disk_usage(folder).used >> 10
        if mounted:
            assert _mount("-o", f"remount,size={used + spare}k", folder)
        ended = place.run(COMMANDS[name], **({} if mounted else {"largest": spare << 10}))
        if mounted:
            assert _mount("-o", "remount,size=2g", folder)
        if wrong := ended.wrong(codes=(0, 1, 2)) or (place.left() if ended.code == 0 else ""):
            return wrong
        again = place.run(COMMANDS[name])
        if wrong := again.wrong(codes=(0,)) or place.left():
            return f"afterwards: {wrong}"
        same = name != "run" or place.metrics("after.json") == whole.metrics()
        return "" if same else "afterwards: other metrics"


def points(whole: Place, folder: Path, count: int, number: int) -> Iterator[Point]:
    """From nothing to spare to nearly enough."""
    rng = random.Random(number)
    for index in range(count):
        name = sorted(COMMANDS)[index % 3]
        spare = round(4 * 2 ** (rng.random() * 11))  # 4 KiB … 8 MiB
        yield f"{name} with {spare} KiB", point(whole, folder / str(index), name, spare)
