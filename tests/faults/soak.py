"""``python -m tests.faults.soak --cells N --trials N``: many cells of one process and many trials of a sweep; memory, open
files and temporary files must stay flat. Prints them along the way; exit code 1 when one grows.

The cells are runs of one toy task under so many seeds; the trials are of a sweep whose evaluation is a formula, so that they
measure the driver, Optuna and MLflow."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmark.__main__ import main as benchmark
from tests.probes.datasets.make import make_imagefolder

RUN = ["run", "--suite", "own", "--task", "imagefolder/linear", "--data-root", ".", "--backbone", "random", "--alone"]
RUN += ["--device", "cpu", "--jobs", "1", "--num-workers", "0", "--set", "size=32", "--set", "epochs=1"]
MOST = {"MiB": 60.0, "open files": 8, "temporary files": 8}  # by which the second half may grow
Figures = dict[str, float]


def figures(folder: Path) -> Figures:
    """Of this process now."""
    process = psutil.Process()
    return {
        "MiB": process.memory_info().rss / 2**20,
        "open files": process.num_fds(),
        "temporary files": sum(path.is_file() for path in (folder / "tmp").rglob("*")),
        "threads": process.num_threads(),
    }


def cells(first: int, count: int) -> None:
    """Cells of one command."""
    assert benchmark([*RUN, "--seed", str(first), "--seeds", str(count)]) == 0


def trials(first: int, count: int) -> None:
    """Trials of one sweep."""
    from reports.mlflow.run import Tracker
    from tests.sweeps import cheap

    sweep = cheap.start("sqlite:///sweeps.db", f"soak{first}", search="tpe", trials=count)
    cheap.finish(sweep, Tracker("soak", "sqlite:///mlflow.db"))


def soak(name: str, work: Callable[[int, int], None], total: int, folder: Path, parts: int = 10) -> list[str]:
    """In so many parts; what grew after the first half, when all that is imported and kept once is there."""
    seen: list[Figures] = []
    each = max(1, total // parts)
    for part in range(parts):
        work(part * each, each)
        seen.append(figures(folder))
        print(f"{name} {(part + 1) * each:>5}: " + ", ".join(f"{v:.0f} {k}" for k, v in seen[-1].items()), flush=True)
    half, last = seen[len(seen) // 2 - 1], seen[-1]
    return [f"{name}: {k} {half[k]:.0f} → {last[k]:.0f}" for k, most in MOST.items() if last[k] - half[k] > most]


def main() -> int:
    """Both, in a folder of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(scratch)
        (folder / "tmp").mkdir()
        os.chdir(folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ |= {"CLIPTEX_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        tempfile.tempdir = None
        make_imagefolder(folder / "imagefolder", n_train=8, n_val=4)
        grown = soak("cells", cells, options.cells, folder) + soak("trials", trials, options.trials, folder)
        os.chdir("/")
    print("\n".join(grown) or "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
