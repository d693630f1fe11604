"""Whatever a reader should know before believing the numbers, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from reports.analysis import Analysis
from reports.parts.tables import count
from reports.stats.intervals import FEW

SOME = 100  # images: fewer are said


def caveats(analysis: Analysis) -> list[str]:
    """One sentence or two each."""
    return [
        *_seeds(analysis),
        *_data(analysis),
        *_noise(analysis),
        *_comparisons(analysis),
        *_code(analysis),
    ]


def _seeds(analysis: Analysis) -> Iterator[str]:
    seeds = analysis.selection.seeds
    counts = [len(each) for each in seeds.values()]
    if max(counts) == 1:
        yield (
            "One seed: the intervals hold the noise of images, not of training. Run with --seeds 3"
            " or more."
        )
    elif len({tuple(each) for each in seeds.values()}) > 1:
        told = ", ".join(f"{name} {', '.join(map(str, each))}" for name, each in seeds.items())
        yield (
            f"Seeds differ ({told}); a difference is taken over the seeds that both sides have, and"
            " where these are fewer than two as if the sides were independent, so it may not be"
            " the difference of the two numbers beside it."
            + (
                " Of a backbone with one seed the noise of training is not known."
                if min(counts) == 1
                else ""
            )
        )


def _data(analysis: Analysis) -> Iterator[str]:
    cells = [cell for found in analysis.selection.cells.values() for cell in found]
    partial = sorted(
        {c.run.tags.get("dataset", "") for c in cells if c.run.tags.get("data.partial") == "true"}
    )
    if partial:
        yield (
            f"Partial data: {', '.join(partial)}. These numbers cannot be compared with published"
            " ones."
        )
    presets = {
        (c.task, c.run.tags.get("preset", "own"), c.run.tags.get("differs", "")) for c in cells
    }
    for task, preset, differs in sorted(presets):
        if preset != "own":
            yield (
                f"{task} {differs or f'has the settings of {preset}'} (what else its source does:"
                " list protocols)."
            )
    few = sorted(
        (images, column.title) for column, images in analysis.images.items() if 0 < images < SOME
    )
    if few:
        others = (
            f", {count(len(few) - 1, 'other task')} on fewer than {SOME}" if len(few) > 1 else ""
        )
        nothing = f" Below {FEW} images nothing is decided." if few[0][0] < FEW else ""
        yield f"Few images: {few[0][1]} is scored on {few[0][0]}{others}.{nothing}"


def _noise(analysis: Analysis) -> Iterator[str]:
    without: dict[str, list[str]] = defaultdict(list)
    for (backbone, column, metric), found in analysis.estimates.items():
        if metric == column.main and not found.images:
            without[column.title].append(backbone)
    if without:
        one = min(len(each) for each in analysis.selection.seeds.values()) == 1
        yield (
            f"No per-image scores for {', '.join(without)}: there only the noise of seeds is known"
            + (", which one seed does not show." if one else ".")
        )
    single = {
        column.title: None
        for name, gain in analysis.gains.items()
        for column in gain.columns
        if gain.typical.error == gain.typical.error and analysis.task_gains[name, column].seeds == 1
    }
    if single:
        yield (
            f"The mean gain holds no noise of training for {', '.join(single)}, of which some"
            " backbone has one seed."
        )
    if analysis.doubted:
        more = f"; and {len(analysis.doubted) - 3} more" if len(analysis.doubted) > 3 else ""
        yield (
            "Per-image scores do not give back the stored number and are not used: "
            f"{'; '.join(analysis.doubted[:3])}{more}"
        )


def _comparisons(analysis: Analysis) -> Iterator[str]:
    if analysis.comparisons > 1:
        yield (
            f"{analysis.comparisons} differences and {count(len(analysis.gains), 'mean gain')} are"
            " judged together: if all backbones were equal, one report in twenty would call any of"
            f" them better or worse. So a difference has an interval of {_percent(analysis.level)},"
            f" a mean gain one of {_percent(analysis.gain_level)}; numbers have 95 %."
        )
    reasons: dict[str, list[str]] = defaultdict(list)
    for column, reason in analysis.left_out.items():
        reasons[reason].append(column.title)
    for reason, titles in reasons.items():
        yield f"Left out of the mean gain, because {reason}: {', '.join(titles)}."


def _code(analysis: Analysis) -> Iterator[str]:
    selection = analysis.selection
    if selection.missing:
        yield f"{count(len(selection.missing), 'missing number')}: the tables say why."
    commits = sorted(
        {run.tags["git.commit"] for run in selection.parents.values() if run.tags.get("git.commit")}
    )
    if any(commit.endswith("+dirty") for commit in commits):
        yield "Some runs were made with uncommitted changes in the code."
    if len(commits) > 1:
        yield f"Numbers come from {len(commits)} versions of the code (see provenance)."
    several = sorted({column.task for column in selection.columns if column.letter})
    if several:
        yield (
            f"{', '.join(several)} ran under several protocols, each in its own column (A, B …); in"
            " means a task counts once."
        )
    for note in selection.notes:
        yield f"{note[0].upper()}{note[1:]}."


def _percent(level: float) -> str:
    return f"{100 * (1 - level):.{1 if level > 0.01 else 2}f} %"
