"""The leaderboard of shared results: the ranks of many backbones, on one offline page.

A backbone's rank is 1 + the number of backbones that are better; its interval ends at the number of
backbones that are not worse (Mogstad, Romano, Shaikh, Wilhelm, Review of Economic Studies 2024), so
backbones that cannot be told apart share their ranks. The differences of all pairs are judged
jointly: all ranks hold together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from reports.figures import Figure, Score, cycled_styles, make_layout
from reports.pages import figure_content, render_template
from reports.published.table import costs_of, published_numbers, read_rows
from reports.records import PARENT, PROTOCOL, Cell, Metric, ParentRun
from reports.relations import COST_AXES, cost_conditions, cost_figure
from reports.selection import column_runs, task_order
from reports.sharing import SharedResults, check_results, new_names, settings_key
from reports.statistics import (
    Estimate,
    MetricSample,
    difference,
    estimate,
    image_weights,
    judge_jointly,
    seed_prior,
    weighted_sum,
)

RESAMPLES = 200


@dataclass
class SharedColumn:
    """A task under one protocol and version of the data, with the numbers of all files on it.

    Attributes:
        cell: one of its cells, which says what they have in common.
        conditions: of all of them, but for versions of libraries.
        values: backbone → seed → the main metric.
        resamples: backbone → seed → (R,) the metric over each resample of the images.
        sources: backbone → title of its file.
        images: how many are resampled.
    """

    cell: Cell
    conditions: dict[str, Any]
    images: int
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    resamples: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """The declaration of the main metric."""
        return self.cell.declared[self.cell.main]

    def sample(self, backbone: str, seeds: Sequence[int]) -> MetricSample:
        """The main metric of a backbone with these seeds."""
        values = np.array([self.values[backbone][seed] for seed in seeds])
        resamples = np.stack([self.resamples[backbone][seed] for seed in seeds])
        return MetricSample(tuple(seeds), values, resamples, self.images)


@dataclass(frozen=True)
class Rank:
    """A backbone's score, those that are better, and the interval of its rank, which the page calls
    its place: from ``first`` to ``last``."""

    score: Estimate
    better: tuple[str, ...]
    last: int

    @property
    def first(self) -> int:
        return 1 + len(self.better)


@dataclass
class Leaderboard:
    """Everything that the page shows; ``backbones`` has what is known of each.

    Attributes:
        costs: of each, as a row of ``reports.relations.cost_frame``; some may be missing.
        parents: of all files, under the names of their rows; they have the order of tasks.
    """

    columns: dict[tuple[str, ...], SharedColumn] = field(default_factory=dict)
    backbones: dict[str, dict[str, str | float]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    parents: list[ParentRun] = field(default_factory=list)

    def add(self, results: SharedResults) -> None:
        """Verify a file and add its results. Networks of one name have rows of their own
        (``column_runs``); a name that others have for other weights gets the file's title added.

        Raises:
            TrackingError: the file is refused.
        """
        scores = check_results(results)
        cells, parents, _ = column_runs([*results.cells, *results.parents.values()])
        by_id = {parent.run_id: parent for parent in parents}
        results = replace(results, parents=by_id, cells=cells)
        names = new_names(parents, self.parents, results.title)
        for parent in results.parents.values():
            name = names.get(parent.backbone, parent.backbone)
            self.parents.append(parent.model_copy(update={"backbone": name}))
            details = self.backbones.setdefault(name, _describe(results, parent))
            devices = [c.device for c in results.cells if c.parent == parent.run_id]
            measured = {cost: parent.costs[cost] for cost in COST_AXES if cost in parent.costs}
            about = {"device": next(iter(devices), ""), "image_size": details["resolution"]}
            self.costs.setdefault(name, {**about, **measured})
        for cell in results.cells:
            name, own = names.get(cell.backbone, cell.backbone), scores[cell.run_id]
            conditions = results.json(cell, PROTOCOL)
            column = self.columns.setdefault(
                (cell.task, cell.kind, settings_key(conditions)),
                SharedColumn(cell, conditions, len(own.units)),
            )
            if column.sources.setdefault(name, results.title) != results.title:
                continue  # the first file with a result counts
            resampled = own.metrics[cell.main](image_weights(own.units, RESAMPLES))
            column.values.setdefault(name, {})[cell.seed] = cell.metrics[cell.main]
            column.resamples.setdefault(name, {})[cell.seed] = np.resize(resampled, RESAMPLES)


def _describe(results: SharedResults, parent: ParentRun) -> dict[str, str | float]:
    size = results.json(parent, PARENT)["backbone"].get("data", {}).get("size", [])
    return {
        "architecture": parent.architecture,
        "parameters": parent.costs.get("parameters", 0.0),
        "resolution": " × ".join(map(str, size)),
        "weights": parent.weights_source,
        "sha256": parent.weights,
        "licence": parent.licence,
        "file": results.title,
        "source": results.manifest.source,
    }


def rank_backbones(columns: Sequence[SharedColumn]) -> dict[str, Rank]:
    """Backbone → its rank over columns, of those that are in all of them.

    Of one column the score is the metric. Of several it is the mean over them of (metric - median)
    / standard deviation, over the backbones in the column, positive where better.
    """
    names = [name for name in columns[0].values if all(name in c.values for c in columns)]
    if not names:
        return {}
    sign, shift, scales = columns[0].metric.direction, 0.0, np.ones(1)
    if len(columns) > 1:
        means = np.array([[np.mean([*c.values[n].values()]) for n in names] for c in columns])
        spreads = means.std(axis=1)
        directions = np.array([column.metric.direction for column in columns])
        scales = directions / len(columns) / np.where(spreads, spreads, 1.0)
        sign, shift = 1, float(scales @ np.median(means, axis=1))
    samples = [_score(columns, scales, name) for name in names]
    pairs = list(combinations(range(len(names)), 2))
    gaps = [difference(samples[mine], samples[rival]) for mine, rival in pairs]
    prior = seed_prior(gaps)
    judged = judge_jointly([estimate(gap, prior) for gap in gaps])
    beats = np.zeros((len(names), len(names)), int)
    for (mine, rival), gap in zip(pairs, judged, strict=True):
        verdict = gap.verdict(sign)
        beats[mine, rival], beats[rival, mine] = verdict == "win", verdict == "loss"
    ranks = {}
    for index, (name, sample) in enumerate(zip(names, samples, strict=True)):
        score = estimate(sample)
        score = replace(score, value=score.value - shift)
        better = tuple(names[rival] for rival in np.flatnonzero(beats[:, index]))
        ranks[name] = Rank(score, better, len(names) - int(beats[index].sum()))
    return ranks


def _score(columns: Sequence[SharedColumn], scales: np.ndarray, name: str) -> MetricSample:
    """The weighted sum of a backbone's metrics, over the seeds that it has in all columns; if there
    are none, of the first of each."""
    seeds = set.intersection(*(set(column.values[name]) for column in columns))
    samples = [
        column.sample(name, sorted(seeds) or [*column.values[name]][:1]) for column in columns
    ]
    return weighted_sum(samples, scales)


PUBLISHED_COSTS = {
    "parameters": "parameters",
    "gflops": "flops_per_image",
    "images_per_second": "images_per_second",
}  # metric of ``published_costs`` → the same cost of ours


def render_leaderboard(results: Leaderboard, title: str, about: str) -> str:
    """The page as text.

    Args:
        about: a sentence below the title.
    """
    order = {task: number for number, task in enumerate(task_order(results.parents))}
    columns = sorted(
        results.columns.values(), key=lambda column: order.get(column.cell.task, len(order))
    )
    groups = _groups(columns)
    scores = [
        Score(group.axis_title, {name: rank.score for name, rank in group.ranks.items()})
        for group in groups
    ]
    better = [{name: rank.better for name, rank in group.ranks.items()} for group in groups]
    costs = pd.DataFrame([*results.costs.values()], [*results.costs])
    styles = cycled_styles(costs.index)
    figures, published = cost_figure(styles, scores, better, costs), _published_costs(costs)
    content = {
        "backbones": [
            {"name": name, **details, "costs": _own_costs(results.costs.get(name, {}))}
            for name, details in results.backbones.items()
        ],
        "columns": [
            {"title": title, **_column(column)}
            for title, column in zip(_titles(columns), columns, strict=True)
        ],
        "groups": [
            {
                "label": group.label,
                "columns": group.columns,
                "ranked": group.ranked,
                "places": {name: _rank_content(rank) for name, rank in group.ranks.items()},
            }
            for group in groups
        ],
        "protocols": [column.conditions for column in columns],
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


def _own_costs(costs: Mapping[str, Any]) -> list[float | None]:
    """What a backbone of the shared results costs, as the axes of published costs have it."""
    scales = {cost: COST_AXES[cost].scale for cost in PUBLISHED_COSTS.values()}
    return [costs[cost] / scales[cost] if cost in costs else None for cost in scales]


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
    """What one can rank by: the numbers of its columns and of those that are ranked, and the ranks
    of backbones. The title of its axis has a word on the direction of a metric; scores go up."""

    label: str
    axis_title: str
    columns: list[int]
    ranked: list[int]
    ranks: dict[str, Rank]


def _column(column: SharedColumn) -> dict[str, Any]:
    """A column, and its numbers by backbone."""
    return {
        "task": column.cell.task,
        "kind": column.cell.kind,
        "metric": column.metric.label or column.cell.main,
        "main": column.cell.main,
        "unit": column.metric.unit,
        "direction": column.metric.direction,
        "images": column.images,
        "cells": {
            name: {
                **_rank_content(rank),
                "seeds": len(column.values[name]),
                "file": column.sources[name],
            }
            for name, rank in rank_backbones([column]).items()
        },
    }


def _groups(columns: Sequence[SharedColumn]) -> list[_Group]:
    """All tasks, those of one probe or one dataset, and each task."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, column in enumerate(columns):
        cell = column.cell
        for label in ("all tasks", f"probe: {cell.probe}", f"data: {cell.dataset}"):
            members[label].append(number)
    for number, title in enumerate(_titles(columns)):
        members[f"task: {title}"].append(number)
    return [_group(label, numbers, columns) for label, numbers in members.items()]


def _group(label: str, numbers: list[int], columns: Sequence[SharedColumn]) -> _Group:
    """A task counts once, under the protocol that most of those have who are ranked by the tasks
    before it. Nobody is ranked alone over several tasks."""
    protocols: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        protocols[columns[number].cell.task].append(number)
    ranked: list[int] = []
    names = {name for number in numbers for name in columns[number].values}
    for of_task in protocols.values():
        ranked.append(max(of_task, key=lambda number: len(names & columns[number].values.keys())))
        names &= columns[ranked[-1]].values.keys()
    ranks = rank_backbones([columns[number] for number in ranked])
    if len(ranks) < 2 and len(ranked) > 1:
        ranks = {}
    is_lower_better = [columns[number].metric.direction for number in ranked] == [-1]
    axis_title = f"{label}, lower is better" if is_lower_better else label
    return _Group(label, axis_title, numbers, ranked, ranks)


def _titles(columns: Sequence[SharedColumn]) -> list[str]:
    """The task of each, with a letter where it has several protocols; and whether the user changed
    what the suite says."""
    tasks = [column.cell.task + " (shortened)" * bool(column.cell.shortened) for column in columns]
    return [
        f"{task} ({chr(65 + tasks[:number].count(task))})" if tasks.count(task) > 1 else task
        for number, task in enumerate(tasks)
    ]


def _rank_content(rank: Rank) -> dict[str, Any]:
    """A score with half of its interval, and its ranks."""
    score, half = float(f"{rank.score.value:.5g}"), float(f"{rank.score.reach():.3g}")
    text = f"{score:.1f}" if abs(score) >= 10 else f"{score:#.3g}"
    ends = dict.fromkeys([rank.first, rank.last])
    return {
        "value": score,
        "text": text.replace("-", "−"),
        "spread": f"± {half:.0f}" if half >= 10 else f"± {half:#.2g}",
        "place": "–".join(map(str, ends)),
        "order": [rank.first, rank.last],
    }
