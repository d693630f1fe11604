"""The headline in words, made from the intervals and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.analysis import Analysis
from reports.judgement import Gain
from reports.parts.tables import count, decimal, with_interval
from reports.selection import TaskColumn
from reports.stats.gains import task_weights
from reports.stats.intervals import Estimate, estimate
from reports.stats.resampling import MetricSample, difference, weighted_sum


@dataclass(frozen=True)
class Summary:
    """The first statement of a report.

    Attributes:
        tone: ``better`` or ``worse`` where the mean gain is decided, ``mixed`` where only single
            tasks are, ``open`` (nothing is) or ``alone``.
        headline: one sentence.
        lines: one sentence for each backbone.
    """

    tone: str
    headline: str
    lines: list[str]


def summarise(analysis: Analysis) -> Summary:
    """Judge every backbone against the baseline.

    The headline is about the backbone with the highest mean gain. All verdicts hold together, so it
    holds though its backbone is selected by the numbers.
    """
    selection = analysis.selection
    base = selection.baseline
    compared = [name for name in selection.backbones if name != base]
    if not compared:
        columns = [column for column in selection.columns if (base, column) in selection.cells]
        tasks = count(len({column.base for column in columns}), "task")
        return Summary(
            "alone", f"Only {base} has results ({tasks}): there is nothing to compare it with.", []
        )
    judged = {name: Counter(analysis.tasks(name).values()) for name in compared}
    common = [
        c for c in selection.columns if all((name, c) in analysis.task_gains for name in compared)
    ]
    leader = max(compared, key=lambda name: (_gain(analysis, name, common), judged[name]["win"]))
    tones = {name: _tone(analysis, name, judged[name]) for name in compared}
    lines = [_line(analysis, name) for name in compared]
    if set(tones.values()) == {"open"} and len(compared) > 1:
        tasks = count(max(each.total() for each in judged.values()), "task")
        gain = _gain_words(analysis, leader)
        best = f"; {leader} is highest: {gain}" if gain else ""
        has_verdicts = any(each.total() > each["unknown"] for each in judged.values())
        words = "differs detectably from" if has_verdicts else "can be judged against"
        sentence = f"no backbone {words} {base} on any of {tasks}{best}"
        headline = about_weights(analysis, leader, sentence)
        return Summary("open", headline[0].upper() + headline[1:], lines)
    headline = _headline(analysis, leader, tones[leader], common)
    return Summary(tones[leader], headline, lines)


def _gain(analysis: Analysis, name: str, common: Sequence[TaskColumn]) -> float:
    """Mean gain over the tasks that all have, else over the backbone's own.

    Gains over different tasks cannot be compared.
    """
    if common:
        gains = np.array([analysis.task_gains[name, column].value for column in common])
        return float(task_weights([column.base for column in common]) @ gains)
    return analysis.gains[name].mean.value if name in analysis.gains else float("-inf")


def _tone(analysis: Analysis, name: str, verdicts: Counter[str]) -> str:
    overall = analysis.gains[name].mean.verdict() if name in analysis.gains else "unknown"
    decided = verdicts["win"] or verdicts["loss"]
    return {"win": "better", "loss": "worse"}.get(overall, "mixed" if decided else "open")


def _headline(analysis: Analysis, name: str, tone: str, common: Sequence[TaskColumn]) -> str:
    base = analysis.selection.baseline
    verdicts = Counter(analysis.tasks(name).values())
    if not verdicts:
        return f"{name} and {base} share no task: nothing can be compared."
    wins, losses, tasks = verdicts["win"], verdicts["loss"], count(verdicts.total(), "task")
    if wins or losses:
        first = f"better than {base} on {wins} of {tasks}, worse on {losses or 'none'}"
        if not wins:
            first = f"worse than {base} on {losses} of {tasks}, better on none"
        words = f"is {first}"
        if verdicts["tie"]:
            words += f", undecided on {verdicts['tie']}"
    elif tone in ("better", "worse"):
        words = f"is {tone} than {base} on average, but on none of {tasks}"
    elif verdicts["tie"]:
        words = f"does not differ detectably from {base} on any of {tasks}"
    else:
        words = f"cannot be judged against {base} on any of {tasks}"
    if 0 < verdicts["unknown"] < verdicts.total():
        words += f", without a verdict on {verdicts['unknown']}"
    gain = _gain_words(analysis, name)
    compared = len(analysis.selection.backbones) - 1
    if compared > 1 and gain:
        fewer = 0 < len(common) < max(len(gain.columns) for gain in analysis.gains.values())
        shared_tasks = count(len({column.base for column in common}), "task")
        scope = f" on the {shared_tasks} that all have" if fewer else ""
        gain += f", the highest of {compared} backbones{scope}"
    sentence = f"{name} {words}{'; ' + gain if gain else ''}"
    return about_weights(analysis, name, sentence)


def about_weights(analysis: Analysis, name: str, sentence: str) -> str:
    """A sentence that says what its seeds allow to say."""
    selection = analysis.selection
    if not analysis.of_these_weights(name):
        return f"{sentence}."
    is_trained = any(
        run.train_run
        for (backbone, _), run in selection.parents.items()
        if backbone in (name, selection.baseline)
    )
    advice = (
        "train more seeds to compare methods"
        if is_trained
        else "the noise of training the probe is missing, run more seeds"
    )
    return f"For these weights, on these images: {sentence}; {advice}."


def _gain_words(analysis: Analysis, name: str) -> str:
    gain = analysis.gains.get(name)
    if gain is None:
        return ""
    tasks = len({column.base for column in gain.columns})
    fewer = f", over {tasks} of them" if tasks < len(analysis.tasks(name)) else ""
    return f"mean gain {gain_words(gain)}{fewer}"


def gain_words(gain: Gain) -> str:
    """The mean with its interval, and whether it is decided."""
    mean = gain.mean
    ends = f"95 % interval {decimal(mean.low, 1, True)} to {decimal(mean.high, 1, True)}"
    shown = ends if mean.has_interval else "no interval"
    undecided = ", undecided" if mean.verdict() == "tie" else ""
    return f"{decimal(mean.value, 1, True)} % ({shown}{undecided})"


def _line(analysis: Analysis, name: str) -> str:
    verdicts = analysis.tasks(name)
    parts = []
    for verdict, words in (("win", "better on"), ("loss", "worse on")):
        tasks = [task for task, each in verdicts.items() if each == verdict]
        if tasks:
            parts.append(f"{words} {_enumerate(tasks)}")
    for verdict, words in (("tie", "undecided"), ("unknown", "without a verdict")):
        if number_of_tasks := list(verdicts.values()).count(verdict):
            parts.append(f"{number_of_tasks} {words}")
    parts = parts or ["no task in common"]
    if gain := _gain_words(analysis, name):
        parts.append(gain)
    return f"{name}: {'; '.join(parts)}."


def power_lines(analysis: Analysis) -> list[str]:
    """The smallest detectable difference of each task, and what would decide the others."""
    lines = []
    for column in analysis.selection.columns:
        gaps = {
            name: gap
            for name in analysis.selection.backbones
            if (gap := analysis.differences.get((name, column, column.main))) and gap.has_interval
        }
        if not gaps:
            continue
        images = min(gap.images for gap in gaps.values())
        seeds = sorted({gap.seeds for gap in gaps.values()})
        fewest = f"{seeds[0]} to " if len(seeds) > 1 else ""
        sizes = [gap.detectable() for gap in gaps.values() if gap.is_judged]
        unit = column.metric(column.main).unit
        detected = f"{np.median(sizes):.2g} {unit}".rstrip() if sizes else "nothing"
        line = (
            f"{column.title}: {count(images, 'image') if images else 'an unknown number of images'}"
            f" and {fewest}{count(seeds[-1], 'seed')} detect {detected}"
            f"{' in 80 % of such comparisons' * bool(sizes)}"
        )
        undecided = [
            f"{name} {_remedy(gap)}"
            for name, gap in gaps.items()
            if gap.value and gap.verdict() in ("tie", "unknown")
        ]
        if undecided:
            line += (
                "; not decided, but decided if differences stay as they are:"
                f" {', '.join(undecided)}"
            )
        lines.append(line + ".")
    return lines


def _remedy(gap: Estimate) -> str:
    if gap.seeds == 1 and gap.is_judged:
        return "with more seeds, to estimate their noise"
    seeds = gap.seeds_to_decide()
    return f"with {seeds} seeds" if seeds else "only with more images"


def _enumerate(names: Sequence[str], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def average_lines(analysis: Analysis) -> list[str]:
    """The average of each backbone whose suite has one, and its difference to the baseline."""
    selection, lines = analysis.selection, []
    base = selection.baseline
    for name in selection.backbones:
        complete = [
            run
            for (backbone, _), run in selection.parents.items()
            if backbone == name and run.average
        ]
        if not complete:
            continue
        tasks = {task.rpartition("/")[0] for task in complete[0].main_metrics}
        samples = {
            c: analysis.samples[name, c, c.main]
            for c in selection.columns
            if c.task in tasks and (name, c, c.main) in analysis.samples
        }
        if len(samples) != len(tasks):
            continue  # several protocols of a task, or some tasks were not selected
        average = _mean([*samples.values()])
        text = f"{complete[0].average}: {name} {with_interval(average, 2)}"
        if name != base and all((base, c, c.main) in analysis.samples for c in samples):
            gap = _mean(
                [difference(own, analysis.samples[base, c, c.main]) for c, own in samples.items()]
            )
            text += f"; {with_interval(gap, 2, True)} over {base}"
        lines.append(text)
    return lines


def _mean(samples: Sequence[MetricSample]) -> Estimate:
    """The mean over samples, with the noise of the seeds that all have."""
    seeds = sorted(set.intersection(*(set(sample.seeds) for sample in samples)))
    value = float(np.mean([sample.values.mean() for sample in samples]))
    if not seeds:
        return Estimate(value)
    mean = estimate(weighted_sum([s.of(seeds) for s in samples], [1 / len(samples)] * len(samples)))
    return replace(mean, value=value)
