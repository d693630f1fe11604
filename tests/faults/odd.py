"""``odd``: odd surroundings of a run: locale, umask, strange and long paths, the clock set back, no
HOME, closed streams …"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.place import RANDOM, REMOVED, Ended, Place, Point

AGAIN = [*RANDOM, "--experiment", "again", "--json", "after.json"]
PATHS = {
    "blanks and markup": "a b [/b] {x,y} 'q' \"d\"",
    "an address's signs": "50&y;z=1+2@h:9",
    "other alphabets": "é𝔘 ünï 日本 \u202e",
    "a newline": "a\nb",
    "a pattern": "[a-z]*?!",
    "long": "/".join("x" * 60 for _ in range(5)),  # SQLite opens none of more than 512 letters
}
VARIABLES: dict[str, dict[str, str | None]] = {
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
    "Turkish": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "a terminal of one column": {"COLUMNS": "1", "LINES": "1", "TERM": "dumb"},
    "no HOME": {"HOME": REMOVED, "XDG_CACHE_HOME": REMOVED},
    "HOME that is not there": {"HOME": "/nonexistent/home"},
    "no TMPDIR": {"TMPDIR": "/nonexistent/tmp"},
    "a TMPDIR of more letters than a socket takes": {"TMPDIR": "tmp"},
    "no PATH": {"PATH": REMOVED},
    "a far time zone": {"TZ": "Pacific/Kiritimati"},
    "python -OO": {"PYTHONOPTIMIZE": "2"},
    "warnings as errors of our own": {"PYTHONWARNINGS": "error::UserWarning:benchmark"},
}
LIMITS: dict[str, dict[str, float]] = {
    "nobody may read what is made": {"umask": 0o777},
    "all may": {"umask": 0},
    "the clock set back a day": {"clock": -86400.0},
    "the clock set on a year": {"clock": 3.2e7},
    "few open files": {"open_files": 256},
}


def of_path(whole: Place, folder: Path, name: str) -> tuple[Place, Ended]:
    place = whole.copy(folder / "path" / PATHS[name])
    return place, place.run(AGAIN)


def of_variables(whole: Place, folder: Path, name: str) -> tuple[Place, Ended]:
    place = whole.copy(folder / "variables", **VARIABLES[name])
    if VARIABLES[name].get("TMPDIR") == "tmp":
        long = place.folder / "tmp" / ("x" * 120)
        long.mkdir()
        place.variables["TMPDIR"] = str(long)
        return place, place.run_fresh(
            [word if word != "0" else "1" for word in AGAIN]
        )  # a loading process
    return place, place.run_fresh(AGAIN)


def of_limits(whole: Place, folder: Path, name: str) -> tuple[Place, Ended]:
    place = whole.copy(folder / "limits")
    return place, place.run(AGAIN, **LIMITS[name])


def of_streams(whole: Place, folder: Path, name: str) -> tuple[Place, Ended]:
    place = whole.copy(folder / "streams")
    command = {
        "no standard input": "exec 0<&-; {}",
        "no standard output": "exec 1>&-; {}",
        "no reader": "{} | true",
    }[name]
    words = " ".join(f"'{word}'" for word in AGAIN)
    script = "set -o pipefail; " + command.format(f'"$0" -m benchmark {words}')
    import sys

    variables = {k: v for k, v in place.variables.items() if v is not None}
    ended = subprocess.run(
        ["bash", "-c", script, sys.executable],
        cwd=place.folder,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        timeout=400,
    )
    return place, Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def cases() -> list[tuple[Callable[[Place, Path, str], tuple[Place, Ended]], str]]:
    """All surroundings."""
    return [
        *((of_limits, name) for name in LIMITS),
        *((of_path, name) for name in PATHS),
        *((of_variables, name) for name in VARIABLES),
        *((of_streams, name) for name in ("no standard input", "no standard output", "no reader")),
    ]


def points(whole: Place, folder: Path, count: int, number: int) -> Iterator[Point]:
    """Each once, in the seed's order; a run gives the undisturbed metrics whatever surrounds it."""
    rng = random.Random(number)
    chosen = cases()
    rng.shuffle(chosen)
    for index, (surround, name) in enumerate(chosen[:count]):
        yield name, point(surround, whole, folder / str(index), name)


def point(
    surround: Callable[[Place, Path, str], tuple[Place, Ended]],
    whole: Place,
    folder: Path,
    name: str,
) -> str:
    """One of ``cases``."""
    place, ended = surround(whole, folder, name)
    # a reader that went is no failure, and no reason for it to go on
    codes = {"no reader": (0, 141), "python -OO": (2,)}.get(name, (0,))
    if wrong := ended.wrong(codes=codes) or place.left():
        return wrong
    if not (place.folder / "after.json").exists():
        return place.differs(whole)
    return "" if place.metrics("after.json") == whole.metrics() else "other metrics"
