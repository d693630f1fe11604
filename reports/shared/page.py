"""The leaderboard: one offline page of a folder of shared results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from reports.render.page import render_template
from reports.selection import task_order
from reports.shared.standings import Leaderboard, Place, SharedColumn, rank_backbones


def render_leaderboard(results: Leaderboard, title: str, about: str) -> str:
    """The page as text.

    Args:
        about: a sentence below the title.
    """
    order = {task: number for number, task in enumerate(task_order(results.parents))}
    columns = sorted(
        results.columns.values(), key=lambda column: order.get(column.cell.task, len(order))
    )
    content = {
        "backbones": [{"name": name, **details} for name, details in results.backbones.items()],
        "columns": [_column(column) for column in columns],
        "groups": _groups(columns),
        "protocols": [column.conditions for column in columns],
    }
    return render_template("leaderboard.html.j2", title=title, about=about, content=content)


def _column(column: SharedColumn) -> dict[str, Any]:
    """A column, and its numbers by backbone."""
    return {
        "task": column.cell.task,
        "kind": column.cell.kind,
        "metric": column.metric.label or column.cell.main,
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


def _groups(columns: Sequence[SharedColumn]) -> list[dict[str, Any]]:
    """What one can rank by: all tasks, those of one probe or one dataset, and each task."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, column in enumerate(columns):
        cell = column.cell
        for label in ("all tasks", f"probe: {cell.probe}", f"data: {cell.dataset}"):
            members[label].append(number)
    tasks = [column.cell.task for column in columns]
    for number, task in enumerate(tasks):
        letter = f" ({chr(65 + tasks[:number].count(task))})" if tasks.count(task) > 1 else ""
        members[f"task: {task}{letter}"].append(number)
    groups = []
    for label, numbers in members.items():
        places = rank_backbones([columns[number] for number in numbers])
        ranked = {name: _place(place) for name, place in places.items()}
        groups.append({"label": label, "columns": numbers, "places": ranked})
    return groups


def _place(place: Place) -> dict[str, Any]:
    """A score with half of its interval, and its places."""
    score, half = float(f"{place.score.value:.5g}"), float(f"{place.score.reach():.3g}")
    text = f"{score:.1f}" if abs(score) >= 10 else f"{score:#.3g}"
    ends = dict.fromkeys([place.first, place.last])
    return {
        "value": score,
        "text": text,
        "spread": f"± {half:#.2g}",
        "place": "–".join(map(str, ends)),
        "order": [place.first, place.last],
    }
