"""``python -m tests.faults [SUITE …] --points N --seed N`` (``make faults``): break commands.

Prints what was wrong after each fault; the exit code is 1 where something was.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults import disk, kill, store
from tests.faults.sandbox import Sandbox

SUITES = {"store": store.points, "disk": disk.points, "kill": kill.points}


def main() -> int:
    """Run all points of the named suites."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--points", type=int, default=20, help="of each suite (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no suite {', '.join(unknown)}; choose from {', '.join(SUITES)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        undisturbed = Sandbox.make(Path(scratch, "undisturbed"))
        for name in options.suites or SUITES:
            started, errors = time.monotonic(), []
            folder = Path(scratch, name)
            folder.mkdir()
            for fault, error in SUITES[name](undisturbed, folder, options.points, options.seed):
                errors.append(error)
                print(f"{name} {len(errors)} · {fault} · {error or 'passed'}", flush=True)
            failures = sum(map(bool, errors))
            rows.append((name, len(errors), failures, round(time.monotonic() - started)))
    print(f"\n{'suite':<10}{'points':>8}{'failures':>10}{'seconds':>9}")
    for row in rows:
        print("{:<10}{:>8}{:>10}{:>9}".format(*row))
    return 1 if any(failures for _, _, failures, _ in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
