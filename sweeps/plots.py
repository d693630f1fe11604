"""Optuna's own plots of a study: as one page that needs nothing else, and as figures for the
report."""

from __future__ import annotations

import html
import json
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from optuna import visualization as plots

from sweeps.study import Sweep
from sweeps.summary import complete

OF_PARAMS = (
    plots.plot_parallel_coordinate,
    plots.plot_slice,
    plots.plot_contour,
    plots.plot_param_importances,
)


def write_plots(sweep: Sweep, folder: Path) -> list[Path]:
    """Write ``plots.html`` and ``plots.json`` (a list of title and Plotly JSON): history and
    ``OF_PARAMS`` for each objective, with several ones their Pareto front, with pruning
    intermediate values. Returns their paths, [] while nothing is finished.

    A plot that the finished trials do not allow (importances of one trial, say) is left out.
    """
    if not complete(sweep):
        return []
    study, labels = sweep.study, [objective.label for objective in sweep.objectives]
    varied = [setting.name for setting in sweep.space.settings if setting.varied]
    draws = (
        [partial(plots.plot_pareto_front, study, target_names=labels)]
        if 1 < len(labels) <= 3
        else []
    )
    for number, label in enumerate(labels):
        target: dict[str, Any] = {"target_name": label}
        if len(labels) > 1:
            target["target"] = lambda trial, number=number: trial.values[number]
        draws.append(partial(plots.plot_optimization_history, study, **target))
        draws += [partial(draw, study, params=varied, **target) for draw in OF_PARAMS]
    if sweep.prune:
        draws.append(partial(plots.plot_intermediate_values, study))
    drawn: list[str] = []
    figures: list[dict[str, Any]] = []
    for draw in draws:
        with warnings.catch_warnings(), suppress(ValueError, RuntimeError, ZeroDivisionError):
            warnings.simplefilter("ignore")
            figure = draw()
            if figure.data:  # plotly's script (4.6 MB) once, with the first
                plot = figure.to_html(full_html=False, include_plotlyjs=not drawn)
                drawn.append(f"<section>{plot}</section>")
                title = figure.layout.title.text
                figure.update_layout(template=None, title=None)  # the report has its own
                spec = json.loads(figure.to_json())
                figures.append(
                    {"title": title, "spec": {"data": spec["data"], "layout": spec["layout"]}}
                )
    title, path = f"Plots of {html.escape(sweep.name)}", folder / "plots.html"
    head = (
        '<!doctype html>\n<html lang="en"><head><meta'
        f' charset="utf-8"><title>{title}</title></head>'
    )
    path.write_text(
        "\n".join([head, f"<body><h1>{title}</h1>", *drawn, "</body></html>\n"]), encoding="utf-8"
    )
    data = folder / "plots.json"
    data.write_text(json.dumps(figures), encoding="utf-8")
    return [path, data]
