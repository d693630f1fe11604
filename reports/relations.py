"""Scores beside something else that is known: the values of a setting (figures, the best value,
where features change mode), what backbones cost, and diagnostics of features without labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from reports.comparison import Analysis, Judgement
from reports.figures import (
    Figure,
    Quantity,
    Score,
    Style,
    backbone_styles,
    cycled_styles,
    make_layout,
    points,
    scatter,
)
from reports.provenance import Provenance
from reports.records import PARTS, Cell, metric_key, variant_parts
from reports.selection import TaskColumn
from reports.statistics import MIN_LIKENESS, Estimate, difference, estimate, part_likeness, spearman
from reports.store import Store
from reports.tables import bracketed, decimal, main_columns, with_interval

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
    return [part for part in variant_parts(column.task) if part != column.tier]


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
        main = variant.column.main
        if baseline in by_value and x != baseline:
            own, base = (
                analysis.samples[each.backbone, each.column, main]
                for each in (variant, by_value[baseline])
            )
            metric = variant.column.metric(main)
            gap = difference(own, base) if metric.direction > 0 else difference(base, own)
            gains[x] = estimate(gap, analysis.seed_prior, metric.width)
    return gains


def _styles(
    analysis: Analysis, lines: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Style, str]]:
    """The look and the dash of each line: a colour for each backbone, or for each line of one."""
    if len({backbone for backbone, _ in lines}) == 1:
        return {line: (style, "solid") for line, style in cycled_styles(lines).items()}
    styles = backbone_styles(analysis)
    rest = list(dict.fromkeys(other_values for _, other_values in lines))
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


STAGE_METRICS = {
    "experts": "experts_seconds",
    "labelling": "label_seconds",
    "training": "train_seconds",
}  # part → cost of parent runs
PRECISION = "fp32"  # in which speed and memory of backbones are measured
BEATEN_OPACITY = 0.45
Better = Mapping[str, Collection[str]]  # backbone → those that are better than it beyond doubt


@dataclass(frozen=True)
class CostAxis:
    """A cost as an axis shows it.

    Attributes:
        scale: what one shown unit is, in the unit that it is stored in.
        sign: +1 where less is cheaper, else -1.
    """

    title: str
    scale: float = 1.0
    sign: int = 1


COST_AXES = {
    "parameters": CostAxis("parameters (M)", 1e6),
    "flops_per_image": CostAxis("GFLOPs an image", 1e9),
    "images_per_second": CostAxis("images a second, more is cheaper", sign=-1),
    "latency_ms": CostAxis("latency of one image (ms)"),
    "memory_mb": CostAxis("peak memory (MB)"),
    "seconds": CostAxis("seconds of experts, labels, training and probing"),
}  # column of ``cost_frame`` → its axis


def cost_frame(analysis: Analysis, provenance: Provenance) -> pd.DataFrame:
    """What each backbone costs, a row each: device, precision, image size, and costs in the units
    that they are stored in; ``seconds`` is the sum of ``stage_seconds``. NaN where unknown."""
    selection, seconds = analysis.selection, stage_seconds(analysis)
    rows = {}
    for name in selection.backbones:
        run = selection.parent(name)
        of_run = (
            cell.device
            for column in selection.columns
            for cell in selection.cells.get((name, column), ())
            if run and cell.parent == run.run_id
        )
        rows[name] = {
            "device": next(of_run, ""),
            "precision": PRECISION,
            "image_size": provenance.backbones[name]["Resolution"],
            **{cost: run.costs.get(cost) if run else None for cost in COST_AXES},
            "seconds": sum(seconds[name].values()) if name in seconds else None,
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("backbone")
    return frame.astype(dict.fromkeys(COST_AXES, float))


def stage_seconds(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Backbone → seconds of experts, labelling, training and probing, means over its seeds.

    Probing is summed over the tasks that all backbones have, of several protocols of a task the
    mean, so that no backbone looks cheap because it lacks a task.
    """
    result: dict[str, dict[str, float]] = {}
    selection = analysis.selection
    shared = [
        column
        for column in selection.columns
        if len(analysis.numbers(column, column.main)) == len(selection.backbones)
    ]
    for name in selection.backbones:
        parents = [run for (backbone, _), run in selection.parents.items() if backbone == name]
        means = pd.DataFrame([run.costs for run in parents]).mean()
        parts = {
            part: float(means[metric]) for part, metric in STAGE_METRICS.items() if metric in means
        }
        seconds = [
            (column.task, column.letter, cell.costs.get("seconds", np.nan))
            for column in shared
            for cell in selection.cells[name, column]
        ]
        probing = pd.DataFrame(seconds, columns=["task", "letter", "seconds"]).dropna()
        by_column = probing.groupby(["task", "letter"])["seconds"].mean()
        if len(by_column):
            parts["probing"] = float(by_column.groupby("task").mean().sum())
        if parts:
            result[name] = parts
    return result


def costs_of_backbones(
    analysis: Analysis, judgements: Mapping[str, Judgement], costs: pd.DataFrame
) -> list[Figure]:
    """The mean gain and each task's main metric against each cost.

    Args:
        judgements: of all pairs (``judge_pairs``).
    """
    names, baseline = analysis.selection.backbones, analysis.selection.baseline
    gains = {name: gain.mean for name, gain in analysis.gains.items()}
    scores: list[Score] = []
    better: list[Better] = []
    if gains:

        def of_gain(judged: Judgement, name: str) -> str:
            return judged.gains[name].mean.verdict() if name in judged.gains else ""

        better.append(_better(names, judgements, of_gain))
        title = f"mean gain over {baseline} (%)"
        scores.append(Score(title, {baseline: Estimate(0.0), **gains}))
    for score, column in main_scores(analysis):
        scores.append(score)
        outcome = lambda judged, name, of=column: judged.outcome(name, of)
        better.append(_better(names, judgements, outcome))
    caption = (
        " Seconds are means over seeds, of the tasks that all have; those of weights that were"
        " trained elsewhere are unknown."
    )
    return cost_figure(backbone_styles(analysis), scores, better, costs, caption)


def _better(
    names: Sequence[str],
    judgements: Mapping[str, Judgement],
    outcome: Callable[[Judgement, str], str],
) -> dict[str, list[str]]:
    """Backbone → those that are better than it, in either comparison of the two."""
    pairs = set()
    for base, judged in judgements.items():
        for name in names:
            verdict = outcome(judged, name)
            if verdict in ("win", "loss"):
                pairs.add((name, base) if verdict == "win" else (base, name))
    return {name: [rival for rival in names if (rival, name) in pairs] for name in names}


def main_scores(analysis: Analysis) -> list[tuple[Score, TaskColumn]]:
    """The main metric of each column of the overview."""
    scores = []
    for head in main_columns(analysis):
        estimates = analysis.numbers(head.column, head.metric)
        unit = f" ({head.unit})" if head.unit else ""
        arrow = "" if head.direction > 0 else ", lower is better"
        title = f"{head.column.title}: {head.label}{unit}{arrow}"
        scores.append((Score(title, estimates, head.digits), head.column))
    return scores


def cost_figure(
    styles: Mapping[str, Style],
    scores: Sequence[Score],
    better: Sequence[Better],
    costs: pd.DataFrame,
    caption: str = "",
) -> list[Figure]:
    """Scores against costs, with the front; no figure where no cost of two backbones is known.

    Args:
        better: of each score.
        costs: as of ``cost_frame``; may lack some.
    """
    styles = {name: style for name, style in styles.items() if name in costs.index}
    shown = [cost for cost in COST_AXES if cost in costs and costs[cost].count() > 1]
    shown.sort(key=lambda cost: costs[cost].nunique() == 1)  # those that differ come first
    if not shown or not scores:
        return []
    quantities = [
        Quantity(COST_AXES[cost].title, costs[cost] / COST_AXES[cost].scale, is_log=True)
        for cost in shown
    ]
    caption = (
        "Pale: another one is better beyond doubt at no more cost. Open: one seed, or no interval."
        f" Speed and memory: {cost_conditions(costs)}.{caption}"
    )
    title = "Scores against costs"
    figure = scatter("cost", title, caption, styles, ("score", "cost"), scores, quantities)
    fronts = [
        [on_front(costs[cost], each, COST_AXES[cost].sign) for cost in shown] for each in better
    ]
    # replaced, like axes and traces, when the reader selects another score or cost
    figure.choices["opacity"] = [
        [[1.0 if name in front else BEATEN_OPACITY for name in styles] for front in of_score]
        for of_score in fronts
    ]
    for trace, opacity in zip(figure.spec["data"], figure.choices["opacity"][0][0], strict=True):
        trace["opacity"] = opacity
    return [figure]


def on_front(costs: Mapping[str, float] | pd.Series, better: Better, sign: int = 1) -> set[str]:
    """The backbones with a known cost that no better one undercuts or equals in cost.

    Args:
        sign: +1 where less is cheaper, else -1.
    """
    finite = {str(name): sign * cost for name, cost in costs.items() if np.isfinite(cost)}
    return {
        name
        for name, cost in finite.items()
        if not any(finite.get(rival, np.inf) <= cost for rival in better.get(name, ()))
    }


def cost_conditions(costs: pd.DataFrame) -> str:
    """Precision, image size and device that speed and memory were measured with."""
    devices, sizes = (
        [value for value in costs[column].unique() if value] for column in ("device", "image_size")
    )
    size = f"images of {sizes[0]}" if len(sizes) == 1 else "images of each backbone's own size"
    words = f"{PRECISION}, {size}, on {' and '.join(devices) or 'an unknown device'}"
    return f"{words}, which cannot be compared" if len(devices) > 1 else words


DIAGNOSTICS = {
    "rankme": "RankMe",
    "rankme_share": "RankMe / min(N, D)",
    "alpha": "α-ReQ",
    "alpha_r2": "R² of α",
    "stable_rank": "stable rank",
    "two_nn": "TwoNN",
}  # as probes log them → title
FEWEST = 8  # backbones that a correlation is shown of


@dataclass(frozen=True)
class Diagnostics:
    """The diagnostics of one dataset's features.

    Attributes:
        title: dataset, what the features are of, and their number N.
        values, spread: rows are backbones, columns those of ``DIAGNOSTICS``; the mean over seeds.
    """

    title: str
    values: pd.DataFrame
    spread: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """``value ± spread`` as text, the backbone first."""
        texts = {
            title: [
                f"{decimal(value, 2)} ± {decimal(spread, 2)}" if np.isfinite(value) else "–"
                for value, spread in zip(self.values[name], self.spread[name], strict=True)
            ]
            for name, title in DIAGNOSTICS.items()
        }
        return pd.DataFrame({"backbone": self.values.index, **texts})


def collect_diagnostics(analysis: Analysis) -> list[Diagnostics]:
    """A table for each dataset and kind of features, of the first of its columns that has most
    backbones; all are of the same number of features."""
    selection = analysis.selection
    tables: dict[str, Diagnostics] = {}
    for column in selection.columns:
        cells = [cell for cell in selection.column_cells(column) if cell.label_free]
        if not cells:
            continue
        number, _ = Counter(cell.label_free["features"] for cell in cells).most_common(1)[0]
        cells = [cell for cell in cells if cell.label_free["features"] == number]
        part = "patches" if column.kind == "segmentation" else "embeddings"
        table = Diagnostics(
            f"{cells[0].dataset}, {part} of train, N = {number:.0f}",
            _means(cells, {name: name for name in DIAGNOSTICS}),
            _means(cells, {name: f"{name}_spread" for name in DIAGNOSTICS}),
        )
        key = f"{cells[0].dataset} {part}"
        if key not in tables or len(table.values) > len(tables[key].values):
            tables[key] = table
    return list(tables.values())


def _means(cells: Sequence[Cell], columns: Mapping[str, str]) -> pd.DataFrame:
    """Means over the cells of each backbone; ``columns``: name → as it is logged."""
    frame = pd.DataFrame([cell.label_free for cell in cells], [cell.backbone for cell in cells])
    chosen = frame.reindex(columns=[*columns.values()]).set_axis([*columns], axis=1)
    return chosen.groupby(level=0, sort=False).mean()


def diagnostics_figures(analysis: Analysis, tables: list[Diagnostics]) -> list[Figure]:
    """Each task's main metric against the diagnostics, with Spearman's ρ; none for fewer than
    ``FEWEST`` backbones."""
    figures = []
    styles = backbone_styles(analysis)
    scores = [score for score, _ in main_scores(analysis)]
    for number, table in enumerate(tables):
        shown = [name for name in DIAGNOSTICS if table.values[name].count() >= FEWEST]
        if not shown or not scores:
            continue
        own = {name: styles[name] for name in table.values.index}
        quantities = [Quantity(DIAGNOSTICS[name], table.values[name]) for name in shown]
        title = f"Metrics against diagnostics: {table.title}"
        caption = "Spearman's ρ over the backbones; of many intervals, some exclude zero by chance."
        menus = ("metric", "diagnostic")
        figure = scatter(f"diagnostics-{number}", title, caption, own, menus, scores, quantities)
        values = [pd.Series({n: e.value for n, e in s.estimates.items()}) for s in scores]
        figure.choices["notes"] = [[_note(q.values, v) for q in quantities] for v in values]
        figure.spec["layout"] |= figure.choices["notes"][0][0]
        figures.append(figure)
    return figures


def _note(x: pd.Series, y: pd.Series) -> dict[str, object]:
    """ρ as a part of the layout."""
    rho, low, high = spearman(x, y)
    text = f"ρ = {decimal(rho, 2)} {bracketed(low, high, 2)}"
    corner = {
        "x": 1,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "right",
        "yanchor": "top",
    }
    return {"annotations": [{**corner, "text": text, "showarrow": False}]}
