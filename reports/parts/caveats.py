"""What a reader must know before believing the numbers, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from reports.analysis import Analysis
from reports.parts.tables import count
from reports.stats.intervals import MIN_IMAGES, MIN_SEEDS
from reports.stats.per_image import why_unscored

SMALL = 100  # images: tasks with fewer are named


def caveats(analysis: Analysis) -> list[str]:
    """One or two sentences each."""
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
            "One seed: verdicts and intervals are of these weights, on images like these; the next"
            " training may differ. Run with --seeds 3 or more."
        )
    elif max(counts) < MIN_SEEDS:
        yield "Two seeds: intervals, but no verdict where seeds differ. Run with --seeds 3 or more."
    elif len({tuple(each) for each in seeds.values()}) > 1:
        listed = ", ".join(f"{name} {', '.join(map(str, each))}" for name, each in seeds.items())
        unknown = (
            " The noise of training is unknown for a backbone with one seed."
            if min(counts) == 1
            else ""
        )
        yield (
            f"Seeds differ ({listed}). A difference is taken over the seeds that both sides have,"
            " or over as many of each. So it may not equal the"
            f" difference of the two printed numbers.{unknown}"
        )


def _data(analysis: Analysis) -> Iterator[str]:
    cells = list(chain.from_iterable(analysis.selection.cells.values()))
    partial = {cell.dataset for cell in cells if cell.partial}
    if partial:
        yield (
            f"Partial data: {', '.join(sorted(partial))}. These numbers cannot be compared with"
            " published ones."
        )
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
    of_plugins = [
        column
        for column in analysis.selection.columns
        if column.title in without and "plugin" in why_unscored(column.kind)
    ]
    if of_plugins:
        kinds = ", ".join(sorted({column.kind for column in of_plugins}))
        yield (
            f"The scores of images of {kinds} need the plugin that these runs had: report --plugin"
            " FILE."
        )
    if without:
        single_seed = min(len(each) for each in analysis.selection.seeds.values()) == 1
        unseen = ", which one seed does not show" if single_seed else ""
        yield (
            f"No per-image scores for {', '.join(without)}: only the noise of seeds is"
            f" included{unseen}."
        )
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
            " all backbones were equal, one report in twenty would have any. Every interval is one"
            " of 95 % by itself, so it may exclude zero where the verdict is undecided."
        )
    if analysis.seed_prior.df:
        yield (
            "The noise of seeds of each difference is estimated with that of the others, which"
            f" count as {analysis.seed_prior.df:.1f} more seeds."
        )
    reasons: dict[str, list[str]] = defaultdict(list)
    for column, reason in analysis.excluded.items():
        reasons[reason].append(column.title)
    for reason, titles in reasons.items():
        yield f"Not in the mean gain because {reason}: {', '.join(titles)}."


def _code(analysis: Analysis) -> Iterator[str]:
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
