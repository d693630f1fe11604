"""Real null and real differences: the per-image scores of a stored run, 13 backbones × 5 seeds."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np

import probes.catalog  # noqa: F401  registers the metrics of every kind
from reports.comparison import NumberKey
from reports.leaderboard import build_leaderboard
from reports.statistics import MetricSample
from tests.simulation.world import Rates, judge, make_columns, rates

DATA = Path(os.environ.get("CLIPTEX_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
RUN = DATA / "results" / "mini.zip"
NINE = 9  # backbones with text, clip first, which have all tasks


@functools.cache
def stored() -> dict[str, dict[NumberKey, MetricSample]]:
    """Backbone → its samples."""
    analysis = build_leaderboard([(RUN.stem, RUN.read_bytes())]).analysis
    shared = analysis.selection.columns
    columns = make_columns([column.metric(column.main) for column in shared])
    renamed_columns = dict(zip(shared, columns, strict=True))
    samples: dict[str, dict[NumberKey, MetricSample]] = defaultdict(dict)
    for (name, column, _), sample in sorted(analysis.samples.items(), key=lambda item: item[0][0]):
        samples[name][name, renamed_columns[column], "top1"] = sample
    return samples


def renamed(
    samples: Mapping[NumberKey, MetricSample], name: str, seeds: Sequence[int]
) -> Iterator[tuple[NumberKey, MetricSample]]:
    """Samples of these seeds under a name, as seeds 0, 1 …"""
    for (_, column, metric), sample in samples.items():
        renumbered = replace(sample.with_seeds(seeds), seeds=tuple(range(len(seeds))))
        yield (name, column, metric), renumbered


def run_null(seeds: int, reports: int, rng: np.random.Generator) -> Rates:
    """How often a backbone differs from itself with other seeds; standard errors count backbones,
    whose choices of seeds overlap."""
    stored_samples = stored()
    results: dict[str, list[bool]] = {name: [] for name in stored_samples}
    for number in range(reports):
        name = [*stored_samples][number % len(stored_samples)]
        order = [int(seed) for seed in rng.permutation(5)]
        sides = (("base", order[:seeds]), ("net-1", order[seeds : 2 * seeds]))
        samples = stored_samples[name]
        judged = judge(dict(pair for side in sides for pair in renamed(samples, *side)))
        verdicts = [gap.verdict() for gap in judged.differences.values()]
        verdicts += [gain.mean.verdict() for gain in judged.gains.values()]
        results[name].append(bool({"win", "loss"} & {*verdicts}))
    return rates([{"false": each} for each in results.values()])


def run_differences(groups: Sequence[Sequence[str]], seeds: int) -> Rates:
    """Which share of the differences to the first of a group is decided, over all choices of seeds;
    standard errors count backbones."""
    results: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for names, chosen in product(groups, combinations(range(5), seeds)):
        samples = [pair for name in names for pair in renamed(stored()[name], name, chosen)]
        judged = judge(dict(samples), names[0])
        for (name, *_), gap in judged.differences.items():
            results[name]["decided"].append(gap.verdict() in ("win", "loss"))
        for name, gain in judged.gains.items():
            results[name]["mean decided"].append(gain.mean.verdict() in ("win", "loss"))
    return rates([*results.values()])
