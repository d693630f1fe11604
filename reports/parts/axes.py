"""Scores over the values of a setting: figures, the best value, and where features change mode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from reports.analysis import Analysis
from reports.artifacts import PARTS
from reports.cell import Cell
from reports.mlflow.client import metric_key
from reports.mlflow.query import Store
from reports.parts.figures import COLOURS, SYMBOLS, Figure, Look, describe, looks, make_layout
from reports.parts.figures import points as points_of
from reports.selection import TaskProtocol
from reports.stats.modes import LEAST, likeness_kept

SAMPLES = {"train_share": "share of train", "shots": "training images of each class"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Variant:
    """A column of a task, and its values: axis → text."""

    column: TaskProtocol
    values: Mapping[str, str]

    def fixed_values(self, axis: str) -> tuple[tuple[str, str], ...]:
        """The values on all axes but one."""
        return tuple((name, value) for name, value in self.values.items() if name != axis)


def variants(analysis: Analysis) -> dict[str, list[Variant]]:
    """Task → its variants, of tasks that ran with several values of a setting."""
    columns: dict[str, list[TaskProtocol]] = defaultdict(list)
    for column in analysis.selection.columns:
        if column.letter in ("", "A") and analysis.selection.column_cells(column):
            columns[column.base].append(column)
    result = {}
    for task, several in columns.items():
        if len(several) > 1:
            sampled = any("=" not in part for column in several for part in _parts(column))
            result[task] = [
                Variant(column, _values(analysis, column, sampled)) for column in several
            ]
    return result


def _parts(column: TaskProtocol) -> list[str]:
    return column.task.split(":")[1:]


def _values(analysis: Analysis, column: TaskProtocol, sampled: bool) -> dict[str, str]:
    values = dict(part.split("=", 1) for part in _parts(column) if "=" in part)
    if sampled:
        params = analysis.selection.column_cells(column)[0].params
        name = "shots" if "shots" in params else "train_share"
        values[name] = params.get(name, "1")
    return values


def axis_figures(analysis: Analysis) -> list[Figure]:
    """One for each task and axis: the main metric with intervals."""
    figures: list[Figure] = []
    for task, several in variants(analysis).items():
        axes = dict.fromkeys(axis for variant in several for axis in variant.values)
        for axis in axes:
            on_axis = [variant for variant in several if axis in variant.values]
            if len({variant.values[axis] for variant in on_axis}) > 1:
                name = f"axis-{len(figures)}"
                figures.append(_figure(analysis, name, task, axis, on_axis))
    return figures


def _figure(
    analysis: Analysis, name: str, task: str, axis: str, several: Sequence[Variant]
) -> Figure:
    lines: dict[tuple[str, str], list[Variant]] = defaultdict(list)
    for backbone in analysis.selection.backbones:
        for variant in several:
            if (backbone, variant.column, variant.column.main) in analysis.estimates:
                lines[backbone, _text(variant.fixed_values(axis))].append(variant)
    values = sorted(
        {_number(variant.values[axis]): variant.values[axis] for variant in several}.items()
    )
    ticks = {x: _tick(axis, text) for x, text in values}
    styles = _styles(analysis, list(lines))
    data: list[dict[str, Any]] = []
    alt = []
    for (backbone, fixed), on_line in lines.items():
        title = f"{backbone}, {fixed}" if fixed else backbone
        by_value = {_number(variant.values[axis]): variant.column for variant in on_line}
        estimates = {
            x: analysis.estimates[backbone, by_value[x], by_value[x].main] for x in sorted(by_value)
        }
        text = [f"{describe(each, 2)} at {ticks[x]}" for x, each in estimates.items()]
        alt.append(f"{title}: {', '.join(text)}")
        hover = [f"{title}: {words}" for words in text]
        look, dash = styles[backbone, fixed]
        line = points_of(title, look, [*estimates.values()], [*estimates], hover)
        data.append({**line, "mode": "lines+markers", "line": {"color": look.colour, "dash": dash}})
    column = several[0].column
    metric = column.metric(column.main)
    label = f"{metric.label or column.main}{f' ({metric.unit})' if metric.unit else ''}"
    about = SAMPLES.get(axis, axis)
    numbers = [x for x, _ in values]
    scale = {"type": "log"} if min(numbers) > 0 and max(numbers) >= 10 * min(numbers) else {}
    title = f"{about}, log" if scale else about
    layout = make_layout(
        {**scale, "title": title, "tickvals": numbers, "ticktext": list(ticks.values())},
        {"title": label},
        legend=True,
    )
    better = "higher" if metric.direction > 0 else "lower"
    caption = f"{label} by {about}, {better} is better; separate 95 % intervals."
    return Figure(name, task, caption, "; ".join(alt), {"data": data, "layout": layout}, 300)


def _styles(
    analysis: Analysis, lines: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Look, str]]:
    """The look and the dash of each line: a colour for each backbone, or for each line of one."""
    if len({backbone for backbone, _ in lines}) == 1:
        own = [
            Look(COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)])
            for number in range(len(lines))
        ]
        return {line: (look, "solid") for line, look in zip(lines, own, strict=True)}
    style, rest = looks(analysis), list(dict.fromkeys(fixed for _, fixed in lines))
    return {
        (backbone, fixed): (style[backbone], DASHES[rest.index(fixed) % len(DASHES)])
        for backbone, fixed in lines
    }


def axis_lines(store: Store, analysis: Analysis) -> list[str]:
    """One sentence for each backbone and task on the best values, then those on changes of mode."""
    return [*_best(analysis), *mode_changes(store, analysis)]


def _best(analysis: Analysis) -> Iterator[str]:
    for task, several in variants(analysis).items():
        named = [variant for variant in several if set(variant.values) - SAMPLES.keys()]
        for backbone in analysis.selection.backbones:
            present = [
                variant
                for variant in named
                if (backbone, variant.column) in analysis.selection.cells
            ]
            if len(present) > 1:
                yield _best_line(analysis, backbone, task, present)


def _best_line(analysis: Analysis, backbone: str, task: str, several: Sequence[Variant]) -> str:
    column = several[0].column
    cells = [analysis.selection.cells[backbone, each.column] for each in several]
    metric = column.metric(column.main)
    label, sign = metric.label or column.main, metric.direction
    held_out = [held_out_score(each, column.main, sign) for each in cells]
    chosen = all(score is not None for score in held_out)
    val = [analysis.estimates[backbone, each.column, column.main].value for each in several]
    scores = [score for score in held_out if score is not None] if chosen else val
    best = int(np.argmax(sign * np.array(scores)))
    values = _text(tuple(several[best].values.items()))
    estimate = analysis.estimates[backbone, several[best].column, column.main]
    if not chosen:
        return (
            f"{backbone} · {task}: {label} on val is best at {values} ({describe(estimate, 1)});"
            " this is not a choice: the probe has no scores on held-out training images."
        )
    return (
        f"{backbone} · {task}: {values} is best of {len(several)}, chosen on held-out training"
        f" images ({label} {scores[best]:.1f}); on val {describe(estimate, 1)}."
    )


def held_out_score(cells: Sequence[Cell], main: str, sign: int) -> float | None:
    """The best score that a probe's own choice reached on held-out training images, the mean over
    seeds; None where it chose nothing."""
    prefix = f"{metric_key(main)}/"
    best = []
    for cell in cells:
        scores = [value for name, value in cell.held_out.items() if name.startswith(prefix)]
        if not scores:
            return None
        best.append(sign * max(sign * score for score in scores))
    return float(np.mean(best))


def mode_changes(store: Store, analysis: Analysis) -> list[str]:
    """Where features change mode between neighbouring sizes, a sentence each."""
    changes: dict[tuple[str, str, str, str], list[tuple[str, float]]] = defaultdict(list)
    for task, several in variants(analysis).items():
        for backbone in analysis.selection.backbones:
            lines: dict[tuple[tuple[str, str], ...], dict[float, np.ndarray]] = defaultdict(dict)
            for variant in several:
                cells = analysis.selection.cells.get((backbone, variant.column), [])
                arrays = store.arrays(cells[0], PARTS) if cells else {}
                if arrays and "size" in variant.values:
                    features = arrays["features"].reshape(-1, arrays["features"].shape[-1])
                    lines[variant.fixed_values("size")][_number(variant.values["size"])] = features
            for fixed, sizes in lines.items():
                for small, large in pairwise(sorted(sizes)):
                    share = likeness_kept(sizes[small], sizes[large])
                    if share < LEAST:
                        key = backbone, task, f"{small:g}", f"{large:g}"
                        changes[key].append((_text(fixed), share))
    return [
        f"{backbone} · {task}: features change mode between {small} and {large} px"
        f"{_listed([fixed for fixed, _ in shares])}: parts of images keep at most"
        f" {100 * max(0.0, *(share for _, share in shares)):.0f} % of their likeness to themselves"
        f" (usual: more than {100 * LEAST:.0f} %)."
        for (backbone, task, small, large), shares in changes.items()
    ]


def _listed(fixed: Sequence[str]) -> str:
    words = [each for each in fixed if each]
    return f" at {'; '.join(words)}" if words else ""


def _text(values: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values)


def _number(text: str) -> float:
    """Where a value is on its axis; names come first."""
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        return 0.0


def _tick(axis: str, text: str) -> str:
    return f"{100 * float(text):g} %" if axis == "train_share" else text
