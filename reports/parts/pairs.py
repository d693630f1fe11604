"""Every backbone against every other one, each as the baseline once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from reports.analysis import Analysis, conclude
from reports.stats.intervals import LEVEL, Estimate

MOST = 12  # backbones: with more, hardly any comparison is decided


@dataclass(frozen=True)
class Pair:
    """The gain of a backbone over another one.

    Attributes:
        gain, low, high: interquartile mean over tasks in percent of the baseline; NaN if unknown.
        verdict: of the gain: ``win``, ``loss``, ``tie`` or ``unknown``; '' without one.
        wins, losses, undecided: number of tasks.
    """

    backbone: str
    baseline: str
    gain: float
    low: float
    high: float
    verdict: str
    wins: int
    losses: int
    undecided: int


def all_pairs(analysis: Analysis) -> dict[tuple[str, str], Pair]:
    """(backbone, baseline) → their comparison; empty for fewer than three or over ``MOST``.

    All pairs hold jointly: each of B baselines has its own family of comparisons, judged at 5 % / B
    (Bonferroni).
    """
    names = analysis.selection.backbones
    if not 2 < len(names) <= MOST:
        return {}
    main = {key: sample for key, sample in analysis.samples.items() if key[2] == key[1].main}
    pairs = {}
    for base in names:
        rebased = Analysis(replace(analysis.selection, baseline=base), main)
        conclude(rebased, LEVEL / len(names))
        for name in names:
            verdicts = Counter(rebased.tasks(name).values())
            if name == base or not verdicts:
                continue
            gain = rebased.gains[name].typical if name in rebased.gains else Estimate(float("nan"))
            wins, losses = verdicts["win"], verdicts["loss"]
            pairs[name, base] = Pair(
                name,
                base,
                gain.value,
                gain.low,
                gain.high,
                gain.verdict() if name in rebased.gains else "",
                wins,
                losses,
                verdicts.total() - wins - losses,
            )
    return pairs
