"""Weights in MLflow: LoggedModels and versions in the model registry.

Each backbone that was trained or measured has a LoggedModel, so that MLflow's Models page compares
backbones by task. The registry has a model for each backbone's name and a version for each of its
weights. A LoggedModel of weights stored elsewhere (on a hub, in a file) is a reference: their
source, path and sha256 are tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.mlflow.client import PREFIX, WRONG_CALL, Client, tag_key
from reports.mlflow.query import StoredRun

if TYPE_CHECKING:
    from reports.mlflow.run import Tracker

MODEL_TAG, SHA_TAG = "model.id", "weights.sha256"
BASELINE, BEST = "baseline", "best"


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
    query = f"name = '{model_name(name)}' and tags.`{tag_key(SHA_TAG)}` = '{sha256}'"
    models = tracker.client.search_logged_models([tracker.experiment_id], query, max_results=1)
    if models:
        return models[0].model_id
    model_tags = {
        tag_key(key): str(value)[:5000]
        for key, value in {**tags, SHA_TAG: sha256}.items()
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


def register(
    client: Client,
    parents: Mapping[tuple[str, int], StoredRun],
    baseline: str,
    gains: Mapping[str, float],
) -> None:
    """Register the weights that a report compared as versions in the model registry.

    Each weights (sha256) is a version of the model with the backbone's name. Its tag
    ``gain.EXPERIMENT`` holds the mean gain. Alias ``baseline``: the baseline of the last report.
    Alias ``best``: the version of a backbone with the highest gain in this experiment, the newest
    of equal ones; of a training's seeds the first represents all.

    Args:
        parents: (backbone, seed) → its parent run.
    """
    for name in dict.fromkeys(backbone.partition("@")[0] for backbone, _ in parents):
        runs = [
            parents[key]
            for key in sorted(parents, key=lambda key: (key[1], parents[key].started))
            if key[0].partition("@")[0] == name
        ]
        versions = _versions(client, name, [run for run in runs if run.tags.get(MODEL_TAG)])
        if not versions:
            continue
        registered = model_name(name)
        experiment = re.sub(r"[^\w./ -]", "_", runs[0].experiment)  # as a tag's key can hold it
        first, tag = versions[0], f"{PREFIX}gain.{experiment}"
        gain = 0.0 if name == baseline else gains.get(name)
        if gain is not None:
            client.set_model_version_tag(registered, first.version, tag, repr(float(gain)))
        if name == baseline:
            client.set_registered_model_alias(registered, BASELINE, first.version)
        every = client.search_model_versions(f"name = '{registered}'")
        best = max(
            (version for version in every if tag in version.tags),
            key=lambda version: (float(version.tags[tag]), int(version.version)),
            default=first,
        )
        client.set_registered_model_alias(registered, BEST, best.version)


def _versions(client: Client, name: str, runs: Sequence[StoredRun]) -> list[Any]:
    """The versions of these runs' weights, in the order of the runs; missing ones are created."""
    from mlflow.exceptions import MlflowException

    registered = model_name(name)
    if not runs:
        return []
    try:
        client.create_registered_model(
            registered, {f"{PREFIX}backbone": name}, f"Weights of the backbone `{name}`."
        )
    except MlflowException as error:
        if error.error_code not in WRONG_CALL:
            raise
    versions = {
        version.tags.get(tag_key(SHA_TAG)): version
        for version in client.search_model_versions(f"name = '{registered}'")
    }
    for run in runs:
        sha256 = run.tags[SHA_TAG]
        if sha256 not in versions:
            model = client.get_logged_model(run.tags[MODEL_TAG])
            versions[sha256] = client.create_model_version(
                registered,
                model.artifact_location,
                model.source_run_id,
                {tag_key(SHA_TAG): sha256, tag_key("seed"): run.tags.get("seed", "")},
                model_id=model.model_id,
            )
    return [versions[run.tags[SHA_TAG]] for run in runs]
