"""Optuna's own plots of a study, as one page that needs nothing else."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from optuna import visualization

from sweeps.study import Sweep
from sweeps.summary import complete

PLOTS: dict[str, Callable[..., Any]] = {
    "parallel_coordinates": visualization.plot_parallel_coordinate,
    "slice": visualization.plot_slice,
    "contour": visualization.plot_contour,
    "importances": visualization.plot_param_importances,
}


def write_plots(sweep: Sweep, folder: Path) -> Path | None:
    """Write ``plots.html``: history and ``PLOTS`` (with several objectives once for each, and their Pareto front), with pruning
    intermediate values; returns its path, None while nothing is finished.

    Each is a ``<section>`` whose id is the plot's name (``history``; with several objectives ``history-NAME``). A plot that
    the finished trials do not allow (importances of one trial, say) is left out.
    """
    drawn: list[str] = []
    for name, draw in _plots(sweep):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                figure = draw()
            except (ValueError, RuntimeError, ZeroDivisionError):
                continue
        if figure.data:
            figure.update_layout(title=figure.layout.title.text or name)
            # plotly's script (4.6 MB) once, with the first
            plot = figure.to_html(full_html=False, include_plotlyjs=not drawn)
            drawn.append(f'<section id="{html.escape(name)}">{plot}</section>')
    if not drawn:
        return None
    title, path = f"Plots of {html.escape(sweep.name)}", folder / "plots.html"
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
    path.write_text("\n".join([head, f"<body><h1>{title}</h1>", *drawn, "</body></html>\n"]), encoding="utf-8")
    return path


def _plots(sweep: Sweep) -> Iterator[tuple[str, Callable[[], Any]]]:
    study = sweep.study
    varied = [setting.name for setting in sweep.space.settings if setting.values or setting.low is not None]
    if not complete(sweep):
        return
    several = len(sweep.objectives) > 1
    if several and len(sweep.objectives) <= 3:
        names = [objective.label for objective in sweep.objectives]
        yield "pareto", lambda: visualization.plot_pareto_front(study, target_names=names)
    for number, objective in enumerate(sweep.objectives):
        target: dict[str, Any] = {"target_name": objective.label}
        if several:
            target["target"] = lambda trial, number=number: trial.values[number]
        end = f"-{objective.name.replace('/', '.')}" if several else ""
        yield f"history{end}", partial(visualization.plot_optimization_history, study, **target)
        for name, draw in PLOTS.items():
            yield f"{name}{end}", partial(draw, study, params=varied, **target)
    if sweep.prune:
        yield "intermediate_values", lambda: visualization.plot_intermediate_values(study)
