"""Scores over the values of a setting: figures, the best value, and where features change mode.

Of an axis in ``BASELINES`` gains over one of its values are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np

from reports.comparison import Analysis
from reports.figures import COLOURS, SYMBOLS, Figure, Style, backbone_styles, make_layout, points
from reports.records import PARTS, Cell, metric_key
from reports.selection import TaskColumn
from reports.statistics import MIN_LIKENESS, Estimate, difference, estimate, part_likeness
from reports.store import Store
from reports.tables import with_interval

SAMPLES = {"train_share": "share of train", "shots": "training images of each class"}
BASELINES = {"upsampler": "bilinear"}  # axis → value
ZERO_LINE = {"rangemode": "tozero", "zerolinecolor": "var:muted"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Variant:
    """A backbone's number on a variant of a task, and its values: axis → text."""

    backbone: str
    column: TaskColumn
    values: Mapping[str, str]

    def text(self, *without: str) -> str:
        """The values on all other axes."""
        shown = [f"{name}={value}" for name, value in self.values.items() if name not in without]
        return ", ".join(shown)

    def estimate(self, analysis: Analysis) -> Estimate:
        """The main metric."""
        return analysis.estimates[self.backbone, self.column, self.column.main]

    def seconds(self, analysis: Analysis) -> str:
        """``, 0.12 s an image`` to encode, upsample and perhaps predict; '' on other axes."""
        if not BASELINES.keys() & self.values.keys():
            return ""
        costs = [cell.costs for cell in analysis.selection.cells[self.backbone, self.column]]
        names = ("encode_images_per_second", "eval_images_per_second")
        seconds = [sum(1 / cost[name] for name in names if cost.get(name)) for cost in costs]
        return f", {np.mean(seconds):.2g} s an image" if any(seconds) else ""


def task_variants(analysis: Analysis) -> dict[str, list[Variant]]:
    """Task → its variants by backbone, of tasks that ran with several values of a setting."""
    columns: dict[str, list[TaskColumn]] = defaultdict(list)
    for column in analysis.selection.columns:
        if column.letter in ("", "A") and analysis.selection.column_cells(column):
            columns[column.base].append(column)
    result = {}
    for task, of_task in columns.items():
        if len(of_task) < 2:
            continue
        # a part without a name, as in voc/linear:0.1, is a share of train or a number of shots
        sampled = any("=" not in part for column in of_task for part in _parts(column))
        values = {column: _values(analysis, column, sampled) for column in of_task}
        result[task] = [
            Variant(backbone, column, values[column])
            for backbone in analysis.selection.backbones
            for column in of_task
            if (backbone, column, column.main) in analysis.estimates
        ]
    return result


def _parts(column: TaskColumn) -> list[str]:
    return column.task.split(":")[1:]


def _values(analysis: Analysis, column: TaskColumn, sampled: bool) -> dict[str, str]:
    values = dict(part.split("=", 1) for part in _parts(column) if "=" in part)
    if sampled:
        params = analysis.selection.column_cells(column)[0].params
        name = "shots" if "shots" in params else "train_share"
        values[name] = params.get(name, "1")
    return values


def axis_figures(analysis: Analysis) -> list[Figure]:
    """One for each task and axis: the main metric, or its gain, with intervals."""
    figures: list[Figure] = []
    for task, variants in task_variants(analysis).items():
        for axis in dict.fromkeys(axis for variant in variants for axis in variant.values):
            with_axis = [variant for variant in variants if axis in variant.values]
            if len({variant.values[axis] for variant in with_axis}) > 1:
                name = f"axis-{len(figures)}"
                figures.append(_figure(analysis, name, task, axis, with_axis))
    return figures


def _figure(
    analysis: Analysis, name: str, task: str, axis: str, variants: Sequence[Variant]
) -> Figure:
    lines: dict[tuple[str, str], list[Variant]] = defaultdict(list)
    for variant in variants:
        lines[variant.backbone, variant.text(axis)].append(variant)
    positions = _positions([variant.values[axis] for variant in variants])
    ticks = {x: _tick(axis, text) for text, x in positions.items()}
    styles = _styles(analysis, list(lines))
    baseline = BASELINES.get(axis, "")
    has_gains = any(variant.values[axis] == baseline for variant in variants)
    data: list[dict[str, Any]] = []
    alt = []
    for (backbone, other_values), line_variants in lines.items():
        title = f"{backbone}, {other_values}" if other_values else backbone
        by_value = {positions[variant.values[axis]]: variant for variant in line_variants}
        by_value = dict(sorted(by_value.items()))
        if has_gains:
            estimates = _gains(analysis, by_value, positions[baseline])
        else:
            estimates = {x: each.estimate(analysis) for x, each in by_value.items()}
        text = [
            f"{with_interval(each, 2, has_gains)} at {ticks[x]}{by_value[x].seconds(analysis)}"
            for x, each in estimates.items()
        ]
        base = by_value.get(positions.get(baseline, -1))
        about_base = [f"{baseline}{base.seconds(analysis)}"] if base else []
        alt.append(f"{title}: {', '.join([*about_base, *text])}")
        hover = [f"{title}: {words}" for words in text]
        style, dash = styles[backbone, other_values]
        line = points(title, style, [*estimates.values()], [*estimates], hover)
        mode = "markers" if has_gains else "lines+markers"  # values with a baseline have no order
        data.append({**line, "mode": mode, "line": {"color": style.colour, "dash": dash}})
    column = variants[0].column
    metric = column.metric(column.main)
    label = f"{metric.label or column.main}{f' ({metric.unit})' if metric.unit else ''}"
    about = SAMPLES.get(axis, axis)
    numbers = list(ticks)
    scale = {"type": "log"} if min(numbers) > 0 and max(numbers) >= 10 * min(numbers) else {}
    title = f"{about}, log" if scale else about
    better = "higher" if metric.direction > 0 else "lower"
    caption = f"{label} by {about}, {better} is better; separate 95 % intervals."
    if has_gains:
        label = f"{label}: gain over {baseline}"
        caption = (
            f"{label}, positive is better; paired, separate 95 % intervals. With the pointer: the"
            " seconds that an image costs with its encoding."
        )
    layout = make_layout(
        {**scale, "title": title, "tickvals": numbers, "ticktext": list(ticks.values())},
        {"title": label, **(ZERO_LINE if has_gains else {})},
        legend=True,
    )
    return Figure(name, task, caption, "; ".join(alt), {"data": data, "layout": layout}, 300)


def _gains(
    analysis: Analysis, by_value: Mapping[float, Variant], baseline: float
) -> dict[float, Estimate]:
    """Position → gain over the variant at ``baseline``, image by image; none without it."""
    gains = {}
    for x, variant in by_value.items():
        column, main = variant.column, variant.column.main
        if baseline in by_value and x != baseline:
            keys = [(each.backbone, each.column, main) for each in (variant, by_value[baseline])]
            mine, base = (analysis.samples[key] for key in keys)
            is_up = column.sign(main) > 0
            gap = difference(mine, base) if is_up else difference(base, mine)
            gains[x] = estimate(gap, analysis.seed_prior, column.metric(main).width)
    return gains


def _styles(
    analysis: Analysis, lines: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Style, str]]:
    """The look and the dash of each line: a colour for each backbone, or for each line of one."""
    if len({backbone for backbone, _ in lines}) == 1:
        own = [
            Style(COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)])
            for number in range(len(lines))
        ]
        return {line: (style, "solid") for line, style in zip(lines, own, strict=True)}
    styles, rest = (
        backbone_styles(analysis),
        list(dict.fromkeys(other_values for _, other_values in lines)),
    )
    return {
        (backbone, other_values): (styles[backbone], DASHES[rest.index(other_values) % len(DASHES)])
        for backbone, other_values in lines
    }


def best_values(analysis: Analysis) -> Iterator[str]:
    """One sentence for each backbone and task on the best values of its settings."""
    for task, variants in task_variants(analysis).items():
        named = [variant for variant in variants if variant.text(*SAMPLES)]
        for backbone, own in groupby(named, attrgetter("backbone")):
            if len(choices := list(own)) > 1:
                yield _best_line(analysis, backbone, task, choices)


def _best_line(analysis: Analysis, backbone: str, task: str, variants: Sequence[Variant]) -> str:
    column = variants[0].column
    cells = [analysis.selection.cells[backbone, each.column] for each in variants]
    metric = column.metric(column.main)
    label, sign = metric.label or column.main, metric.direction
    held_out = [held_out_score(each, column.main, sign) for each in cells]
    chosen = all(score is not None for score in held_out)
    val = [analysis.estimates[backbone, each.column, column.main].value for each in variants]
    scores = [score for score in held_out if score is not None] if chosen else val
    best = int(np.argmax(sign * np.array(scores)))
    values = variants[best].text()
    estimate = analysis.estimates[backbone, variants[best].column, column.main]
    if not chosen:
        return (
            f"{backbone} · {task}: {label} on val is best at {values}"
            f" ({with_interval(estimate, 1)}); this is not a choice: the probe has no scores on"
            " held-out training images."
        )
    return (
        f"{backbone} · {task}: {values} is best of {len(variants)}, chosen on held-out training"
        f" images ({label} {scores[best]:.1f}); on val {with_interval(estimate, 1)}."
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
    sentences = []
    for task, variants in task_variants(analysis).items():
        for backbone, own in groupby(variants, attrgetter("backbone")):
            lines: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
            for variant in own:
                cell = analysis.selection.cells[backbone, variant.column][0]
                arrays = store.arrays(cell, PARTS)
                size = variant.values.get("size", "")
                if arrays and size.isdigit():
                    features = arrays["features"].reshape(-1, arrays["features"].shape[-1])
                    lines[variant.text("size")][int(size)] = features
            changes: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
            for other_values, sizes in lines.items():
                for small, large in pairwise(sorted(sizes)):
                    share = part_likeness(sizes[small], sizes[large])
                    if share < MIN_LIKENESS:
                        changes[small, large][other_values] = share
            for (small, large), shares in changes.items():
                other_values = "; ".join(filter(None, shares))
                sentences.append(
                    f"{backbone} · {task}: features change mode between {small:g} and {large:g} px"
                    f"{f' at {other_values}' if other_values else ''}: parts of images keep at most"
                    f" {100 * max(0.0, *shares.values()):.0f} % of their likeness to themselves"
                    f" (usual: more than {100 * MIN_LIKENESS:.0f} %)."
                )
    return sentences


def _positions(texts: Sequence[str]) -> dict[str, float]:
    """Where values are on their axis: numbers of one unit at theirs; others in order, names first.

    Equal numbers in two spellings are two values.
    """
    names = sorted(dict.fromkeys(texts), key=lambda name: (name.endswith("%"), _number(name)))
    numbers = [_number(name) for name in names]
    units = {name.endswith("%") for name in names}
    is_scale = min(numbers) > -np.inf and len({*numbers}) == len(names) and len(units) == 1
    return dict(zip(names, numbers if is_scale else map(float, range(len(names))), strict=True))


def _number(text: str) -> float:
    """The number of a value; names come before all."""
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        return -np.inf


def _tick(axis: str, text: str) -> str:
    return f"{100 * float(text):g} %" if axis == "train_share" else text
