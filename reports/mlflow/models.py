"""Weights in MLflow: LoggedModels.

Each backbone that was trained or measured has one, so that MLflow's Models page compares backbones
by task. A LoggedModel of weights stored elsewhere (on a hub, in a file) is a reference: their
source, path and sha256 are tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reports.cell import TAGS
from reports.mlflow.client import tag_key
from reports.mlflow.run import Tracker


def model_name(name: str) -> str:
    """A backbone's name as MLflow accepts it for models.

    ``timm/resnet18.a1`` → ``timm-resnet18_a1``.
    """
    return re.sub(r"[/:%'\"]+", "-", name).replace(".", "_")


def logged_model(
    tracker: Tracker,
    name: str,
    sha256: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    run_id: str = "",
) -> str:
    """The id of the LoggedModel of these weights in the tracker's experiment; created if missing.

    Args:
        params, tags: set at its creation; empty values are left out.
        run_id: the run that trained them.
    """
    query = f"name = '{model_name(name)}' and tags.`{tag_key(TAGS['weights'])}` = '{sha256}'"
    models = tracker.client.search_logged_models([tracker.experiment_id], query, max_results=1)
    if models:
        return models[0].model_id
    model_tags = {
        tag_key(key): str(value)[:5000]
        for key, value in {**tags, TAGS["weights"]: sha256}.items()
        if value != ""
    }
    if not run_id:
        model_tags["mlflow.model.isExternal"] = "true"
    model_params = {key: str(value)[:500] for key, value in params.items() if value != ""}
    model = tracker.client.create_logged_model(
        tracker.experiment_id,
        model_name(name),
        run_id or None,
        model_tags,
        model_params,
        "backbone",
    )
    tracker.client.finalize_logged_model(model.model_id, "READY")
    return model.model_id
