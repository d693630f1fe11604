"""Weights in MLflow: a LoggedModel for each backbone that was made or measured, so that its Models
page compares backbones by task, and the model registry, with a model for each backbone's name and a
version for each of its weights.

A LoggedModel of weights that lie elsewhere – of a hub, in a file – is a reference: their source,
path and sha256 are tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.mlflow.client import CALLERS_FAULT, PREFIX, Client, tag_key
from reports.mlflow.query import StoredRun

if TYPE_CHECKING:
    from reports.mlflow.run import Tracker

MODEL_TAG, SHA_TAG = "model.id", "weights.sha256"
BASELINE, BEST = "baseline", "best"


def model_name(name: str) -> str:
    """A backbone's name as MLflow admits it for models: ``timm/resnet18.a1`` →
    ``timm-resnet18_a1``."""
    return re.sub(r"[/:%'\"]+", "-", name).replace(".", "_")


def logged_model(
    tracker: Tracker,
    name: str,
    sha256: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    run_id: str = "",
) -> str:
    """The id of the LoggedModel of these weights in the tracker's experiment: found by their sha256
    and name, or made.

    Args:
        params, tags: what it is told where it is made; empty ones are left out.
        run_id: the run that trained them.
    """
    wanted = f"name = '{model_name(name)}' and tags.`{tag_key(SHA_TAG)}` = '{sha256}'"
    found = tracker.client.search_logged_models([tracker.experiment_id], wanted, max_results=1)
    if found:
        return found[0].model_id
    about = {
        tag_key(key): str(value)[:5000]
        for key, value in {**tags, SHA_TAG: sha256}.items()
        if value != ""
    }
    if not run_id:
        about["mlflow.model.isExternal"] = "true"
    told = {key: str(value)[:500] for key, value in params.items() if value != ""}
    made = tracker.client.create_logged_model(
        tracker.experiment_id, model_name(name), run_id or None, about, told, "backbone"
    )
    tracker.client.finalize_logged_model(made.model_id, "READY")
    return made.model_id


def register(
    client: Client,
    parents: Mapping[tuple[str, int], StoredRun],
    baseline: str,
    gains: Mapping[str, float],
) -> None:
    """Weights that a report compared become versions in the model registry.

    A version for each weights (sha256), in a model with the backbone's name. Its tag
    ``gain.EXPERIMENT`` is the mean gain that the report found. Alias ``baseline``: what the others
    were compared with last. Alias ``best``: of a backbone's versions the one with the highest gain
    in this experiment, of equals the newest; of a training's seeds the first stands for all.

    Args:
        parents: (backbone, seed) → its parent run.
    """
    for name in dict.fromkeys(backbone.partition("@")[0] for backbone, _ in parents):
        mine = sorted(
            (seed, run)
            for (backbone, seed), run in parents.items()
            if backbone.partition("@")[0] == name
        )
        versions = _versions(client, name, [run for _, run in mine if run.tags.get(MODEL_TAG)])
        if not versions:
            continue
        registered = model_name(name)
        first, tag = versions[0], f"{PREFIX}gain.{_tag_name(mine[0][1].experiment)}"
        gain = 0.0 if name == baseline else gains.get(name)
        if gain is not None:
            client.set_model_version_tag(registered, first.version, tag, repr(float(gain)))
        if name == baseline:
            client.set_registered_model_alias(registered, BASELINE, first.version)
        scored = [
            one for one in client.search_model_versions(f"name = '{registered}'") if tag in one.tags
        ]
        best = max(scored, key=lambda one: (float(one.tags[tag]), int(one.version)), default=first)
        client.set_registered_model_alias(registered, BEST, best.version)


def _tag_name(experiment: str) -> str:
    """An experiment's name as a tag's key can hold it."""
    return re.sub(r"[^\w./ -]", "_", experiment)


def _versions(client: Client, name: str, runs: Sequence[StoredRun]) -> list[Any]:
    """The versions of the weights of these runs, in their order; those that are not there are
    made."""
    from mlflow.exceptions import MlflowException

    registered, found = model_name(name), list[Any]()
    if not runs:
        return found
    try:
        client.create_registered_model(
            registered, {f"{PREFIX}backbone": name}, f"Weights of the backbone `{name}`."
        )
    except MlflowException as error:
        if error.error_code not in CALLERS_FAULT:
            raise
    there = {
        one.tags.get(tag_key(SHA_TAG)): one
        for one in client.search_model_versions(f"name = '{registered}'")
    }
    for run in runs:
        sha256 = run.tags[SHA_TAG]
        if sha256 not in there:
            model = client.get_logged_model(run.tags[MODEL_TAG])
            tags = {tag_key(SHA_TAG): sha256, tag_key("seed"): run.tags.get("seed", "")}
            there[sha256] = client.create_model_version(
                registered,
                model.artifact_location,
                model.source_run_id,
                tags,
                model_id=model.model_id,
            )
        found.append(there[sha256])
    return found
