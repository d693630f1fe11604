"""The headline in words, made from the intervals and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.analysis import Analysis, Gain
from reports.parts.tables import count, number
from reports.selection import TaskProtocol
from reports.stats.gains import by_task, interquartile_mean
from reports.stats.intervals import Estimate


@dataclass(frozen=True)
class Verdict:
    """What the report says first.

    Attributes:
        tone: ``better`` or ``worse`` where the interval of the mean gain leaves out zero, ``mixed``
            where only single tasks are decided, ``open`` (nothing can be told) or ``alone``.
        headline: one sentence.
        lines: one sentence for each backbone.
    """

    tone: str
    headline: str
    lines: list[str]


def verdict(analysis: Analysis) -> Verdict:
    """Judge every backbone against the baseline; the headline is about the one with the highest
    mean gain.

    All of it is judged at ``analysis.level``, whichever backbone is looked at after the numbers are
    known.
    """
    selection = analysis.selection
    base = selection.baseline
    others = [name for name in selection.backbones if name != base]
    if not others:
        tasks = len(
            {column.base for column in selection.columns if (base, column) in selection.cells}
        )
        return Verdict(
            "alone",
            f"Only {base} has results ({count(tasks, 'task')}): nothing to compare it with yet.",
            [],
        )
    judged = {name: list(analysis.tasks(name).values()) for name in others}
    common = [
        c for c in selection.columns if all((name, c) in analysis.task_gains for name in others)
    ]
    leader = max(
        others, key=lambda name: (_gain(analysis, name, common), judged[name].count("win"))
    )
    tones = {name: _tone(analysis, name, judged[name]) for name in others}
    tone = tones[leader]
    lines = [_line(analysis, name) for name in others]
    if set(tones.values()) == {"open"} and len(others) > 1:
        compared = max(map(len, judged.values()))
        best = f"; highest is {leader}: {words}" if (words := _gain_words(analysis, leader)) else ""
        return Verdict(
            tone,
            f"No backbone can be told from {base} on any of {count(compared, 'task')}{best}.",
            lines,
        )
    return Verdict(tone, _headline(analysis, leader, tone, common), lines)


def _gain(analysis: Analysis, name: str, common: Sequence[TaskProtocol]) -> float:
    """Mean gain over the tasks that all have (gains over different tasks cannot be compared), else
    over its own."""
    if common:
        gains = np.array([[analysis.task_gains[name, column].value] for column in common])
        return float(interquartile_mean(by_task([column.base for column in common]) @ gains)[0])
    return analysis.gains[name].typical.value if name in analysis.gains else float("-inf")


def _tone(analysis: Analysis, name: str, told: Sequence[str]) -> str:
    overall = analysis.gains[name].typical.verdict() if name in analysis.gains else "unknown"
    return {"win": "better", "loss": "worse"}.get(
        overall, "mixed" if {"win", "loss"} & set(told) else "open"
    )


def _headline(analysis: Analysis, name: str, tone: str, common: Sequence[TaskProtocol]) -> str:
    base, others = analysis.selection.baseline, len(analysis.selection.backbones) - 1
    told = list(analysis.tasks(name).values())
    gain = _gain_words(analysis, name)
    best = name
    if others > 1 and name in analysis.gains:
        fewer = 0 < len(common) < max(len(each.columns) for each in analysis.gains.values())
        over = f" on {count(len({c.base for c in common}), 'task')} that all have" if fewer else ""
        best = f"Of {others} backbones, {name} has the highest mean gain{over}: it"
    if not told:
        return f"{name} and {base} share no task: nothing can be compared."
    wins, losses, tasks = told.count("win"), told.count("loss"), count(len(told), "task")
    if wins:
        words = (
            f"{best} is better than {base} on {wins} of {tasks} and"
            f" {f'worse on {losses}' if losses else 'loses none'}"
        )
    elif losses:
        words = f"{best} is worse than {base} on {losses} of {tasks} and better on none"
    elif tone in ("better", "worse"):
        words = (
            f"{best} is {tone} than {base} on average, and cannot be told from it on any single one"
            f" of {tasks}"
        )
    else:
        words = f"{best} cannot be told from {base} on any of {tasks}"
    seeds = analysis.selection.seeds
    one = min(len(seeds[name]), len(seeds[base])) == 1
    caveat = "; one seed, so without the noise of training" if one else ""
    return f"{words}{'; ' + gain if gain else ''}{caveat}."


def _gain_words(analysis: Analysis, name: str) -> str:
    """The mean gain with its interval, and what else tells of it."""
    gain = analysis.gains.get(name)
    return "" if gain is None else f"mean gain {gain_words(gain)}{_left(analysis, name, gain)}"


def gain_words(gain: Gain) -> str:
    """Interquartile mean, interval, plain mean, probability of improvement."""
    found = gain.typical
    text = f"{number(found.value, 1, True)} %"
    text += (
        f" ({number(found.low, 1, True)} to {number(found.high, 1, True)})"
        if found.known
        else " (no interval)"
    )
    return (
        f"{text}, plain mean {number(gain.mean.value, 1, True)} %, better in"
        f" {100 * gain.improvement:.0f} % of runs"
    )


def _left(analysis: Analysis, name: str, gain: Gain) -> str:
    tasks, compared = len({column.base for column in gain.columns}), len(analysis.tasks(name))
    return f", over {tasks} of them" if tasks < compared else ""


def _line(analysis: Analysis, name: str) -> str:
    told = analysis.tasks(name)
    words = {
        "win": "better on",
        "loss": "worse on",
        "tie": "undecided",
        "unknown": "without a verdict",
    }
    parts = []
    for key, word in words.items():
        tasks = [task for task, found in told.items() if found == key]
        if tasks:
            parts.append(
                f"{word} {_list(tasks)}" if key in ("win", "loss") else f"{len(tasks)} {word}"
            )
    gain = _gain_words(analysis, name)
    return f"{name}: {'; '.join(parts) or 'no task in common'}{'; ' + gain if gain else ''}."


def power_lines(analysis: Analysis) -> list[str]:
    """The smallest difference that each task's images and seeds tell apart (typical over
    backbones), and what would decide the rest."""
    lines = []
    for column in analysis.selection.columns:
        found = {
            b: analysis.differences.get((b, column, column.main))
            for b in analysis.selection.backbones
        }
        gaps = {name: gap for name, gap in found.items() if gap is not None and gap.known}
        if not gaps:
            continue
        images, seeds = (
            sorted({getattr(gap, name) for gap in gaps.values()}) for name in ("images", "seeds")
        )
        fewest = f"{seeds[0]} to " if len(seeds) > 1 else ""
        have = (
            f"{count(images[0], 'image') if images[0] else 'unknown noise of images'} and"
            f" {fewest}{count(seeds[-1], 'seed')}"
        )
        size = (
            f"{np.median([gap.detectable() for gap in gaps.values()]):.2g}"
            f" {column.metric(column.main).unit}".rstrip()
        )
        line = f"{column.title}: {have} tell {size} apart in 80 % of such comparisons"
        if rest := [
            f"{name} {_would_decide(gap)}"
            for name, gap in gaps.items()
            if gap.value and gap.verdict() == "tie"
        ]:
            line += f"; undecided, and decided if differences stay as they are: {', '.join(rest)}"
        lines.append(line + ".")
    return lines


def _would_decide(gap: Estimate) -> str:
    if gap.seeds == 1:
        return "with more seeds, to know their noise"
    return f"with {seeds} seeds" if (seeds := gap.seeds_to_decide()) else "only with more images"


def _list(names: Sequence[str], most: int = 6) -> str:
    shown = list(names[:most])
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
