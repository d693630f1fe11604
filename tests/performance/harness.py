"""A small runner: alternates A and B, takes medians, writes a table and a JSON to compare over
time."""

from __future__ import annotations

import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cliptex_common.files import write_json, write_text

PEERS_TEXT = (
    "Rows with *ours against theirs* are what a user would run instead: one backbone on the same"
    " image files by this suite (A) and by the code of others (B), each in a process of its own, in"
    " turn. Seconds are from image files to the score, with our store of features empty each time;"
    " memory is the most that a process took, imports and backbone included. clip-benchmark"
    " (zero-shot, linear probe) is a package that `.[dev]` brings. CAPI (k-NN and logistic"
    " regression of patches), Open-Hummingbird, DINOv2 (linear classification), probe3d (depth) and"
    " DINOv3 (linear segmentation) are measured where a folder has their checkouts, named as the"
    " protocols and at the commits that `list protocols` names; and VisBench 0.27.0 (linear"
    " classification, also with features stored, retrieval and linear segmentation), an unpacked"
    " wheel in the folder `visbench`:",
    "",
    "```text",
    "git clone https://github.com/facebookresearch/capi CHECKOUTS/capi",
    "git -C CHECKOUTS/capi checkout 98b4fa1",
    "pip install --no-deps --target CHECKOUTS/visbench visbench==0.27.0",
    "make bench SOURCES=CHECKOUTS",
    "python -m tests.performance capi --sources CHECKOUTS    # these rows alone, not written",
    "```",
)


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


class Unavailable(Exception):
    """A benchmark lacks something; the message says what."""


PEERS = ("clip_benchmark", "capi", "hummingbird", "dinov2", "probe3d", "dinov3", "visbench")
MODULES = (
    *("encoding", "feeding", "making", "probing", "reading", "report", "run"),
    *(f"peers.{name}" for name in PEERS),
)
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


def write(results: list[Result], folder: Path, skipped: Sequence[str] = ()) -> None:
    """``benchmarks.json`` (a list of {name, a, b, ratio, goal, unit, n, note}) and
    ``benchmarks.md``.

    Args:
        skipped: benchmarks that could not run, with the reason.
    """
    write_json(folder / "benchmarks.json", [asdict(result) for result in results])
    write_text(folder / "benchmarks.md", markdown(results, skipped))


def merged(results: list[Result], folder: Path) -> list[Result]:
    """What ``folder`` has already, with ``results`` in the place of those of the same name, new
    ones at the end."""
    path = folder / "benchmarks.json"
    old = [Result(**line) for line in json.loads(path.read_text())] if path.is_file() else []
    new = {result.name: result for result in results}
    return [new.pop(result.name, result) for result in old] + list(new.values())


# beginning of a row's name → why it may miss its goal
REASONS = {
    "a training without a model": (
        "the loop adds a tenth to making batches, which take less than a hundredth of the step of a"
        " ViT-B/16 on the same images"
    ),
    "linear segmentation probe": (
        "ours encodes each image once and trains the head on that; how many times as fast it is"
        " follows the machine (5.1 to 7.6 on three of them)"
    ),
    "CPU of a training sample": (
        "milliseconds follow the machine's speed: 5.8 to 9.1 within an hour on this one, 5.8 on the"
        " one before"
    ),
    "a report over": (
        "half of its processor time is the average precision of 200 resamples of 50 runs with half"
        " a million detections each, the rest the comparison of ten backbones on 40 tasks"
    ),
    "tracking": (
        "a task is written in 0.1 seconds, however long it is; this one takes seven to ten"
    ),
    "Open-Hummingbird's": (
        "ours also draws a gallery, computes diagnostics of the features and stores them, about a"
        " second in all"
    ),
    "VisBench's linear classification, features stored": (
        "both take less than a second; ours checks images and store, and chooses a rate"
    ),
    "VisBench's linear segmentation (32 + 16 images): ours against theirs, peak memory": (
        "MMSegmentation, MMEngine and MMCV, in whose configs the heads are, take 167 MB to import"
    ),
}


def markdown(results: list[Result], skipped: Sequence[str] = ()) -> str:
    """The table, with the machine it was measured on."""
    from reports.provenance import environment

    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["packages"].items())
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: A and B alternate; medians and their ratio.",
        "",
        *PEERS_TEXT,
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
    missed = [r.name for r in results if r.reached is False]
    reasons = [
        f"* {start} …: {reason}."
        for start, reason in REASONS.items()
        if any(name.startswith(start) for name in missed)
    ]
    lines += ["", "Why a goal is missed:", "", *reasons] if reasons else []
    lines += ["", *(f"* Not measured: {each}" for each in skipped)] if skipped else []
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", path.read_text() if path.exists() else "")
    return names[0] if names else platform.processor() or platform.machine()
