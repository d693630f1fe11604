"""Optuna's own plots of a study, as HTML files that need nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from optuna import visualization

from sweeps.study import Sweep
from sweeps.summary import complete


def write_plots(sweep: Sweep, folder: Path) -> list[Path]:
    """Write ``history.html``, ``parallel_coordinates.html``, ``slice.html``, ``contour.html``, ``importances.html``, and with
    several objectives ``pareto.html`` (the others then once for each, ``history-NAME.html``); returns those written.

    A plot that the finished trials do not allow (importances of one trial, say) is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in _plots(sweep):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                figure = draw()
            except (ValueError, RuntimeError, ZeroDivisionError):
                continue
        if not figure.data:
            continue
        figure.update_layout(title=f"{figure.layout.title.text or name} · {sweep.name}")
        path = folder / f"{name}.html"
        figure.write_html(path, include_plotlyjs=True, full_html=True)
        written.append(path)
    return written


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
        some = {"params": varied, **target}
        yield f"history{end}", lambda target=target: visualization.plot_optimization_history(study, **target)  # type: ignore[misc]
        yield f"parallel_coordinates{end}", lambda some=some: visualization.plot_parallel_coordinate(study, **some)  # type: ignore[misc]
        yield f"slice{end}", lambda some=some: visualization.plot_slice(study, **some)  # type: ignore[misc]
        if len(varied) > 1:
            yield f"contour{end}", lambda some=some: visualization.plot_contour(study, **some)  # type: ignore[misc]
            yield f"importances{end}", lambda some=some: visualization.plot_param_importances(study, **some)  # type: ignore[misc]
    if sweep.prune:
        yield "intermediate_values", lambda: visualization.plot_intermediate_values(study)
