"""From the chosen runs to numbers with intervals: the one place where every figure, table and sentence of a report comes from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reports.metrics import SHOWN, bounds
from reports.per_image import ImageScores, load_scores
from reports.query import Scored, Store
from reports.selection import Column, Selection
from reports.statistics import (
    DRAWS,
    Estimate,
    Sample,
    difference,
    enlarged,
    estimate,
    has_ratio,
    image_draws,
    mean_ranks,
    relative_gain,
)

AGREES = 1e-3  # of its size: by how much a metric and what its per-image scores give may differ


@dataclass
class Analysis:
    """All numbers of a report.

    Attributes:
        estimates: (backbone, column, metric) → the number.
        differences: the same keys → number - the baseline's.
        scores: (backbone, column) → per-image scores of its first seed (for choosing pictures).
        gains: backbone → mean relative gain over the baseline in percent, and over which columns.
        ranks: backbone → mean rank over the columns that all have.
        notes: what must be known to believe the numbers, one line each.
    """

    selection: Selection
    samples: dict[tuple[str, Column, str], Sample] = field(default_factory=dict)
    estimates: dict[tuple[str, Column, str], Estimate] = field(default_factory=dict)
    differences: dict[tuple[str, Column, str], Estimate] = field(default_factory=dict)
    scores: dict[tuple[str, Column], ImageScores] = field(default_factory=dict)
    images: dict[Column, int] = field(default_factory=dict)
    gains: dict[str, tuple[Estimate, list[Column]]] = field(default_factory=dict)
    task_gains: dict[tuple[str, Column], Estimate] = field(default_factory=dict)
    ranks: dict[str, Estimate] = field(default_factory=dict)
    no_ratio: list[Column] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _best: dict[tuple[Column, str], str] = field(default_factory=dict)

    def verdict(self, backbone: str, column: Column) -> str:
        """``win``, ``loss``, ``tie`` or ``unknown`` of a column's main metric against the baseline; '' where there is a hole."""
        gap = self.differences.get((backbone, column, column.main))
        return "" if gap is None else gap.verdict(column.sign(column.main))

    def best(self, column: Column, metric: str) -> str:
        """The backbone that beats every other one there, each by its own paired interval; '' when no one does."""
        key = column, metric
        if key not in self._best:
            self._best[key] = self._find_best(column, metric)
        return self._best[key]

    def _find_best(self, column: Column, metric: str) -> str:
        there = [b for b in self.selection.backbones if (b, column, metric) in self.samples]
        if len(there) < 2:
            return ""
        sign = column.sign(metric)
        leader = max(there, key=lambda b: sign * self.estimates[b, column, metric].value)
        mine = self.samples[leader, column, metric]
        rest = (self.samples[b, column, metric] for b in there if b != leader)
        return leader if all(difference(mine, other).verdict(sign) == "win" for other in rest) else ""


def shown_metrics(column: Column) -> list[str]:
    """Metrics of a column that the detailed tables show, the main one first."""
    have = [name for name, _ in column.directions]
    wanted = [name for name in SHOWN.get(column.kind, have[:3]) if name in have]
    return list(dict.fromkeys([column.main, *wanted])) if have else []


def analyse(
    store: Store, selection: Selection, *, draws: int = DRAWS, advance: Callable[[], None] = lambda: None
) -> Analysis:
    """Read per-image scores, draw images, and compute all that a report says.

    Args:
        advance: called once for each backbone of each column.

    Raises:
        TrackingError: an artifact is damaged.
    """
    analysis = Analysis(selection)
    weights: dict[tuple[str, ...], np.ndarray] = {}
    doubted: list[str] = []
    for column in selection.columns:
        for backbone in selection.backbones:
            cells = selection.cells.get((backbone, column), [])
            if cells:
                scores = [load_scores(store, cell.run, cell.kind) for cell in cells]
                if scores[0] is not None:
                    analysis.scores[backbone, column] = scores[0]
                    analysis.images[column] = len(scores[0].images)
                _sample(analysis, backbone, column, cells, scores, weights, draws, doubted)
            advance()
        if len(weights) > 2:  # tasks of one dataset come one after another; more need not be kept
            weights = dict(list(weights.items())[-2:])
    for key, sample in analysis.samples.items():
        analysis.estimates[key] = estimate(sample).within(*bounds(key[2]))
        base = analysis.samples.get((selection.baseline, *key[1:]))
        if base is not None and key[0] != selection.baseline:
            analysis.differences[key] = difference(sample, base)
    _gains(analysis)
    _ranks(analysis)
    _believe(analysis, doubted)
    return analysis


def _sample(
    analysis: Analysis,
    backbone: str,
    column: Column,
    cells: Sequence[Scored],
    scores: Sequence[ImageScores | None],
    weights: dict[tuple[str, ...], np.ndarray],
    draws: int,
    doubted: list[str],
) -> None:
    whole = [score for score in scores if score is not None]
    same = len(whole) == len(cells) and len({score.images for score in whole}) == 1
    for metric in shown_metrics(column):
        have = [number for number, cell in enumerate(cells) if np.isfinite(cell.metrics.get(metric, np.nan))]
        if not have:
            continue
        values = np.array([cells[number].metrics[metric] for number in have])
        drawn = None
        most = min((score.most_draws for score in whole), default=0)
        if same and all(metric in score.metrics for score in whole):
            images = whole[0].images
            if images not in weights:
                weights[images] = image_draws(images, draws)
            rows: list[np.ndarray] = []
            for number, value in zip(have, values, strict=True):
                compute = whole[number].metrics[metric]
                again = float(compute(np.ones((1, len(images)), np.float32))[0])
                if not abs(again - value) <= AGREES * max(1.0, abs(value)):
                    doubted.append(
                        f"{backbone} · {column.title} · {metric} (stored {value:.4g}, from images {again:.4g})"
                    )
                    rows = []
                    break
                rows.append(enlarged(compute(weights[images][:most]), again, len(images)))
            drawn = np.stack(rows) if rows else None
        seeds = tuple(cells[number].seed for number in have)
        analysis.samples[backbone, column, metric] = Sample(seeds, values, drawn)


def _gains(analysis: Analysis) -> None:
    selection = analysis.selection
    base = selection.baseline
    usable: list[Column] = []
    for column in selection.columns:
        found = analysis.estimates.get((base, column, column.main))
        if found is None:
            continue
        (usable if has_ratio(found) else analysis.no_ratio).append(column)
    for backbone in selection.backbones:
        if backbone == base:
            continue
        mine = [column for column in usable if (backbone, column, column.main) in analysis.samples]
        if not mine:
            continue
        pairs = [
            (analysis.samples[backbone, column, column.main], analysis.samples[base, column, column.main])
            for column in mine
        ]
        signs = [column.sign(column.main) for column in mine]
        analysis.gains[backbone] = relative_gain([m for m, _ in pairs], [b for _, b in pairs], signs), mine
        for column, (own, theirs), sign in zip(mine, pairs, signs, strict=True):
            analysis.task_gains[backbone, column] = relative_gain([own], [theirs], [sign])


def _ranks(analysis: Analysis) -> None:
    selection = analysis.selection
    shared = [
        column
        for column in selection.columns
        if all((backbone, column, column.main) in analysis.samples for backbone in selection.backbones)
    ]
    if shared and len(selection.backbones) > 1:
        samples = {b: [analysis.samples[b, column, column.main] for column in shared] for b in selection.backbones}
        analysis.ranks = mean_ranks(samples, [column.sign(column.main) for column in shared])


def _believe(analysis: Analysis, doubted: list[str]) -> None:
    """Whatever a reader should know before believing the numbers."""
    selection = analysis.selection
    notes = analysis.notes
    counts = {name: len(seeds) for name, seeds in selection.seeds.items()}
    if max(counts.values()) == 1:
        notes.append("One seed: the intervals hold the noise of images, not of training. Run with --seeds 3 or more.")
    elif len({tuple(seeds) for seeds in selection.seeds.values()}) > 1:
        told = ", ".join(f"{name} {', '.join(map(str, seeds))}" for name, seeds in selection.seeds.items())
        notes.append(
            f"Seeds differ ({told}); a difference is paired by seed only where both sides have the same seeds."
            + (" Of a backbone with one seed the noise of training is not known." if min(counts.values()) == 1 else "")
        )
    cells = [cell for found in selection.cells.values() for cell in found]
    partial = sorted(
        {cell.run.tags.get("dataset", "") for cell in cells if cell.run.tags.get("data.partial") == "true"}
    )
    if partial:
        notes.append(f"Partial data: {', '.join(partial)}. These numbers cannot be compared with published ones.")
    presets = {
        (cell.run.tags["task"], cell.run.tags.get("preset", "own"), cell.run.tags.get("differs", "")) for cell in cells
    }
    notes += [
        f"{task} {differs or f'has the settings of {preset}'} (what else its source does: list protocols)."
        for task, preset, differs in sorted(presets)
        if preset != "own"
    ]
    few = sorted((count, column.title) for column, count in analysis.images.items() if count < 100)
    if few:
        notes.append(
            f"Few images: {few[0][1]} is scored on {few[0][0]}"
            + (f", {len(few) - 1} other task{'s' if len(few) > 2 else ''} on fewer than 100" if len(few) > 1 else "")
            + f". Intervals of so few images are {'far' if few[0][0] < 20 else 'a little'} too narrow."
        )
    without: dict[str, list[str]] = defaultdict(list)
    for (backbone, column, metric), found in analysis.estimates.items():
        if metric == column.main and not found.images:
            without[column.title].append(backbone)
    if without:
        notes.append(
            f"No per-image scores for {', '.join(without)}: there only the noise of seeds is known"
            + (", which one seed does not show." if min(counts.values()) == 1 else ".")
        )
    partly = {
        column: None
        for name, (found, columns) in analysis.gains.items()
        if found.known
        for column in columns
        if not analysis.task_gains[name, column].known
    }
    if partly:
        told = ", ".join(column.title for column in partly)
        notes.append(f"The interval of the mean relative gain is too narrow: nothing is known of the noise of {told}.")
    decisions = [
        gap for (_, column, metric), gap in analysis.differences.items() if metric == column.main and gap.known
    ]
    if len(decisions) >= 10:
        notes.append(
            f"{len(decisions)} comparisons, each at 95 %: about {len(decisions) / 20:.0f} would be decided by chance if all "
            "backbones were equal."
        )
    if doubted:
        notes.append(
            f"Per-image scores do not give back the stored number and are not used: {'; '.join(doubted[:3])}"
            + (f"; and {len(doubted) - 3} more" if len(doubted) > 3 else "")
        )
    if analysis.no_ratio:
        notes.append(
            f"Left out of the mean relative gain, because {selection.baseline} is too near zero there: "
            f"{', '.join(column.title for column in analysis.no_ratio)}."
        )
    if selection.holes:
        count = len(selection.holes)
        notes.append(f"{count} hole{'s' if count > 1 else ''}: see the dashes in the tables for the reasons.")
    commits = sorted({run.tags["git.commit"] for run in selection.parents.values() if run.tags.get("git.commit")})
    if any(commit.endswith("+dirty") for commit in commits):
        notes.append("Some runs were made with uncommitted changes in the code.")
    if len(commits) > 1:
        notes.append(f"Runs of {len(commits)} versions of the code stand side by side (see provenance).")
    several = sorted({column.task for column in selection.columns if column.letter})
    if several:
        notes.append(f"{', '.join(several)} ran under several protocols, each in its own column (A, B …).")
    notes += [note[0].upper() + note[1:] + "." for note in selection.notes]
