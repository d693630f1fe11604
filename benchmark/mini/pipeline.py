"""What the mini suites make for themselves: the world, and on it CLIP, the experts, their labels, CLIP-FT and CLIPTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.mini.world import CONFIGS, build_world
from benchmark.progress import Bar
from benchmark.suites import Provision
from reports.tracking import Tracker

if TYPE_CHECKING:
    from benchmark.run import Options

DATASETS = ("mini-seg", "mini-det", "mini-depth", "mini-normal", "mini-class", "mini-retrieval")


def provide(
    options: Options, names: Sequence[str], seeds: Sequence[int], tracker: Tracker | None, bar: Bar
) -> Provision:
    """The world's datasets; nothing is made twice."""
    from probes.registry import DATASETS as KNOWN

    world = build_world(CONFIGS[options.suite], workers=max(1, options.workers), progress=bar)
    data: dict[str, Path] = {name: world / KNOWN[name].folder for name in DATASETS}
    return Provision(data=data)
