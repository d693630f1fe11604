"""The words of a report: its headline, made from the intervals and from nothing else, and what a
reader must know before believing the numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, permutations

import numpy as np
import pandas as pd

from reports.comparison import Analysis, Gain, shown_metrics
from reports.per_image import needs_plugin
from reports.power import typical
from reports.records import ParentRun, shortened_notes
from reports.selection import TaskColumn
from reports.statistics import (
    LEVEL,
    MIN_COMPARISONS,
    MIN_IMAGES,
    MIN_PAIRS,
    RESAMPLES,
    Estimate,
    MetricSample,
    difference,
    estimate,
    log_bias,
    spearman,
    student,
    task_weights,
    weighted_sum,
)
from reports.store import missing_artifacts
from reports.tables import count, decimal, with_interval

SMALL = 100  # images: tasks with fewer are named
AGREEING = 0.8  # Spearman's ρ of two metrics over backbones


def caveats(analysis: Analysis) -> list[str]:
    """One or two sentences each."""
    return [
        *_seeds(analysis),
        *_sources_of_noise(analysis),
        *_data(analysis),
        *_noise(analysis),
        *_comparisons(analysis),
        *_disagreements(analysis),
        *_origins(analysis),
    ]


def _seeds(analysis: Analysis) -> Iterator[str]:
    seeds = analysis.selection.seeds
    counts = [len(each) for each in seeds.values()]
    if max(counts) == 1:
        yield (
            "One seed: verdicts and intervals are of these weights, on images like these; the next"
            " training may differ. Run with --seeds 3 or more."
        )
    elif max(counts) == 2:
        yield "Two seeds: only what is obvious is decided. Run with --seeds 3 or more."
    elif len({tuple(each) for each in seeds.values()}) > 1:
        listed = ", ".join(f"{name} {', '.join(map(str, each))}" for name, each in seeds.items())
        unknown = (
            " The noise of training is unknown for a backbone with one seed."
            if min(counts) == 1
            else ""
        )
        yield (
            f"Seeds differ ({listed}). A difference is taken over the seeds that both sides have;"
            f" where these are fewer than {MIN_PAIRS}, over all seeds of both. So it may not equal"
            f" the difference of the two printed numbers.{unknown}"
        )


def _sources_of_noise(analysis: Analysis) -> Iterator[str]:
    """What the seeds of each backbone vary: the probe alone, or weights and probe, and of these the
    probe's part, as large as that of the backbones whose weights stay."""
    selection = analysis.selection
    weights: dict[str, set[str]] = defaultdict(set)
    for (name, _), cells in selection.cells.items():
        weights[name] |= {cell.weights for cell in cells}
    several = [name for name in selection.backbones if len(selection.seeds[name]) > 1]
    fixed = [name for name in several if len(weights[name]) == 1]
    trained = [name for name in several if name not in fixed]
    if not fixed:
        return
    yield (
        f"Seeds of {_enumerate(fixed)} are of the probe alone: the weights stay, and the noise of"
        " training them is in no interval."
    )
    logs = []
    for column in selection.columns:
        keys = [[(name, column, column.main) for name in names] for names in (fixed, trained)]
        noise = [
            [
                (s.values.var(ddof=1), s.count - 1)
                for k in each
                if (s := analysis.samples.get(k)) and s.count > 1 and s.varies
            ]
            for each in keys
        ]
        if all(noise):
            of_probe, of_both = (
                np.log(np.average(variances, weights=df)) - log_bias(sum(df))
                for variances, df in (np.transpose(each) for each in noise)
            )
            logs.append(of_probe - of_both)
    if len(logs) >= MIN_COMPARISONS:
        reach = student(len(logs) - 1, LEVEL) * np.std(logs, ddof=1) / np.sqrt(len(logs))
        ends = np.mean(logs) + np.array([-reach, 0, reach])
        low, share, high = np.minimum(100 * np.exp(ends), 100)
        yield (
            f"Seeds of {_enumerate(trained)} are of weights and probe: about {share:.0f} % of their"
            f" variance ({low:.0f} to {high:.0f}) is the probe's, if it varies as with fixed"
            " weights, the rest that of training."
        )


def _data(analysis: Analysis) -> Iterator[str]:
    cells = list(chain.from_iterable(analysis.selection.cells.values()))
    yield from shortened_notes(cells)
    presets = {(cell.task, cell.preset, cell.differs) for cell in cells}
    for task, preset, differs in sorted(presets):
        if preset not in ("", "own"):
            yield (
                f"{task} {differs or f'has the settings of {preset}'} (see `list protocols` for its"
                " source)."
            )
    few = sorted(
        (images, column.title) for column, images in analysis.images.items() if 0 < images < SMALL
    )
    if few:
        images, title = few[0]
        rest = (
            f", {count(len(few) - 1, 'other task')} on fewer than {SMALL}" if len(few) > 1 else ""
        )
        undecided = f" Below {MIN_IMAGES} images nothing is decided." if images < MIN_IMAGES else ""
        yield f"Few images: {title} is scored on {images}{rest}.{undecided}"


def _noise(analysis: Analysis) -> Iterator[str]:
    without = dict.fromkeys(
        column.title
        for (_, column, metric), estimate in analysis.estimates.items()
        if metric == column.main and not estimate.images
    )
    # kinds whose scores a plugin would compute, which is not loaded now
    of_plugins = [
        column
        for column in analysis.selection.columns
        if column.title in without and needs_plugin(column.kind)
    ]
    if of_plugins:
        kinds = ", ".join(sorted({column.kind for column in of_plugins}))
        yield (
            f"The scores of images of {kinds} need the plugin that these runs had: report --plugin"
            " FILE."
        )
    if without:
        cells = chain.from_iterable(analysis.selection.cells.values())
        missing = missing_artifacts([cell.artifacts for cell in cells])
        has_remedy = missing or len(of_plugins) == len(without)
        remedy = "" if has_remedy else " Run these tasks again."
        yield (
            f"No verdict on {', '.join(without)}: without usable scores of single images the noise"
            f" of images is unknown, and seeds alone do not show it.{remedy}"
        )
        if missing:
            yield f"{missing[0].upper()}{missing[1:]}."
    if analysis.refused:
        listed = [f"{c.title} · {name}: {why}" for (name, c), why in analysis.refused.items()]
        yield f"Not used: {_first(listed)}."
    if analysis.inconsistent:
        yield (
            "Per-image scores that do not reproduce the stored number are not used:"
            f" {_first(analysis.inconsistent)}."
        )
    if analysis.unscored:
        yield (
            "Resamples of images with nothing to score (no object, an empty group) are left out of"
            f" the intervals: {_first(analysis.unscored)}."
        )


def _comparisons(analysis: Analysis) -> Iterator[str]:
    if analysis.statements > 1:
        yield (
            f"{analysis.statements} verdicts (marks of differences, mean gains) hold together: if"
            " all backbones were equal, at most one report in twenty would have any. Every interval"
            " is one of 95 % by itself, so it may exclude zero where the verdict is undecided."
        )
    if analysis.seed_prior.df:
        yield (
            "The noise of seeds of each difference is estimated with that of the others, which"
            f" count as {analysis.seed_prior.df:.1f} more seeds."
        )
    yield from _seeds_of_means(analysis)
    excluded: dict[tuple[str, TaskColumn], list[str]] = defaultdict(list)
    for (name, column), reason in analysis.excluded.items():
        excluded[reason, column].append(name)
    reasons: dict[str, list[str]] = defaultdict(list)
    for (reason, column), names in excluded.items():
        of_some = len(names) < len(analysis.selection.backbones) - 1
        reasons[reason].append(column.title + f" ({', '.join(names)})" * of_some)
    for reason, titles in reasons.items():
        yield f"Not in the mean gain because {reason}: {', '.join(titles)}."


def _seeds_of_means(analysis: Analysis) -> Iterator[str]:
    """Over which seeds mean gains are, where tasks have different ones."""
    columns = {name: gain.columns for name, gain in analysis.gains.items()}
    base = analysis.selection.baseline
    columns[base] = list(dict.fromkeys(chain.from_iterable(columns.values())))
    names: dict[tuple[tuple[tuple[int, ...], str], ...], list[str]] = defaultdict(list)
    for name in analysis.selection.backbones:
        titles: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for column in columns.get(name, ()):
            titles[analysis.samples[name, column, column.main].seeds].append(column.title)
        if len(titles) > 1:
            listed_titles = ((seeds, _enumerate(each)) for seeds, each in titles.items())
            names[tuple(sorted(listed_titles))].append(name)
    for of_seeds, having in names.items():
        listed = "; ".join(f"{_numbers(seeds)} on {titles}" for seeds, titles in of_seeds)
        shared = set.intersection(*(set(seeds) for seeds, _ in of_seeds))
        scope = f"the mean gain is over those that all have ({_numbers(sorted(shared))})"
        if len(shared) == 1:
            scope += ", and with one seed it has no verdict"
        elif not shared:
            scope = (
                "they have none in common, so the mean gain is over all, and its interval takes"
                " the noise of seeds as shared by all tasks"
            )
        yield f"Not all tasks have all seeds of {_enumerate(having)} ({listed}): {scope}."


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _disagreements(analysis: Analysis) -> Iterator[str]:
    """Metrics of a task that order backbones differently, two of them beyond doubt."""
    for column in analysis.selection.columns:
        for metric in shown_metrics(column)[1:]:
            both = (column.main, metric)
            scores = pd.DataFrame({each: _scores(analysis, column, each) for each in both}).dropna()
            rho, _, _ = spearman(scores[column.main], scores[metric])
            if not rho < AGREEING:
                continue
            for pair in permutations(scores.index, 2):
                verdicts = [analysis.lead(*pair, column, each).verdict() for each in both]
                if verdicts == ["win", "loss"]:
                    main, other = (column.metric(each).label or each for each in both)
                    yield (
                        f"{column.title}: {main} and {other} order the {len(scores)} backbones"
                        f" differently (Spearman's ρ {decimal(rho, 2)}): {pair[0]} is better than"
                        f" {pair[1]} by the first, worse by the second."
                    )
                    break


def _scores(analysis: Analysis, column: TaskColumn, metric: str) -> dict[str, float]:
    """Backbone → its number, higher is better."""
    sign = column.metric(metric).direction
    return {name: sign * each.value for name, each in analysis.numbers(column, metric).items()}


def _origins(analysis: Analysis) -> Iterator[str]:
    """Where numbers come from: others, versions of the code, several protocols."""
    selection = analysis.selection
    sources: dict[str, list[str]] = defaultdict(list)
    for name, source in selection.shared.items():
        sources[source].append(name)
    for source, names in sources.items():
        yield f"Shared results, not made here: {', '.join(names)} (from {source})."
    if selection.missing:
        yield f"{count(len(selection.missing), 'missing number')}: the tables give the reasons."
    commits = {run.commit for run in selection.parents.values()} - {""}
    if any(commit.endswith("+dirty") for commit in commits):
        yield "Some runs were made with uncommitted changes in the code."
    if len(commits) > 1:
        yield f"Numbers come from {len(commits)} versions of the code (see provenance)."
    several = sorted({column.task for column in selection.columns if column.letter})
    if several:
        yield (
            f"{', '.join(several)} ran under several protocols, each in its own column (A, B …);"
            " means count a task once."
        )


def _first(items: Sequence[str], most: int = 3) -> str:
    rest = len(items) - most
    return "; ".join([*items[:most], *([f"and {rest} more"] if rest > 0 else [])])


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


NO_COMPARISON = "nothing can be compared"
NO_VERDICT = f"a verdict needs stored scores of at least {MIN_IMAGES} images"


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
    frozen = [column for column in selection.columns if not column.tier]  # tiers share no mean
    common = [
        column
        for column in frozen or selection.columns
        if all((name, column) in analysis.task_gains for name in compared)
    ]
    rank = lambda name: (_shared_gain(analysis, name, common), judged[name]["win"])
    leader = max(compared, key=rank)
    tones = {name: _tone(analysis, name, judged[name]) for name in compared}
    lines = [_line(analysis, name) for name in compared]
    if set(tones.values()) == {"open"} and len(compared) > 1:
        tasks = count(max(each.total() for each in judged.values()), "task")
        gain = _describe_gain(analysis, leader)
        is_ahead = gain and analysis.gains[leader].mean.value > 0
        best = f"; {leader} is highest: {gain}" if is_ahead else ""
        if not any(each.total() for each in judged.values()):
            nothing = f"No backbone has a task under the same protocol as {base}: {NO_COMPARISON}."
            return Summary("open", nothing, lines)
        has_verdicts = any(each.total() > each["unknown"] for each in judged.values())
        words = "differs detectably from" if has_verdicts else "can be judged against"
        sentence = f"no backbone {words} {base} {_on_any(tasks)}{best}"
        if has_verdicts:
            headline = about_weights(analysis, leader, sentence)
        else:
            headline = f"{sentence}; {NO_VERDICT}."
        return Summary("open", headline[0].upper() + headline[1:], lines)
    headline = _headline(analysis, leader, tones[leader], common)
    return Summary(tones[leader], headline, lines)


def _shared_gain(analysis: Analysis, name: str, common: Sequence[TaskColumn]) -> float:
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
        return f"{name} and {base} share no task: {NO_COMPARISON}."
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
        words = f"does not differ detectably from {base} {_on_any(tasks)}"
    else:
        return f"{name} cannot be judged against {base} {_on_any(tasks)}; {NO_VERDICT}."
    if 0 < verdicts["unknown"] < verdicts.total():
        words += f", without a verdict on {verdicts['unknown']}"
    gain = _describe_gain(analysis, name)
    compared = len(analysis.selection.backbones) - 1
    if compared > 1 and gain and analysis.gains[name].mean.value > 0:
        fewer = 0 < len(common) < max(len(gain.columns) for gain in analysis.gains.values())
        shared_tasks = count(len({column.base for column in common}), "task")
        scope = f" on the {shared_tasks} that all have" if fewer else ""
        gain += f", the highest of {compared} backbones{scope}"
    more = "".join(f"; {part}" for part in (gain, _tuned_tasks(analysis, name)) if part)
    sentence = f"{name} {words}{more}"
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
    return f"For these weights: {sentence}; {advice}."


def _describe_gain(analysis: Analysis, name: str) -> str:
    """``mean gain +2.1 % (95 % interval …)`` of a backbone; '' if it has none."""
    gain = analysis.gains.get(name)
    if gain is None:
        return ""
    tasks = len({column.base for column in gain.columns})
    fewer = f", over {tasks} of them" if tasks < len(analysis.tasks(name)) else ""
    return f"mean gain {_mean_and_interval(gain)}{fewer}"


def _tuned_tasks(analysis: Analysis, name: str) -> str:
    """``tuned: better on 1 of 3 tasks, worse on none``, where tasks ran frozen, too; or ''."""
    verdicts = Counter(analysis.tasks(name, tuned=True).values())
    if not verdicts:
        return ""
    wins, losses = (verdicts[verdict] or "none" for verdict in ("win", "loss"))
    return f"tuned: better on {wins} of {count(verdicts.total(), 'task')}, worse on {losses}"


def _mean_and_interval(gain: Gain) -> str:
    """The mean with its interval, and whether it is decided."""
    mean = gain.mean
    ends = f"95 % interval {decimal(mean.low, 1, True)} to {decimal(mean.high, 1, True)}"
    shown = ends if mean.has_interval else "no interval"
    undecided = ", undecided" if mean.verdict() == "tie" else ""
    return f"{decimal(mean.value, 1, True)} % ({shown}{undecided})"


def _on_any(tasks: str) -> str:
    return f"on any of {tasks}" if tasks != "1 task" else "on the only task"


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
    if gain := _describe_gain(analysis, name):
        parts.append(gain)
    if tuned := _tuned_tasks(analysis, name):
        parts.append(tuned)
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
        gap = typical([*gaps.values()])
        unit = column.metric(column.main).unit
        detected = f"{gap.detectable():.2g} {unit}".rstrip() if gap else "nothing"
        line = (
            f"{column.title}: {count(images, 'image') if images else 'an unknown number of images'}"
            f" and {fewest}{count(seeds[-1], 'seed')} detect {detected}"
            f"{' in 80 % of such comparisons' * bool(gap)}"
        )
        undecided: dict[str, list[str]] = {}
        for name, gap in gaps.items():
            if gap.value and gap.verdict() in ("tie", "unknown"):
                undecided.setdefault(_remedy(gap), []).append(name)
        if undecided:
            remedies = [f"{_enumerate(names)} {remedy}" for remedy, names in undecided.items()]
            line += (
                "; not decided, but in 80 % of cases if differences are what they seem:"
                f" {'; '.join(remedies)}"
            )
        lines.append(line + ".")
    return lines


def _remedy(gap: Estimate) -> str:
    if gap.seeds == 1 and gap.is_judged:
        return "with more seeds, to estimate their noise"
    seeds = gap.seeds_to_decide(abs(gap.value))
    return f"with {seeds} seeds" if seeds else "only with more images"


def _enumerate(names: Sequence[str], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def margin_lines(analysis: Analysis) -> list[str]:
    """Where undecided backbones are no worse than the baseline by more than a margin."""
    lines = []
    base, margin = analysis.selection.baseline, analysis.margin
    for name in analysis.selection.backbones:
        tasks: dict[str, list[str]] = defaultdict(list)
        for column in analysis.selection.columns:
            tasks[analysis.within_margin(name, column)].append(column.title)
        parts = [
            f"{words} on {_enumerate(tasks[key])}"
            for key, words in (
                ("equivalent", f"equivalent within {margin}"),
                ("no worse", f"no worse than {margin} below"),
            )
            if key in tasks
        ]
        if parts:
            lines.append(f"{name} and {base}: {'; '.join(parts)}.")
    return lines


def describe_methods(analysis: Analysis, libraries: Mapping[str, str]) -> str:
    """A paragraph for a paper: what this report did, with its sources, and the versions of the
    ``libraries``."""
    selection, base = analysis.selection, analysis.selection.baseline
    cells = list(chain.from_iterable(selection.cells.values()))
    tasks = list(dict.fromkeys(column.base for column in selection.columns))
    protocols = sorted({cell.preset for cell in cells} - {"", "own"})
    commits = sorted({run.commit for run in selection.parents.values()} - {""})
    seeds = _extent(len(each) for each in selection.seeds.values())
    images = _extent(filter(None, analysis.images.values()))
    sentences = [
        f"We compare {', '.join(selection.backbones)} on {count(len(tasks), 'task')}"
        f" ({', '.join(tasks)}); numbers are means over seeds ({seeds} for each backbone)",
        f"Intervals are of 95 %: validation images ({images} for each task) are resampled"
        f" {RESAMPLES} times, for detection at least 200 times, by weights of Poisson's"
        " distribution (Owen and Eckles 2012), and the metric is computed from each resample; the"
        " noise of seeds enters by Student's t (Cochran 1964)",
    ]
    if analysis.seed_prior.df:
        sentences.append(
            "Variances between seeds are moderated by those of the other comparisons"
            f" ({analysis.seed_prior.df:.1f} prior degrees of freedom; Smyth 2004)"
        )
    if analysis.differences:
        sentences.append(
            f"Differences to {base} are paired by image, and by seed where three are shared (else"
            f" Welch 1947); {count(analysis.statements, 'verdict')} hold together at 5 %"
            " (Holm 1979; further metrics of a task after its main one, Goeman and Solari 2010)"
        )
    if analysis.margin:
        sentences.append(
            f"Undecided differences are called equivalent where the interval at the strictest of"
            f" these levels lies within ±{analysis.margin}"
        )
    if protocols:
        sentences.append(f"Settings follow the protocols {', '.join(protocols)}")
    used = [f"{name} {version}" for name, version in libraries.items()]
    used += [f"version {commit} of the suite's code" for commit in commits]
    if used:
        sentences.append(f"Numbers were computed with {', '.join(used)}")
    return " ".join(f"{sentence}." for sentence in sentences) + "\n"


def _extent(numbers: Iterable[int]) -> str:
    """``3``, or ``2 to 5``."""
    ends = sorted(numbers)
    return " to ".join(str(end) for end in dict.fromkeys([*ends[:1], *ends[-1:]])) or "unknown"


def level_lines(analysis: Analysis) -> list[str]:
    """What each backbone gains over the baseline on the tasks of each level, a sentence each."""
    words = {"win": "better", "loss": "worse", "tie": "undecided"}
    lines: dict[str, list[str]] = defaultdict(list)
    for (name, level), gain in analysis.level_gains.items():
        verdict = words.get(gain.mean.verdict(), "no verdict")
        tasks = count(len({column.base for column in gain.columns}), "task")
        amount = with_interval(gain.mean, 1, True)
        lines[name].append(f"{level} level {amount} % over {tasks} ({verdict})")
    base = analysis.selection.baseline
    return [f"{name} over {base}: {', '.join(parts)}." for name, parts in lines.items()]


def average_lines(analysis: Analysis) -> list[str]:
    """The averages of each backbone whose suite has some, and their differences to the baseline;
    with the means of groups, where it has groups."""
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
        for title, groups in _averaged(complete[0], selection.columns):
            keys = [key for group in groups.values() for key in group]
            if any((name, *key) not in analysis.samples for key in keys):
                continue
            weights = [1 / len(groups) / len(each) for each in groups.values() for _ in each]
            own = {key: analysis.samples[name, *key] for key in keys}
            text = f"{title}: {name} {with_interval(_mean([*own.values()], weights), 2)}"
            if name != base and all((base, *key) in analysis.samples for key in keys):
                gaps = [difference(own[key], analysis.samples[base, *key]) for key in keys]
                text += f"; {with_interval(_mean(gaps, weights), 2, True)} over {base}"
            for group, of_group in groups.items() if len(groups) > 1 else ():
                mean = np.mean([own[key].value for key in of_group])
                text += f"{',' if group != next(iter(groups)) else ';'} {group} {mean:.2f}"
            lines.append(text)
    return lines


def _averaged(
    run: ParentRun, columns: Sequence[TaskColumn]
) -> Iterator[tuple[str, dict[str, list[tuple[TaskColumn, str]]]]]:
    """Title of each average of a run → group ('' without groups) → columns and metrics. Without
    those of which several protocols of a task were selected, or not all tasks."""
    if not run.groups:
        tasks = {task.rpartition("/")[0] for task in run.main_metrics}
        keys = [(column, column.main) for column in columns if column.task in tasks]
        if len(keys) == len(tasks):
            yield run.average, {"": keys}
        return
    pairs = [word.split("/") for word in run.groups]
    for variant in dict.fromkeys(column.task.partition("/")[2] for column in columns):
        groups: dict[str, list[tuple[TaskColumn, str]]] = defaultdict(list)
        for group, dataset in pairs:
            task = f"{dataset}/{variant}"
            groups[group] += [(each, run.group_metric) for each in columns if each.task == task]
        selected = [column.task for group in groups.values() for column, _ in group]
        if len(selected) == len({*selected}) == len(pairs):
            yield f"{run.average} of {variant}", groups


def _mean(samples: Sequence[MetricSample], weights: Sequence[float]) -> Estimate:
    """The weighted mean of samples, with the noise of the seeds that all have."""
    value = float(np.average([sample.value for sample in samples], weights=weights))
    if len({sample.seeds for sample in samples}) > 1:
        seeds = sorted(set.intersection(*(set(sample.seeds) for sample in samples)))
        if not seeds or any(sample.split for sample in samples):
            return Estimate(value)
        samples = [sample.with_seeds(seeds) for sample in samples]
    return replace(estimate(weighted_sum(samples, weights)), value=value)
