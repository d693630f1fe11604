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
    """How often a backbone differs from itself with other seeds."""
    backbones = [*stored().values()]
    results = []
    for _ in range(reports):
        samples = backbones[rng.integers(len(backbones))]
        order = [int(seed) for seed in rng.permutation(5)]
        sides = (("base", order[:seeds]), ("net-1", order[seeds : 2 * seeds]))
        judged = judge(dict(pair for side in sides for pair in renamed(samples, *side)))
        verdicts = [gap.verdict() for gap in judged.differences.values()]
        verdicts += [gain.mean.verdict() for gain in judged.gains.values()]
        results.append({"false": [bool({"win", "loss"} & {*verdicts})]})
    return rates(results)


def run_differences(groups: Sequence[Sequence[str]], seeds: int) -> Rates:
    """Which share of the differences to the first of a group is decided; each choice of seeds."""
    results = []
    for names, chosen in product(groups, combinations(range(5), seeds)):
        samples = [pair for name in names for pair in renamed(stored()[name], name, chosen)]
        judged = judge(dict(samples), names[0])
        cases = [gap.verdict() in ("win", "loss") for gap in judged.differences.values()]
        means = [gain.mean.verdict() in ("win", "loss") for gain in judged.gains.values()]
        results.append({"decided": cases, "mean decided": means})
    return rates(results)
