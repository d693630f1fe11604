"""Every backbone against every other one, each as the baseline in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reports.analysis import Analysis, conclude
from reports.stats.intervals import LEVEL

MOST = 12  # backbones: of more, the comparisons are too many to decide any


@dataclass(frozen=True)
class Pair:
    """What a backbone gains over another one.

    Attributes:
        gain, low, high: interquartile mean over tasks in percent of the baseline; NaN without one.
        verdict: of the gain: ``win``, ``loss``, ``tie`` or ``unknown``; '' without one.
        won, lost, undecided: tasks.
    """

    backbone: str
    baseline: str
    gain: float
    low: float
    high: float
    verdict: str
    won: int
    lost: int
    undecided: int


def all_pairs(analysis: Analysis) -> dict[tuple[str, str], Pair]:
    """(backbone, baseline) → what is known of the pair; none with fewer than three backbones or
    more than ``MOST``.

    All pairs hold together: each of B baselines has its own family of comparisons, judged at 5 % /
    B (Bonferroni).
    """
    names = analysis.selection.backbones
    if not 2 < len(names) <= MOST:
        return {}
    main = {key: sample for key, sample in analysis.samples.items() if key[2] == key[1].main}
    found = {}
    for base in names:
        turned = Analysis(replace(analysis.selection, baseline=base), main)
        conclude(turned, LEVEL / len(names))
        for name in names:
            told = list(turned.tasks(name).values())
            if name != base and told:
                gain = turned.gains[name].typical if name in turned.gains else None
                ends = (
                    (gain.value, gain.low, gain.high, gain.verdict())
                    if gain
                    else (float("nan"),) * 3 + ("",)
                )
                won, lost = told.count("win"), told.count("loss")
                found[name, base] = Pair(name, base, *ends, won, lost, len(told) - won - lost)
    return found
