"""Figures whose reader selects what is on their axes: a score of backbones against something else
that is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.parts.figures import Figure, Style, make_layout, points
from reports.parts.tables import MOST_PAIRED, with_interval
from reports.stats.intervals import Estimate


@dataclass(frozen=True)
class Score:
    """What can be on the vertical axis.

    Attributes:
        estimates: by backbone; some may be missing.
    """

    title: str
    estimates: Mapping[str, Estimate]
    digits: int = 1


@dataclass(frozen=True)
class Quantity:
    """What can be on the horizontal axis.

    Attributes:
        values: by backbone; NaN where unknown.
    """

    title: str
    values: pd.Series
    is_log: bool = False


def scatter(
    name: str,
    title: str,
    caption: str,
    styles: Mapping[str, Style],
    menus: tuple[str, str],
    scores: Sequence[Score],
    quantities: Sequence[Quantity],
) -> Figure:
    """A point for each backbone, of the first score and quantity until the reader selects others.

    Its ``choices``: ``y`` and ``x`` have what replaces parts of the traces and of the layout.

    Args:
        menus: what scores and quantities are called.
        styles: of the backbones.
    """
    y = [_score_choice(score, styles) for score in scores]
    x = [_quantity_choice(quantity, list(styles)) for quantity in quantities]
    data = [{**trace, **at} for trace, at in zip(y[0]["data"], x[0]["data"], strict=True)]
    layout = make_layout({}, {}, legend=len(styles) <= MOST_PAIRED)
    alt = [
        ", ".join([each, *(f"{one.title} {one.values[each]:.4g}" for one in quantities)])
        for each in styles
    ]
    return Figure(
        name,
        title,
        caption,
        "; ".join(alt),
        {"data": data, "layout": {**layout, **y[0]["layout"], **x[0]["layout"]}},
        400,
        {menus[0]: [each.title for each in scores], menus[1]: [each.title for each in quantities]},
        {"y": y, "x": x},
    )


def _score_choice(score: Score, styles: Mapping[str, Style]) -> dict[str, Any]:
    """The traces without their places on the other axis, and the axis."""
    data = []
    for name, style in styles.items():
        estimate = score.estimates.get(name, Estimate(np.nan))
        trace = points(
            name, style, [estimate], [], [f"{name}: {with_interval(estimate, score.digits)}"]
        )
        del trace["x"]
        data.append(trace if name in score.estimates else {**trace, "y": [None]})
    axis = {"title": {"text": score.title}, "zerolinecolor": "var:muted"}
    return {"data": data, "layout": {"yaxis": axis}}


def _quantity_choice(quantity: Quantity, names: Sequence[str]) -> dict[str, Any]:
    hover = f"%{{text}}<br>{quantity.title}: %{{x:.4~g}}<extra></extra>"
    values = [quantity.values[name] for name in names]
    positions = [[value] if np.isfinite(value) else [None] for value in values]
    data = [{"x": position, "hovertemplate": hover} for position in positions]
    axis: dict[str, Any] = {"title": {"text": quantity.title}}
    if quantity.is_log:
        axis = {"type": "log", "title": {"text": f"{quantity.title}, log"}}
    return {"data": data, "layout": {"xaxis": axis}}
