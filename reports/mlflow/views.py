"""A saved view of an experiment's runs in MLflow's UI.

One row for each backbone and seed, one column and bar for each task. MLflow (3.14 and later) lists
such views, JSON in an experiment's tags, under "Views"; a link names one. The content is what the
UI's own "Save view" writes.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

from reports.cell import TAGS
from reports.mlflow.client import Client, metric_key, tag_key

VIEW = "cliptex"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MAIN_TAG = TAGS["main_metrics"]
MOST = 100  # columns; MLflow accepts 20,000 characters


def save_view(client: Client, experiment_id: str) -> None:
    """Write the view of an experiment, with the tasks of its newest parent runs."""
    runs = client.search_runs([experiment_id], f"tags.`{MAIN_TAG}` != ''", max_results=200)
    names = dict.fromkeys(
        metric_key(name)
        for run in runs
        for name in run.data.tags[MAIN_TAG].split(",")
        if "/" in name
    )
    state = json.dumps(_state(list(names)[:MOST]))
    now = int(time.time() * 1000)
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode())).decode()
    view = {"name": "Backbones by task", "createdAt": now, "updatedAt": now, "state": packed}
    client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps(view))


def view_link(ui: str, experiment_id: str) -> str:
    """The address of an experiment's saved view in the UI at ``ui``."""
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return f"{ui.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _state(metrics: list[str]) -> dict[str, Any]:
    columns = ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in metrics)]
    charts = [
        {
            "type": "BAR",
            "uuid": f"main-{number}",
            "metricSectionId": "main",
            "metricKey": name,
            "displayName": name,
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
        }
        for number, name in enumerate(metrics)
    ]
    section = {"uuid": "main", "name": "Main metrics", "display": True, "isReordered": True}
    return {
        "searchFilter": f"tags.`{tag_key(TAGS['run_key'])}` != ''",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }
