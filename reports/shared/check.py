"""Verifying shared results: each identity and metric is computed again from the file itself."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from cliptex_common.files import content_key
from reports.detections import FILE as DETECTIONS
from reports.errors import TrackingError
from reports.metrics import declared
from reports.npz import read_npz
from reports.shared.archive import (
    ENVIRONMENT,
    PARAMS,
    PARENT_TAGS,
    PER_IMAGE,
    PROTOCOL,
    TASK_TAGS,
    SharedResults,
    SharedRun,
)
from reports.stats.per_image import ImageScores, agrees, image_scores, why_unscored

COST = "cost/"
ABOUT = ("name", "source", "licence", "config")  # of a backbone in run.json, beside its identity


def verify(results: SharedResults) -> dict[str, ImageScores]:
    """Verify all runs of a file; returns the per-image scores of the task runs, by id.

    Raises:
        TrackingError: a run lacks a field, its protocol or identity is not the one that its hash
            was made of, its images are not those of other runs on the same data, or a metric does
            not follow from its per-image scores.
    """
    parents = {run.id: run for run in results.runs if run.parent is None}
    images: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    scores = {}
    for run in results.runs:
        try:
            if run.parent is None:
                _require(run, PARENT_TAGS)
                continue
            scores[run.id] = _verify_task(results, run, parents[run.parent])
        except _Refused as error:
            raise TrackingError(f"{results.title}: {_label(run)}: {error}") from error
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            problem = f"a field or file is missing or damaged ({error!r})"
            raise TrackingError(f"{results.title}: {_label(run)}: {problem}") from error
        data = run.tags["task"], run.tags["data.fingerprint"]
        first, names = images.setdefault(data, (_label(run), scores[run.id].images))
        if names != scores[run.id].images:
            raise TrackingError(
                f"{results.title}: {_label(run)}: its images are not those of {first}, though both"
                " claim the same data"
            )
    return scores


class _Refused(Exception):
    """Why a run is not believed."""


def _label(run: SharedRun) -> str:
    tags = run.tags
    words = [tags.get("backbone", run.name), tags.get("task", ""), f"seed {tags.get('seed', '?')}"]
    return " · ".join(filter(None, words))


def _require(run: SharedRun, tags: tuple[str, ...]) -> None:
    protocols = {tag for tag in run.tags if tag.startswith("protocol.") and run.parent is None}
    if unknown := run.tags.keys() - set(tags) - protocols:
        raise _Refused(f"unknown tag {min(unknown)!r}")
    if unknown := run.params.keys() - set(PARAMS):
        raise _Refused(f"unknown parameter {min(unknown)!r}")


def _verify_task(results: SharedResults, run: SharedRun, parent: SharedRun) -> ImageScores:
    _require(run, TASK_TAGS)
    tags, conditions = run.tags, results.json(f"{run.id}/{PROTOCOL}")
    for tag in ("backbone", "seed", "weights.sha256"):
        if tags[tag] != parent.tags[tag]:
            raise _Refused(f"its {tag} is not that of its parent run")
    if content_key(conditions) != tags["protocol"]:
        raise _Refused("its protocol is not the one that the tag `protocol` is the hash of")
    dataset = conditions["dataset"]
    if conditions["task"] != tags["task"] or dataset["fingerprint"] != tags["data.fingerprint"]:
        raise _Refused("task or data fingerprint are not those of its protocol")
    identity = results.json(f"{parent.id}/{ENVIRONMENT}")["backbone"]
    if identity["sha256"] != tags["weights.sha256"]:
        raise _Refused("its weights are not those of its parent run")
    cell = {"backbone": identity, "protocol": conditions, "seed": int(tags["seed"])}
    if content_key(cell) != tags["cell"]:
        raise _Refused(
            "backbone, protocol and seed are not those that the tag `cell` is the hash of"
        )
    scores = run_scores(tags["kind"], results.members, run.id)
    if scores is None:
        raise _Refused(why_unscored(tags["kind"]))
    metrics = {name: value for name, value in run.metrics.items() if not name.startswith(COST)}
    main = next(iter(declared(tags)))
    if main not in metrics:
        raise _Refused(f"its main metric {main} is missing")
    for name, value in metrics.items():
        again = scores.value(name) if name in scores.metrics else np.nan
        if not agrees(again, value):
            raise _Refused(f"{name} is {value:.6g}, but {again:.6g} by its per-image scores")
    return scores


def run_scores(kind: str, members: Mapping[str, bytes], run_id: str) -> ImageScores | None:
    """The per-image scores of a task run."""
    arrays = {}
    for name in (PER_IMAGE, DETECTIONS):
        if content := members.get(f"{run_id}/{name}"):
            arrays[name] = read_npz(content)
    if PER_IMAGE not in arrays:
        return None
    return image_scores(kind, arrays[PER_IMAGE], arrays.get(DETECTIONS))
