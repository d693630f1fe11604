"""Frozen and tuned numbers of the same tasks side by side: whether the order of the backbones
holds, which pairs swap, and what tuning gains."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from reports.comparison import Analysis
from reports.figures import SYMBOLS, Figure, backbone_styles, error_bars, make_layout
from reports.selection import TaskColumn
from reports.statistics import LEVEL, Estimate, MetricSample
from reports.tables import bracketed, count, decimal, with_interval

FEWEST = 3  # backbones that have an order
Conditions = Mapping[TaskColumn, Mapping[str, Any]]  # of columns; see ``provenance``
# conditions that tiers are meant to differ in
OF_TIER = (
    *("task", "tuning", "parts", "settings.tune", "settings.tune_rates", "settings.layer_decay"),
    *("settings.drop_path", "settings.checkpointing", "settings.accumulate", "settings.ema"),
)


@dataclass(frozen=True)
class Pair:
    """A task's frozen column and one of its tuned ones, and the backbones that have both.

    Attributes:
        differences: what both differ in, beside the tier: condition → (frozen, tuned).
    """

    frozen: TaskColumn
    tuned: TaskColumn
    backbones: tuple[str, ...]
    differences: Mapping[str, tuple[Any, Any]]

    @property
    def direction(self) -> int:
        return self.frozen.metric(self.frozen.main).direction

    def samples(self, analysis: Analysis, column: TaskColumn) -> list[MetricSample]:
        """Of each backbone, in a column."""
        return [analysis.samples[name, column, column.main] for name in self.backbones]

    def values(self, analysis: Analysis, column: TaskColumn) -> np.ndarray:
        """(B,) the main metric of each backbone, higher is better."""
        samples = self.samples(analysis, column)
        return self.direction * np.array([each.value for each in samples])


def tier_pairs(analysis: Analysis, conditions: Conditions) -> dict[str, list[Pair]]:
    """Tier → its tasks that ran frozen, too: of several frozen protocols the one that most
    backbones share, of these the one that differs least (then the oldest); of several tuned ones
    the oldest."""
    frozen: dict[str, list[TaskColumn]] = defaultdict(list)
    for column in analysis.selection.columns:
        if not column.tier:
            frozen[column.task].append(column)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for column in analysis.selection.columns:
        untuned = frozen.get(column.task.replace(f":{column.tier}", ""), [])
        if not column.tier or column.letter not in ("", "A") or not untuned:
            continue
        candidates = []
        for each in untuned:
            backbones = tuple(
                name
                for name in analysis.selection.backbones
                if all((name, one, one.main) in analysis.samples for one in (each, column))
            )
            differences = _differences(conditions.get(each, {}), conditions.get(column, {}))
            candidates.append(Pair(each, column, backbones, differences))
        pair = min(candidates, key=lambda each: (-len(each.backbones), len(each.differences)))
        if pair.backbones:
            pairs[column.tier.removeprefix("tune=")].append(pair)
    return pairs


def _differences(frozen: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    first, second = (
        {
            name: value
            for name, value in pd.json_normalize(dict(each)).to_dict("records")[0].items()
            if str(name).removeprefix("head.").removeprefix("train.") not in OF_TIER
        }
        if each
        else {}
        for each in (frozen, tuned)
    )
    return {
        str(name).removeprefix("settings."): (first.get(name, "–"), second.get(name, "–"))
        for name in {**first, **second}
        if repr(first.get(name)) != repr(second.get(name))
    }


@dataclass(frozen=True)
class Order:
    """How the orders of the backbones agree between the frozen tier and another.

    Attributes:
        kendall, spearman: τ-b and ρ, means over tasks, with the ends of their 95 % intervals over
            resamples of images and seeds; NaN where an order does not vary.
        held, pairs: of pairs of backbones, of each task, those whose order is the same (a tie is
            one too), and all.
        swapped: pairs whose order is decided in both tiers, and is another: better when frozen,
            better when tuned, task.
    """

    kendall: tuple[float, float, float]
    spearman: tuple[float, float, float]
    held: int
    pairs: int
    swapped: tuple[tuple[str, str, str], ...]


def order_of(analysis: Analysis, pairs: Sequence[Pair]) -> Order:
    """The agreement over tasks that all have ``FEWEST`` backbones."""
    of_tasks = [(p.values(analysis, p.frozen), p.values(analysis, p.tuned)) for p in pairs]
    rows = agreement([(frozen[None], tuned[None]) for frozen, tuned in of_tasks])
    kendall, spearman = (
        (float(value[0]), *_interval_ends(resampled))
        for value, resampled in zip(rows, agreement(_resamples(analysis, pairs)), strict=True)
    )
    in_order = total = 0
    swapped = []
    for pair, (frozen, tuned) in zip(pairs, of_tasks, strict=True):
        for first, second in combinations(range(len(pair.backbones)), 2):
            total += 1
            signs = {np.sign(values[first] - values[second]) for values in (frozen, tuned)}
            in_order += len(signs) == 1
            names = pair.backbones[first], pair.backbones[second]
            verdicts = [
                analysis.lead(*names, column, column.main).verdict()
                for column in (pair.frozen, pair.tuned)
            ]
            if set(verdicts) == {"win", "loss"}:
                better_first = names if verdicts[0] == "win" else names[::-1]
                swapped.append((*better_first, pair.frozen.title))
    return Order(kendall, spearman, in_order, total, tuple(swapped))


TierValues = list[tuple[np.ndarray, np.ndarray]]  # of each task: (R, B) frozen, (R, B) tuned


def agreement(values: TierValues) -> tuple[np.ndarray, np.ndarray]:
    """(R,) τ-b and ρ of each row, means over the tasks whose numbers vary; NaN where none does."""
    if not values:
        return np.empty(0), np.empty(0)
    from scipy.stats import rankdata

    def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))

    taus, rhos = [], []
    for frozen, tuned in values:
        first, second = np.triu_indices(frozen.shape[1], 1)
        taus.append(
            correlation(*(np.sign(each[:, first] - each[:, second]) for each in (frozen, tuned)))
        )
        ranks = [rankdata(each, axis=1) for each in (frozen, tuned)]
        rhos.append(correlation(*(each - each.mean(axis=1, keepdims=True) for each in ranks)))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return np.nanmean(taus, axis=0), np.nanmean(rhos, axis=0)


def _interval_ends(resampled: np.ndarray) -> tuple[float, float]:
    """Of the 95 % interval; NaN without a finite number."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return np.nan, np.nan
    low, high = np.percentile(finite, (100 * LEVEL / 2, 100 * (1 - LEVEL / 2)))
    return float(low), float(high)


def _resamples(analysis: Analysis, pairs: Sequence[Pair]) -> TierValues:
    """The numbers of each resample: of the same images for all backbones and tiers of a task, and
    of seeds of each backbone, the same in both tiers; nothing where images are unknown."""
    rng = np.random.default_rng(0)
    of_tasks: TierValues = []
    for pair in pairs:
        tiers = [pair.samples(analysis, column) for column in (pair.frozen, pair.tuned)]
        scored = [each.resamples for tier in tiers for each in tier if each.resamples is not None]
        if len(scored) < 2 * len(pair.backbones):
            return []
        length = min(each.shape[1] for each in scored)
        numbers = np.empty((2, length, len(pair.backbones)))
        for row, both in enumerate(zip(*tiers, strict=True)):
            most = max(len(each.seeds) for each in both)
            uniform = rng.random((most, length))
            for tier, sample in enumerate(both):
                assert sample.resamples is not None
                seeds = len(sample.seeds)
                chosen = (uniform[:seeds] * seeds).astype(int)
                resampled = np.take_along_axis(sample.resamples[:, :length], chosen, axis=0)
                numbers[tier, :, row] = pair.direction * resampled.mean(axis=0)
        of_tasks.append((numbers[0], numbers[1]))
    shortest = min(len(frozen) for frozen, _ in of_tasks)
    return [(frozen[:shortest], tuned[:shortest]) for frozen, tuned in of_tasks]


def gain_frame(analysis: Analysis, conditions: Conditions = MappingProxyType({})) -> pd.DataFrame:
    """A row for each tier, task and backbone: ``frozen``, ``tuned`` and the ``gain`` of the main
    metric (positive is better), ``gain_percent`` of the frozen number, ``trained`` weights of the
    backbone, processor ``seconds`` of training (see ``probes.base.Cost``), and the relative gain
    for each million of weights and for each of these seconds. NaN where they were not recorded."""
    rows = []
    for tier, pairs in tier_pairs(analysis, conditions).items():
        for pair in pairs:
            numbers = zip(
                pair.backbones,
                pair.values(analysis, pair.frozen),
                pair.values(analysis, pair.tuned),
                strict=True,
            )
            for name, frozen, tuned in numbers:
                cells = analysis.selection.cells[name, pair.tuned]
                trained, seconds = (
                    np.mean([cell.costs.get(cost, np.nan) for cell in cells])
                    for cost in ("trained_parameters", "train_processor_seconds")
                )
                percent = 100 * (tuned - frozen) / abs(frozen) if frozen else np.nan
                rows.append(
                    {
                        "tier": tier,
                        "task": pair.frozen.title,
                        "backbone": name,
                        "frozen": pair.direction * frozen,
                        "tuned": pair.direction * tuned,
                        "gain": tuned - frozen,
                        "gain_percent": percent,
                        "trained": trained,
                        "seconds": seconds,
                        "percent_per_million": percent / trained * 1e6,
                        "percent_per_second": percent / seconds,
                    }
                )
    return pd.DataFrame(rows)


def tier_lines(analysis: Analysis, conditions: Conditions = MappingProxyType({})) -> list[str]:
    """What tuning does to the order and the numbers, some sentences for each tier, and where its
    tasks differ from the frozen ones in more than the tier."""
    frame = gain_frame(analysis, conditions)
    lines: list[str] = []
    for tier, pairs in tier_pairs(analysis, conditions).items():
        of_tier = frame[frame.tier == tier]
        means = of_tier.groupby("backbone", sort=False).mean(numeric_only=True)
        ordered = [pair for pair in pairs if len(pair.backbones) >= FEWEST]
        if ordered:
            order = order_of(analysis, ordered)
            tau, rho = (
                f"{decimal(value, 2)} {bracketed(low, high, 2)}"
                for value, low, high in (order.kendall, order.spearman)
            )
            lines.append(
                f"tune={tier}: On these tasks the frozen order holds for {order.held} of"
                f" {count(order.pairs, 'pair')}{_gains_most(of_tier)}."
                f" Kendall's τ {tau}, Spearman's ρ {rho}: means over"
                f" {count(len(ordered), 'task')}, intervals over images and seeds."
            )
            lines += [
                f"tune={tier}: beyond doubt {better} is ahead of {worse} in {task} when frozen, and"
                " behind when tuned."
                for better, worse, task in order.swapped
            ]
        words = []
        for name, row in means.iterrows():
            text = f"{name} {decimal(row.gain_percent, 1, True)} %"
            if np.isfinite(row.percent_per_million) and np.isfinite(row.percent_per_second):
                text += (
                    f" ({decimal(row.percent_per_million, 2, True)} for each million of trained"
                    f" weights, {decimal(row.percent_per_second, 3, True)} for each processor"
                    " second of training)"
                )
            words.append(text)
        tasks = count(len(pairs), "task")
        lines.append(f"tune={tier}: gain over frozen, mean over {tasks}: {', '.join(words)}.")
        for pair in pairs:
            if pair.differences:
                values = ", ".join(
                    f"{name} {there} when frozen and {here} when tuned"
                    for name, (there, here) in pair.differences.items()
                )
                lines.append(
                    f"tune={tier}: {pair.frozen.title} also differs in other conditions: {values}."
                )
    return lines


def _gains_most(frame: pd.DataFrame) -> str:
    """Who gains most in percent, on the tasks where the gain of each backbone is known."""
    table = frame.pivot(index="task", columns="backbone", values="gain_percent").dropna()
    return f"; {table.mean().idxmax()} gains most" if len(table) else ""


def tier_figures(analysis: Analysis, conditions: Conditions = MappingProxyType({})) -> list[Figure]:
    """Frozen against tuned, one for each task: above the line tuning gains."""
    by_task: dict[TaskColumn, list[tuple[str, Pair]]] = defaultdict(list)
    for tier, pairs in tier_pairs(analysis, conditions).items():
        for pair in pairs:
            by_task[pair.frozen].append((tier, pair))
    styles = backbone_styles(analysis)
    figures: list[Figure] = []
    for column, tiers in by_task.items():
        data, alt, ends = [], [], list[float]()
        for (tier, pair), symbol in zip(tiers, [*SYMBOLS] * len(tiers), strict=False):
            for name in pair.backbones:
                x, y = (
                    analysis.estimates[name, each, each.main] for each in (pair.frozen, pair.tuned)
                )
                text = f"{name}, {tier}: {with_interval(y, 2)}, frozen {with_interval(x, 2)}"
                data.append(_point(f"{name}, {tier}", x, y, styles[name].colour, symbol, text))
                alt.append(text)
                ends += [x.value, y.value]
        low, high = min(ends), max(ends)
        line = {"mode": "lines", "x": [low, high], "y": [low, high], "hoverinfo": "skip"}
        data.append({**line, "showlegend": False, "line": {"color": "var:muted", "dash": "dot"}})
        metric = column.metric(column.main)
        label = f"{metric.label or column.main}{f' ({metric.unit})' if metric.unit else ''}"
        side = "Above" if metric.direction > 0 else "Below"
        caption = f"{side} the line tuning gains; 95 % intervals of each number."
        layout = make_layout({"title": f"frozen: {label}"}, {"title": "tuned"}, legend=True)
        spec = {"data": data, "layout": layout}
        name = f"tiers-{len(figures)}"
        figures.append(Figure(name, column.title, caption, "; ".join(alt), spec))
    return figures


def _point(
    name: str, x: Estimate, y: Estimate, colour: str, symbol: str, text: str
) -> Mapping[str, object]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x.value],
        "y": [y.value],
        "error_x": error_bars([x], colour),
        "error_y": error_bars([y], colour),
        "marker": {"color": colour, "symbol": symbol, "size": 9},
        "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
    }
