"""``together``: two and four commands at once in one place, identical and different ones."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.place import LABEL, RANDOM, REPORT, RUN, TRAIN, Place, Point, copies

AGAIN = [*RANDOM, "--experiment", "again", "--json", "after.json"]
OTHERS: dict[str, Sequence[str]] = {
    "another seed": [*RANDOM, "--experiment", "again", "--seed", "1"],
    "another backbone": [*RUN, "--backbone", "efficientnet-lite0", "--experiment", "again"],
    "another experiment": [*RANDOM, "--experiment", "third"],
    "a report": REPORT,
    "features removed": ["cache", "rm", "--yes", "--kind", "features"],
    "cells removed": ["cache", "rm", "--yes", "--kind", "work"],
    "a check": ["cache", "check"],
    "labels": [*LABEL, "--out", "labels2"],
    "training": [*TRAIN, "--out", "w2.safetensors"],
}
IDENTICAL: dict[
    str, tuple[Sequence[str], str, str]
] = {  # command, what it makes, what that must equal
    "run": (AGAIN, "after.json", ""),
    "label": ([*LABEL, "--out", "labels2"], "labels2/*.tar", "labels/*.tar"),
    "train": ([*TRAIN, "--set", "lr=0.001", "--out", "w2.safetensors"], "w2.safetensors", ""),
}


def _hashes(place: Place, pattern: str) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.folder.glob(pattern))
    ]


def _all(place: Place, commands: Sequence[Sequence[str]], apart: float) -> str:
    forks = []
    for words in commands:
        forks.append((words, place.start(words)))
        time.sleep(apart)
    ends = [(words, place.end(fork, 400)) for words, fork in forks]
    wrong = [
        end.wrong(codes=(0, 1) if words[:2] == ["cache", "rm"] else (0,)) for words, end in ends
    ]
    return " & ".join(filter(None, wrong)) or place.left()


def identical(place: Place, whole: Place, name: str, count: int, apart: float) -> str:
    """The same command so many times."""
    words, made, like = IDENTICAL[name]
    if wrong := _all(place, [words] * count, apart):
        return wrong
    if not (hashes := _hashes(place, made)):
        return f"no {made}"
    if like and hashes != _hashes(place, like):
        return f"{made} is not {like}"
    return (
        "" if name != "run" or place.metrics("after.json") == whole.metrics() else "other metrics"
    )


def different(place: Place, whole: Place, names: Sequence[str], apart: float) -> str:
    """A run and others."""
    if wrong := _all(place, [AGAIN, *(OTHERS[name] for name in names)], apart):
        return wrong
    return "" if place.metrics("after.json") == whole.metrics() else "other metrics"


def points(whole: Place, folder: Path, count: int, number: int) -> Iterator[Point]:
    """Half and half."""
    rng = random.Random(number)
    for index, place in zip(range(count), copies(whole, folder), strict=False):
        apart, many = rng.choice((0.0, 0.1, 1.0)), 2 if index % 4 < 2 else 4
        if index % 2:
            names = rng.sample(sorted(OTHERS), many - 1)
            yield f"run and {', '.join(names)}", different(place, whole, names, apart)
        else:
            name = rng.choice(sorted(IDENTICAL))
            yield f"{many} × {name}, {apart} s apart", identical(place, whole, name, many, apart)
