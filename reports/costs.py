"""What backbones cost, and what their features are like without labels, beside their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.comparison import Analysis, Judgement, shared_columns
from reports.figures import Figure, Quantity, Score, Style, backbone_styles, scatter
from reports.provenance import Provenance
from reports.records import Cell
from reports.selection import TaskColumn
from reports.statistics import Estimate, spearman
from reports.tables import bracketed, decimal, overview

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
        own = [
            cell for column in selection.columns for cell in selection.cells.get((name, column), ())
        ]
        rows[name] = {
            "device": next((cell.device for cell in own if run and cell.parent == run.run_id), ""),
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
    shared = shared_columns(selection, analysis.samples)
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
    for head in overview(analysis).columns:
        keys = {name: (name, head.column, head.metric) for name in analysis.selection.backbones}
        estimates = {
            name: analysis.estimates[key] for name, key in keys.items() if key in analysis.estimates
        }
        unit = f" ({head.unit})" if head.unit else ""
        arrow = "" if head.sign > 0 else ", lower is better"
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
