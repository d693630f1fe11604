"""Optuna's own plots of a study, as figures for the report."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

from optuna import visualization

from sweeps.study import Sweep
from sweeps.summary import complete

OF_PARAMS = (
    visualization.plot_parallel_coordinate,
    visualization.plot_slice,
    visualization.plot_contour,
    visualization.plot_param_importances,
)


def plots(sweep: Sweep) -> list[dict[str, Any]]:
    """Title and Plotly JSON (``spec``) of each plot; empty while nothing is finished.

    History and ``OF_PARAMS`` of each objective, the Pareto front of several, and intermediate
    values with pruning. A plot that the finished trials do not allow (importances of one trial) is
    left out.
    """
    if not complete(sweep):
        return []
    study, labels = sweep.study, [objective.label for objective in sweep.objectives]
    varied = [name for name, setting in sweep.space.settings.items() if setting.varied]
    functions = []
    if 1 < len(labels) <= 3:
        functions.append(partial(visualization.plot_pareto_front, study, target_names=labels))
    for number, label in enumerate(labels):
        target: dict[str, Any] = {"target_name": label}
        if len(labels) > 1:
            target["target"] = lambda trial, number=number: trial.values[number]
        functions.append(partial(visualization.plot_optimization_history, study, **target))
        functions += [partial(plot, study, params=varied, **target) for plot in OF_PARAMS]
    if sweep.prune:
        functions.append(partial(visualization.plot_intermediate_values, study))
    figures: list[dict[str, Any]] = []
    for function in functions:
        with warnings.catch_warnings(), suppress(ValueError, RuntimeError, ZeroDivisionError):
            warnings.simplefilter("ignore")
            figure = function()
            if figure.data:
                title = figure.layout.title.text
                figure.update_layout(template=None, title=None)  # the report has its own
                figures.append({"title": title, "spec": json.loads(figure.to_json())})
    return figures
