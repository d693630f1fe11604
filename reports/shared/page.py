"""The leaderboard: one offline page of a folder of shared results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.parts.costs import COST_AXES, cost_conditions, cost_figure
from reports.parts.figures import Figure, cycled_styles, make_layout
from reports.parts.scatter import Score
from reports.published.table import costs_of, published_numbers, read_rows
from reports.render.page import figure_content, render_template
from reports.selection import task_order
from reports.shared.standings import Leaderboard, Place, SharedColumn, rank_backbones

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
        Score(_axis_title(group, columns), {n: place.score for n, place in group.places.items()})
        for group in groups
    ]
    better = [{name: place.better for name, place in group.places.items()} for group in groups]
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
                "places": {name: _place(place) for name, place in group.places.items()},
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
    units = {cost: COST_AXES[cost].unit for cost in PUBLISHED_COSTS.values()}
    return [costs[cost] / units[cost] if cost in costs else None for cost in units]


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
    """What one can rank by: the numbers of its columns and of those that are ranked, and the places
    of backbones."""

    label: str
    columns: list[int]
    ranked: list[int]
    places: dict[str, Place]


def _axis_title(group: _Group, columns: Sequence[SharedColumn]) -> str:
    """What is ranked by, with a word on the direction of a metric; scores go up."""
    directions = [columns[number].metric.direction for number in group.ranked]
    return f"{group.label}, lower is better" if directions == [-1] else group.label


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
                **_place(place),
                "seeds": len(column.values[name]),
                "file": column.sources[name],
            }
            for name, place in rank_backbones([column]).items()
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
    return [_rank(label, numbers, columns) for label, numbers in members.items()]


def _rank(label: str, numbers: list[int], columns: Sequence[SharedColumn]) -> _Group:
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
    places = rank_backbones([columns[number] for number in ranked])
    return _Group(label, numbers, ranked, places if len(places) > 1 or len(ranked) == 1 else {})


def _titles(columns: Sequence[SharedColumn]) -> list[str]:
    """The task of each, with a letter where it has several protocols."""
    tasks = [column.cell.task for column in columns]
    return [
        f"{task} ({chr(65 + tasks[:number].count(task))})" if tasks.count(task) > 1 else task
        for number, task in enumerate(tasks)
    ]


def _place(place: Place) -> dict[str, Any]:
    """A score with half of its interval, and its places."""
    score, half = float(f"{place.score.value:.5g}"), float(f"{place.score.reach():.3g}")
    text = f"{score:.1f}" if abs(score) >= 10 else f"{score:#.3g}"
    ends = dict.fromkeys([place.first, place.last])
    return {
        "value": score,
        "text": text.replace("-", "−"),
        "spread": f"± {half:#.2g}",
        "place": "–".join(map(str, ends)),
        "order": [place.first, place.last],
    }
