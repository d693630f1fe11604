"""A small runner: alternates A and B, takes medians, writes a table and a JSON to compare over
time."""

from __future__ import annotations

import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cliptex_common.files import write_json, write_text


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: what was compared, ``A against B``.
        a, b: medians (in ``unit``) of ours and of what it is measured against.
        ratio: a / b, or b / a where ``goal`` speaks of a speed-up; ``goal`` says what is wanted,
            e.g. ``>= 0.9``.
        unit: of a and b.
        n: repetitions of each.
    """

    name: str
    a: float
    b: float
    ratio: float
    goal: str
    unit: str
    n: int
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        sign, _, number = self.goal.partition(" ")
        if sign not in ("<=", ">="):
            return None
        return self.ratio <= float(number) if sign == "<=" else self.ratio >= float(number)


MODULES = ("encoding", "feeding", "making", "probing", "reading", "report", "run")
Benchmark = Callable[..., list[Result]]
BENCHES: dict[str, Benchmark] = {}  # those of the modules that were imported
TOYS: dict[str, Benchmark] = {}  # the same, at a size that tests run


def bench(**toy: Any) -> Callable[[Benchmark], Benchmark]:
    """Register a benchmark under its function's name.

    Args:
        toy: arguments with which its code runs in seconds, where the figures say nothing.
    """

    def register(function: Benchmark) -> Benchmark:
        BENCHES[function.__name__], TOYS[function.__name__] = function, partial(function, **toy)
        return function

    return register


def import_all() -> None:
    """Register the benchmarks of all modules."""
    for name in MODULES:
        import_module(f"tests.performance.{name}")


def limited(
    name: str, value: float, limit: float, unit: str, note: str = "", most: float = 1.0
) -> Result:
    """``value`` against ``limit``, at ``most`` so many times of which it may be."""
    return Result(name, value, limit, value / limit, f"<= {most:g}", unit, 1, note)


@contextmanager
def own_home() -> Iterator[Path]:
    """An empty folder, which is ``CLIPTEX_HOME`` in the meantime."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPTEX_HOME", folder)
        yield Path(folder)


def alternate(
    name: str,
    a: Callable[[], float | None],
    b: Callable[[], float | None],
    *,
    goal: str = "",
    unit: str = "s",
    n: int = 5,
    invert: bool = False,
    note: str = "",
    warm: bool = True,
) -> Result:
    """Run A and B in turn, ``n`` times each, after one unmeasured round if ``warm``, and compare
    medians.

    A and B may return their own measurement (in ``unit``); else their wall-clock seconds are taken.
    ``invert`` gives b / a, for speed-ups of times.
    """
    for function in (a, b) if warm else ():
        function()
    values: tuple[list[float], list[float]] = ([], [])
    for _ in range(n):
        for function, into in zip((a, b), values, strict=True):
            started = time.perf_counter()
            own = function()
            into.append(time.perf_counter() - started if own is None else own)
    median_a, median_b = (statistics.median(v) for v in values)
    ratio = median_b / median_a if invert else median_a / median_b
    return Result(name, median_a, median_b, ratio, goal, unit, n, note)


def write(results: list[Result], folder: Path) -> None:
    """``benchmarks.json`` (a list of {name, a, b, ratio, goal, unit, n, note}) and
    ``benchmarks.md``."""
    write_json(folder / "benchmarks.json", [asdict(result) for result in results])
    write_text(folder / "benchmarks.md", markdown(results))


def merged(results: list[Result], folder: Path) -> list[Result]:
    """What ``folder`` has already, with ``results`` in the place of those of the same name, new
    ones at the end."""
    path = folder / "benchmarks.json"
    old = [Result(**line) for line in json.loads(path.read_text())] if path.is_file() else []
    new = {result.name: result for result in results}
    return [new.pop(result.name, result) for result in old] + list(new.values())


def markdown(results: list[Result]) -> str:
    """The table, with the machine it was measured on."""
    from reports.mlflow.environment import environment

    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["packages"].items())
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: A and B alternate in one process; medians and their ratio.",
        "",
        (
            f"Machine: {_cpu()}, {env['cpu_count']} cores, {env['platform']}, Python"
            f" {env['python']}; {versions}."
        ),
        "",
        "| what | A | B | unit | ratio | goal | reached | n | note |",
        "| --- | ---: | ---: | --- | ---: | --- | --- | ---: | --- |",
    ]
    for r in results:
        reached = {True: "yes", False: "**no**", None: "–"}[r.reached]
        lines.append(
            f"| {r.name} | {r.a:.4g} | {r.b:.4g} | {r.unit} | {r.ratio:.3f} | {r.goal or '–'} |"
            f" {reached} | {r.n} | {r.note} |"
        )
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", path.read_text() if path.exists() else "")
    return names[0] if names else platform.processor() or platform.machine()
