"""``python -m tests.faults [SUITE …] --points N --seed N`` (``make faults``): break commands in all
the ways of each suite, and say what was wrong. Exit code 1 when something was."""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path

from tests.faults.place import Place

SUITES = {
    "input": "tests.faults.inputs",
    "store": "tests.faults.store",
    "disk": "tests.faults.disk",
    "together": "tests.faults.together",
    "odd": "tests.faults.odd",
    "kill": "tests.faults.kill",
}


def main() -> int:
    """All points of all suites that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)"
    )
    parser.add_argument("--points", type=int, default=20, help="of each suite (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        whole = Place.make(Path(scratch, "whole"))
        for name in options.suites or SUITES:
            started, failures, number = time.monotonic(), 0, 0
            folder = Path(scratch, name)
            folder.mkdir()
            for what, wrong in importlib.import_module(SUITES[name]).points(
                whole, folder, options.points, options.seed
            ):
                number, failures = number + 1, failures + bool(wrong)
                print(f"{name} {number} · {what} · {wrong or 'as it must be'}", flush=True)
            rows.append((name, number, failures, round(time.monotonic() - started)))
    print(f"\n{'suite':<10}{'points':>8}{'failures':>10}{'seconds':>9}")
    for row in rows:
        print("{:<10}{:>8}{:>10}{:>9}".format(*row))
    return 1 if any(failures for _, _, failures, _ in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
