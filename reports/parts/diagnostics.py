"""Diagnostics of training features without labels: tables, and how tasks' metrics follow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.analysis import Analysis
from reports.cell import Cell
from reports.parts.costs import main_scores
from reports.parts.figures import Figure, backbone_styles
from reports.parts.scatter import Quantity, scatter
from reports.parts.tables import bracketed, decimal
from reports.stats.correlation import spearman

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
