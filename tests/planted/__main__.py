"""``python -m tests.planted [WORD …]``: plant faults in a copy of this checkout, one at a time, and
see that the tests of each fail. WORDs choose those whose description has one of them.

The exit code is 1 where a fault was not caught, or can no longer be planted. A fault takes the time
of its tests, half a minute in all of most.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.planted.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "build", "site", "mlruns")
FAILED = 1  # pytest's exit code; above, it could not run them


def caught(fault: Fault, checkout: Path) -> str:
    """Plant a fault and run its tests; returns what is wrong, '' where they fail as they must."""
    path = checkout / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        return f"{fault.file} has its text {text.count(fault.old)} times; name it anew"
    path.write_text(text.replace(fault.old, fault.new))
    options = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *fault.tests],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        path.write_text(text)
    if run.returncode == FAILED:
        return ""
    return "not caught" if not run.returncode else run.stdout[-2000:] + run.stderr[-2000:]


def main(words: list[str]) -> int:
    """Plant the chosen faults."""
    chosen = [each for each in FAULTS if not words or any(word in each.about for word in words)]
    if not chosen:
        print(f"no fault has one of {', '.join(words)}", file=sys.stderr)
        return 2
    errors = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        checkout = Path(folder, "checkout")
        shutil.copytree(ROOT, checkout, ignore=IGNORED)
        for fault in chosen:
            error = caught(fault, checkout)
            errors += bool(error)
            print(f"{fault.about} · {error or 'caught'}", flush=True)
    return 1 if errors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
