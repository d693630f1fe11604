"""The leaderboard of shared results: the ranks of many backbones, on one offline page.

Its numbers are those of a report on the same files: their records are selected and analysed by the
same functions. Only ranks are its own.

A backbone's rank is 1 + the number of backbones that are better; its interval ends at the number of
backbones that are not worse (Mogstad, Romano, Shaikh, Wilhelm, Review of Economic Studies 2024), so
backbones that cannot be told apart share their ranks. The differences of all pairs of all rankings
of a page are judged jointly: all its ranks hold together.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd

from reports.comparison import Analysis, NumberKey, analyse
from reports.figures import Figure, Score, cycled_styles, make_layout
from reports.pages import figure_content, render_template
from reports.provenance import Provenance, collect_provenance
from reports.published.table import costs_of, published_numbers, read_rows
from reports.records import Cell, ParentRun
from reports.relations import COST_AXES, cost_conditions, cost_figure, cost_frame
from reports.selection import TaskColumn, select
from reports.sharing import read_shared
from reports.statistics import (
    Estimate,
    MetricSample,
    difference,
    estimate,
    judge_jointly,
    seed_prior,
    weighted_sum,
    with_common_seeds,
)
from reports.store import Artifacts
from reports.tables import bracketed, decimal, digits, main_columns


@dataclass(frozen=True)
class Leaderboard:
    """The main metrics of all shared results; ``notes``: what a reader must know of the files."""

    analysis: Analysis
    provenance: Provenance
    notes: Sequence[str] = ()


def build_leaderboard(
    files: Sequence[tuple[str, bytes]],
    start: Callable[[str, int], None] = lambda step, total: None,
    advance: Callable[[], None] = lambda: None,
) -> Leaderboard:
    """Verify files of shared results, and analyse what they hold as a report does.

    Args:
        files: title and content of each.
        start, advance: a progress bar.

    Raises:
        TrackingError: a file is refused.
    """
    artifacts = Artifacts()
    records, notes = read_shared(files, [], artifacts)
    selection = select([_of_main_metric(each) for each in records], [])
    start("per-image scores", len(selection.columns) * len(selection.backbones))
    analysis = analyse(artifacts, selection, advance)
    return Leaderboard(analysis, collect_provenance(artifacts, selection), notes)


def _of_main_metric(record: Cell | ParentRun) -> Cell | ParentRun:
    """A cell with its main metric alone: the page shows no other."""
    if isinstance(record, ParentRun):
        return record
    declared = {record.main: record.declared[record.main]}
    metrics = {record.main: record.metrics[record.main]}
    return record.model_copy(update={"declared": declared, "metrics": metrics})


FIRST_SHARE = 0.5  # of the error rate, for the ranking that the page begins with


@dataclass(frozen=True)
class Ranking:
    """Backbones by a sample of each.

    Attributes:
        sign: +1 where higher is better, else -1.
        width: as of ``estimate``.
    """

    samples: Mapping[str, MetricSample]
    sign: int = 1
    width: float = 0.0


@dataclass(frozen=True)
class Rank:
    """The backbones that are better than one, and the interval of its rank, which the page calls
    its place: from ``first`` to ``last``. With one seed it is the place of these weights, not of a
    method."""

    better: tuple[str, ...]
    last: int
    of_these_weights: bool = False

    @property
    def first(self) -> int:
        return 1 + len(self.better)


def rank_backbones(*rankings: Ranking) -> list[dict[str, Rank]]:
    """Of each ranking backbone → its rank. All ranks of all rankings hold together; the first has
    ``FIRST_SHARE`` of the error rate, the others the rest in equal parts."""
    gaps: list[Estimate] = []
    shares: list[float] = []
    for number, each in enumerate(rankings):
        pairs = [difference(*pair) for pair in combinations(each.samples.values(), 2)]
        prior = seed_prior(pairs)
        gaps += [estimate(pair, prior, each.width) for pair in pairs]
        share = (1 - FIRST_SHARE) / (len(rankings) - 1) if number else FIRST_SHARE
        shares += [share / max(len(pairs), 1)] * len(pairs)
    judged = iter(judge_jointly(gaps, shares))
    return [_ranks(each, judged) for each in rankings]


def _ranks(ranking: Ranking, judged: Iterator[Estimate]) -> dict[str, Rank]:
    better: dict[str, list[str]] = {name: [] for name in ranking.samples}
    for pair, gap in zip(combinations(better, 2), judged, strict=False):
        verdict = gap.verdict(ranking.sign)
        if verdict in ("win", "loss"):
            winner, loser = pair if verdict == "win" else pair[::-1]
            better[loser].append(winner)
    worse = Counter(chain.from_iterable(better.values()))
    return {
        name: Rank(tuple(better[name]), len(better) - worse[name], sample.count == 1)
        for name, sample in ranking.samples.items()
    }


def main_samples(
    samples: Mapping[NumberKey, MetricSample],
) -> dict[TaskColumn, dict[str, MetricSample]]:
    """Column → backbone → the sample of its main metric."""
    by_column: dict[TaskColumn, dict[str, MetricSample]] = defaultdict(dict)
    for (name, column, metric), sample in samples.items():
        if metric == column.main:
            by_column[column][name] = sample
    return by_column


def mean_scores(
    columns: Mapping[TaskColumn, Mapping[str, MetricSample]],
) -> dict[str, MetricSample]:
    """Backbone → the mean over columns of (metric - median) / standard deviation, positive where
    better. Median and deviation are over the backbones that are in all columns; only these have a
    score."""
    first, *others = columns.values()
    names = [name for name in first if all(name in each for each in others)]
    if not names:
        return {}
    means = np.array([[c[name].values.mean() for name in names] for c in columns.values()])
    spreads = means.std(axis=1)
    directions = np.array([column.metric(column.main).direction for column in columns])
    is_tie = spreads <= 1e-9 * np.abs(means).max(axis=1)  # but for rounding
    scales = directions / len(columns) / np.where(is_tie, 1.0, spreads)
    median = float(scales @ np.median(means, axis=1))
    scores = {}
    for name in names:
        score = weighted_sum(with_common_seeds(*(c[name] for c in columns.values())), scales)
        scores[name] = replace(score, values=score.values - median)
    return scores


PUBLISHED_COSTS = {
    "parameters": "parameters",
    "gflops": "flops_per_image",
    "images_per_second": "images_per_second",
}  # metric of ``published_costs`` → the same cost of ours


def render_leaderboard(board: Leaderboard, title: str, about: str) -> str:
    """The page as text.

    Args:
        about: a sentence below the title.
    """
    analysis, columns = board.analysis, main_columns(board.analysis)
    cells = analysis.selection.cells
    groups = _groups(analysis)
    scores = []
    for group in groups:
        down = [columns[number].direction for number in group.ranked] == [-1]
        axis_title = f"{group.label}, lower is better" if down else group.label
        scores.append(Score(axis_title, group.scores, group.digits))
    better = [{name: rank.better for name, rank in group.ranks.items()} for group in groups]
    # seconds depend on the machines and the other work of each who shares
    costs = cost_frame(analysis, board.provenance).drop(columns="seconds")
    rows, styles = costs.to_dict("index"), cycled_styles(costs.index)
    figures, published = cost_figure(styles, scores, better, costs), _published_costs(costs)
    content = {
        "backbones": [
            _backbone(analysis, name, rows[name]) for name in analysis.selection.backbones
        ],
        "columns": [
            {
                "title": _title(analysis, of.column),
                "task": of.column.task,
                "metric": of.label,
                "main": of.metric,
                "unit": of.unit,
                "direction": of.direction,
                "images": of.images,
                "cells": {
                    name: {
                        **_number(number, of.digits),
                        "seeds": number.seeds,
                        "file": ", ".join(sorted({c.experiment for c in cells[name, of.column]})),
                    }
                    for name, number in analysis.numbers(of.column, of.metric).items()
                },
            }
            for of in columns
        ],
        "groups": [
            {
                "label": group.label,
                "columns": group.columns,
                "ranked": group.ranked,
                "places": {
                    name: {
                        **_number(group.scores[name], group.digits),
                        "place": "–".join(map(str, dict.fromkeys([rank.first, rank.last]))),
                        "order": [rank.first, rank.last],
                        "ofWeights": rank.of_these_weights,
                    }
                    for name, rank in group.ranks.items()
                },
            }
            for group in groups
        ],
        "rankings": len({tuple(group.ranked) for group in groups if group.ranks}),
        "protocols": [conditions for _, conditions in board.provenance.protocols],
        "published": _published(),
    }
    return render_template(
        "leaderboard.html.j2",
        title=title,
        about=about,
        content=content,
        shown_figures=figures,
        published_figure=published,
        **figure_content([*figures, published]),
    )


RUN_FIELDS = ("architecture", "licence", "weights_source", "weights")


def _backbone(analysis: Analysis, name: str, costs: Mapping[Any, Any]) -> dict[str, Any]:
    """What the page says of a backbone; its costs are in the units of published ones."""
    run = analysis.selection.parent(name)
    shown = {cost: COST_AXES[cost].scale for cost in PUBLISHED_COSTS.values()}
    return {
        "name": name,
        "source": analysis.selection.shared[name],
        "parameters": float(np.nan_to_num(costs["parameters"])),
        "costs": [None if np.isnan(costs[cost]) else costs[cost] / shown[cost] for cost in shown],
        **{name: getattr(run, name, "") for name in RUN_FIELDS},
    }


def _number(number: Estimate, decimals: int) -> dict[str, Any]:
    """A value, also as text, and its interval."""
    return {
        "value": float(f"{number.value:.5g}"),
        "text": decimal(number.value, decimals),
        "interval": bracketed(number.low, number.high, decimals),
    }


def _published_costs(own: pd.DataFrame) -> Figure:
    """Published numbers of a task against published costs; the page fills it.

    Args:
        own: costs of the backbones of the shared results, which it shows beside them.
    """
    conditions = f"; of shared results: {cost_conditions(own)}" if len(own) else ""
    caption = (
        "Costs as timm and OpenCLIP publish them, of the same architecture at the same image size"
        " (of a model card at the smallest size that timm measured). Speed of timm: RTX 4090, AMP,"
        f" large batches{conditions}: speeds of two devices cannot be compared."
    )
    spec = {"data": [], "layout": make_layout({}, {}, legend=True)}
    title, alt = "Published numbers against costs", "the numbers of the table below"
    return Figure("published-costs", title, caption, alt, spec)


def _published() -> dict[str, Any]:
    """Published numbers: sources and models, and of each task and metric rows (number of the model,
    number of the source, value)."""
    sources = list(read_rows("sources"))
    number_of = {row["source"]: number for number, row in enumerate(sources)}
    models: dict[str, dict[str, Any]] = {}
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    for each in published_numbers():
        if not each.task:  # a statement
            continue
        name, size = (*each.backbones, each.model)[0], each.model.partition("@")[2]
        model = models.get(each.model)
        if model is None:
            at, costs = costs_of(each)
            model = models[each.model] = {
                "number": len(models),
                "name": f"{name} at {size} px" if size else name,
                "model": each.model,
                "names": list(each.backbones),
                "costs": [costs.get(cost) for cost in PUBLISHED_COSTS],
                "at": at,
            }
        task = tasks.setdefault(
            (each.task, each.metric),
            {
                "task": each.task,
                "metric": each.metric,
                "direction": each.direction,
                "rows": [],
            },
        )
        text = f"{each.value:.{each.digits}f}"
        task["rows"].append([model["number"], number_of[each.source], text])
    return {
        "costs": [COST_AXES[cost].title for cost in PUBLISHED_COSTS.values()],
        "sources": sources,
        "models": list(models.values()),
        "tasks": [tasks[key] for key in sorted(tasks)],
    }


@dataclass(frozen=True)
class _Group:
    """What one can rank by: the numbers of its columns and of those that are ranked, and the scores
    and ranks of backbones."""

    label: str
    columns: list[int]
    ranked: list[int]
    scores: Mapping[str, Estimate]
    ranks: Mapping[str, Rank]

    @functools.cached_property
    def digits(self) -> int:
        return digits([*self.scores.values()])


def _groups(analysis: Analysis) -> list[_Group]:
    """All tasks, those of one probe or one dataset, and each task."""
    columns, by_column = analysis.selection.columns, main_samples(analysis.samples)
    members: dict[str, list[int]] = defaultdict(list)
    for number, column in enumerate(columns):
        dataset, _, probe = column.base.rpartition("/")
        tier = f", {column.tier}" if column.tier else ""  # frozen and tuned share no place
        for label in (f"all tasks{tier}", f"probe: {probe}", f"data: {dataset}{tier}"):
            members[label].append(number)
    for number, column in enumerate(columns):
        members[f"task: {_title(analysis, column)}"].append(number)

    ranked = {
        label: tuple(_ranked(columns, numbers, by_column)) for label, numbers in members.items()
    }
    rankings = {
        key: _ranking({columns[n]: by_column[columns[n]] for n in key})
        for key in dict.fromkeys(ranked.values())
    }
    ranks = dict(zip(rankings, rank_backbones(*rankings.values()), strict=True))
    groups = []
    for label, key in ranked.items():
        scores: Mapping[str, Estimate] = {
            name: estimate(score) for name, score in rankings[key].samples.items()
        }
        if len(key) == 1:  # the report's numbers
            scores = analysis.numbers(columns[key[0]], columns[key[0]].main)
        groups.append(_Group(label, members[label], [*key], scores, ranks[key]))
    return groups


def _ranked(
    columns: Sequence[TaskColumn],
    numbers: Sequence[int],
    by_column: Mapping[TaskColumn, Mapping[str, MetricSample]],
) -> list[int]:
    """The columns that count: of each task one, under the protocol that most of those have who are
    ranked by the tasks before it."""
    protocols: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        protocols[columns[number].task].append(number)
    having = {number: by_column[columns[number]].keys() for number in numbers}
    names = set().union(*having.values())
    ranked: list[int] = []
    for of_task in protocols.values():
        ranked.append(max(of_task, key=lambda number: len(names & having[number])))
        names &= having[ranked[-1]]
    return ranked


def _ranking(columns: Mapping[TaskColumn, Mapping[str, MetricSample]]) -> Ranking:
    """Over columns. Nobody is ranked alone over several."""
    if len(columns) == 1:
        ((column, samples),) = columns.items()
        metric = column.metric(column.main)
        return Ranking(samples, metric.direction, metric.width)
    scores = mean_scores(columns)
    return Ranking(scores if len(scores) > 1 else {})


def _title(analysis: Analysis, column: TaskColumn) -> str:
    """The task, with its letter, and whether the user changed what the suite says."""
    is_shortened = any(cell.shortened for cell in analysis.selection.column_cells(column))
    return f"{column.title}, shortened" if is_shortened else column.title
