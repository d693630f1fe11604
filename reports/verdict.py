"""The headline in words, made from the intervals and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.analysis import Analysis
from reports.selection import Column
from reports.tables import number


@dataclass(frozen=True)
class Verdict:
    """What the report says first.

    Attributes:
        tone: ``better``, ``worse``, ``mixed``, ``open`` (nothing can be told) or ``alone``.
        headline: one sentence.
        lines: one sentence for each backbone.
    """

    tone: str
    headline: str
    lines: list[str]


def verdict(analysis: Analysis) -> Verdict:
    """Judge every backbone against the baseline; the headline is about the one with the highest mean relative gain."""
    selection = analysis.selection
    base = selection.baseline
    others = [name for name in selection.backbones if name != base]
    if not others:
        count = sum((base, column) in selection.cells for column in selection.columns)
        return Verdict(
            "alone", f"Only {base} has results ({_count(count, 'task')}): nothing to compare it with yet.", []
        )
    judged = {name: _judge(analysis, name) for name in others}
    common = [c for c in selection.columns if all((name, c) in analysis.task_gains for name in others)]
    leader = max(others, key=lambda name: (_gain(analysis, name, common), judged[name]["win"] - judged[name]["loss"]))
    tone = _tone(analysis, leader, judged[leader])
    lines = [_line(analysis, name, judged[name]) for name in others]
    if tone == "open" and len(others) > 1 and not any(j["win"] or j["loss"] for j in judged.values()):
        compared = max(sum(j.values()) for j in judged.values())
        gain = _gain_words(analysis, leader)
        best = f"; highest is {leader}: {gain}" if gain else ""
        return Verdict(tone, f"No backbone can be told from {base} on any of {_count(compared, 'task')}{best}.", lines)
    return Verdict(tone, _headline(analysis, leader, judged[leader], tone, len(others), common), lines)


def _gain(analysis: Analysis, name: str, common: Sequence[Column]) -> float:
    """Mean relative gain over the tasks that all have (gains over different tasks cannot be compared), else over its own."""
    if common:
        return sum(analysis.task_gains[name, column].value for column in common) / len(common)
    return analysis.gains[name][0].value if name in analysis.gains else float("-inf")


def _judge(analysis: Analysis, name: str) -> dict[str, int]:
    told = [analysis.verdict(name, column) for column in analysis.selection.columns]
    return {word: told.count(word) for word in ("win", "loss", "tie", "unknown")}


def _tone(analysis: Analysis, name: str, count: dict[str, int]) -> str:
    overall = analysis.gains[name][0].verdict() if name in analysis.gains else "unknown"
    if count["win"] and not count["loss"] and overall != "loss":
        return "better"
    if count["loss"] and not count["win"] and overall != "win":
        return "worse"
    if count["win"] and count["loss"]:
        return "better" if overall == "win" and count["win"] > count["loss"] else "mixed"
    return "open"


def _headline(
    analysis: Analysis, name: str, count: dict[str, int], tone: str, others: int, common: Sequence[Column]
) -> str:
    base = analysis.selection.baseline
    compared = sum(count.values())
    gain = _gain_words(analysis, name)
    best = name
    if others > 1 and name in analysis.gains:
        fewer = 0 < len(common) < max(len(columns) for _, columns in analysis.gains.values())
        over = f" on {_count(len(common), 'task')} that all have" if fewer else ""
        best = f"Of {others} backbones, {name} has the highest mean gain{over}: it"
    if not compared:
        return f"{name} and {base} share no task: nothing can be compared."
    of = f"{count['win']} of {_count(compared, 'task')}"
    if tone == "better":
        losses = "loses none" if not count["loss"] else f"loses {count['loss']}"
        words = f"{best} is better than {base} on {of} and {losses}"
    elif tone == "worse":
        words = f"{best} is worse than {base} on {count['loss']} of {_count(compared, 'task')} and better on none"
    elif tone == "mixed":
        words = f"{best} is better than {base} on {of} and worse on {count['loss']}"
    else:
        words = f"{best} cannot be told from {base} on any of {_count(compared, 'task')}"
    seeds = analysis.selection.seeds
    one = len(seeds[name]) == 1 or len(seeds[base]) == 1
    return f"{words}{'; ' + gain if gain else ''}{'; one seed, so without the noise of training' if one else ''}."


def _gain_words(analysis: Analysis, name: str) -> str:
    if name not in analysis.gains:
        return ""
    found, columns = analysis.gains[name]
    text = f"mean relative gain {number(found.value, 1, True)} %"
    if found.known:
        text += f" (95 % interval {number(found.low, 1, True)} to {number(found.high, 1, True)})"
    compared = sum(1 for column in analysis.selection.columns if analysis.verdict(name, column))
    return text + (f" over {len(columns)} of them" if len(columns) < compared else "")


def _line(analysis: Analysis, name: str, count: dict[str, int]) -> str:
    columns = analysis.selection.columns
    named = {
        word: [column.title for column in columns if analysis.verdict(name, column) == word] for word in ("win", "loss")
    }
    parts = []
    if count["win"]:
        parts.append(f"better on {_list(named['win'])}")
    if count["loss"]:
        parts.append(f"worse on {_list(named['loss'])}")
    if count["tie"]:
        parts.append(f"{count['tie']} undecided")
    if count["unknown"]:
        parts.append(f"{count['unknown']} without an interval")
    told = "; ".join(parts) or "no task in common"
    gain = _gain_words(analysis, name)
    return f"{name}: {told}{'; ' + gain if gain else ''}."


def _list(names: Sequence[str], most: int = 6) -> str:
    shown = list(names[:most])
    if len(names) > most:
        return ", ".join(shown) + f" and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
