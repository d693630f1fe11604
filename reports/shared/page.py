"""The leaderboard: one offline page of a folder of shared results."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from reports.render.frames import place_cell
from reports.shared.standings import Leaderboard, SharedColumn, rank_backbones


def render_leaderboard(results: Leaderboard, title: str, about: str) -> str:
    """The page as text.

    Args:
        about: a sentence below the title.
    """
    import jinja2

    columns = list(results.columns.values())
    protocols = [column.conditions for column in columns]
    content = {
        "backbones": [{"name": name, **details} for name, details in results.backbones.items()],
        "columns": [_column(column) for column in columns],
        "groups": _groups(columns),
        "protocols": protocols,
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_source("reports.shared", "leaderboard.html.j2")).render(
        title=title,
        about=about,
        style=_source("reports.render", "style.css"),
        script=_source("reports.shared", "leaderboard.js"),
        content=text.replace("<", "\\u003c"),
    )


def _column(column: SharedColumn) -> dict[str, Any]:
    """A column, and its numbers by backbone."""
    return {
        "task": column.task,
        "kind": column.kind,
        "metric": column.metric.label or column.name,
        "unit": column.metric.unit,
        "direction": column.metric.direction,
        "images": column.images,
        "cells": {
            name: {
                **place_cell(place),
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
        for label in ("all tasks", f"probe: {column.probe}", f"data: {column.dataset}"):
            members[label].append(number)
    tasks = [column.task for column in columns]
    for number, task in enumerate(tasks):
        letter = f" ({chr(65 + tasks[:number].count(task))})" if tasks.count(task) > 1 else ""
        members[f"task: {task}{letter}"].append(number)
    groups = []
    for label, numbers in members.items():
        places = rank_backbones([columns[number] for number in numbers])
        ranked = {name: place_cell(place) for name, place in places.items()}
        groups.append({"label": label, "columns": numbers, "places": ranked})
    return groups


@functools.cache
def _source(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
