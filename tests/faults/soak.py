"""``python -m tests.faults.soak --cells N --trials N``: many cells of one process and many trials
of a sweep; memory, open files and temporary files must stay flat. Prints them along the way; exit
code 1 when one grows.

The cells are runs of one toy task under so many seeds; the trials are of a sweep whose evaluation
is a formula, so that they measure the driver, Optuna and MLflow."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmark.__main__ import main as benchmark
from tests.probes.datasets.make import make_imagefolder

RUN = [
    "run",
    "--suite",
    "own",
    "--task",
    "imagefolder/linear",
    "--data-root",
    ".",
    "--backbone",
    "random",
    "--only",
]
RUN += [
    "--device",
    "cpu",
    "--jobs",
    "1",
    "--num-workers",
    "0",
    "--set",
    "size=32",
    "--set",
    "epochs=1",
]
MOST = {"MiB": 60.0, "open files": 8, "temporary files": 8}  # by which the second half may grow
PARTS = 10
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


class Watch:
    """Figures along the way, by what they are of."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.seen = name, folder, list[Figures]()

    def see(self, done: int) -> None:
        """After so many."""
        self.seen.append(figures(self.folder))
        print(
            f"{self.name} {done:>5}: "
            + ", ".join(f"{v:.0f} {k}" for k, v in self.seen[-1].items()),
            flush=True,
        )

    def grown(self) -> list[str]:
        """What grew after the first half, when all that is imported and kept once is there."""
        half, last = self.seen[len(self.seen) // 2 - 1], self.seen[-1]
        return [
            f"{self.name}: {k} {half[k]:.0f} → {last[k]:.0f}"
            for k, most in MOST.items()
            if last[k] - half[k] > most
        ]


def cells(total: int, watch: Watch) -> None:
    """In ten commands of this process."""
    each = max(1, total // PARTS)
    for first in range(0, each * PARTS, each):
        assert benchmark([*RUN, "--seed", str(first), "--seeds", str(each)]) == 0
        watch.see(first + each)


def trials(total: int, watch: Watch) -> None:
    """Of one sweep."""
    from reports.mlflow.run import Tracker
    from tests.sweeps import cheap

    done = 0

    async def evaluate(params: Mapping[str, Any], run: str, pruning: Any) -> Any:
        nonlocal done
        done += 1
        if done % max(1, total // PARTS) == 0:
            watch.see(done)
        return await cheap.evaluate(params, run, pruning)

    cheap.finish(
        cheap.start("sqlite:///sweeps.db", search="tpe", trials=total),
        Tracker("soak", "sqlite:///mlflow.db"),
        evaluate,
    )


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
        grown: list[str] = []
        for work, total in ((cells, options.cells), (trials, options.trials)):
            watch = Watch(work.__name__, folder)
            work(total, watch)
            grown += watch.grown()
        os.chdir("/")
    print("\n".join(grown) or "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
