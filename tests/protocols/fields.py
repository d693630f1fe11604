"""What a golden record is made of, how it is stored and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

RECORDS = Path(__file__).parent / "records"
# what has a record and is no protocol, and its module
OTHERS = {
    "dpt": "experts.dpt",
    "nll-angmf": "experts.nll_angmf",
    "davis2017": "metrics.davis2017",
    "tokencut": "metrics.tokencut",
}

# differences that no record holds: they were read in a source, where computing them would take a
# GPU, weights or a whole training
READ = {
    "beit": {"final norm"},
    "capi": {
        "two classes",
        "held-out split",
        "size of test images",
        "samplers",
        "first weights",
    },
    "dinov3": {"final norm of ConvNeXt", "backbone in training", "published numbers"},
    "dreamsim": {"tokens", "interpolation"},
    "hummingbird": {"seeds of crops", "classes of COCO"},
    "jafar": {"test images", "resizing", "flip", "classes of ADE20K", "head precision"},
    "mae": {
        "augmentation",
        "features",
        "initial head",
        "lowest rate",
        "precision",
        "normalised black",
        "last batch",
    },
    "navi": {"matching"},
    "probe3d": {
        "MAE's blocks",
        "SigLIP's blocks",
        "pixels without a normal",
        "stored normals",
        "order of files",
        "views paired with themselves",
        "tokens",
        "few points",
        "mean colour",
        "scale of colours",
    },
    "probe3d-head": {"MAE's blocks", "pixels without a normal", "stored normals"},
    "radio": {"class tokens"},
    "visbench": {
        "training images of a record",
        "test depth",
        "stored normals",
        "pixels without a normal",
        "training images",
    },
    "vitdet": {"scale jitter", "attention", "precision"},
    "vtab": {
        "optimizer",
        "initial head",
        "augmentation",
        "image",
        "chosen images",
        "normalised black",
    },
}

# A preset's probe (``segmentation/linear``) → field → a number, a text, or nested lists of them.
Fields = Mapping[str, Mapping[str, Any]]


def module(name: str) -> ModuleType:
    """The module that computes the fields of a protocol, an expert or a metric."""
    return import_module(f"tests.protocols.{OTHERS.get(name, name).replace('-', '_')}")


def record_path(name: str) -> Path:
    """The file of a record."""
    return RECORDS / OTHERS.get(name, "").rpartition(".")[0] / f"{name}.json"


def plain(value: Any) -> Any:
    """A field as JSON has it; floats keep eight significant digits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read_record(name: str) -> dict[str, Any]:
    """``source`` (repository and commit), ``versions`` and ``fields`` of a record."""
    return json.loads(record_path(name).read_text(encoding="utf-8"))


def differing_fields(recorded: Fields, ours: Fields, tolerance: Mapping[str, float]) -> Any:
    """The fields of each probe that are not equal.

    Args:
        tolerance: of a field, absolute; 1e-5 relative where it has none.

    Raises:
        AssertionError: one side has fields that the other lacks.
    """
    differing: dict[str, list[str]] = {}
    assert set(recorded) == set(ours)
    for probe, fields in recorded.items():
        assert set(fields) == set(ours[probe]), probe
        differing[probe] = [
            name
            for name, value in fields.items()
            if not _equal(value, plain(ours[probe][name]), tolerance.get(name))
        ]
    return differing


def _equal(recorded: Any, ours: Any, tolerance: float | None) -> bool:
    if isinstance(recorded, dict):
        return (
            isinstance(ours, dict)
            and set(recorded) == set(ours)
            and all(_equal(value, ours[key], tolerance) for key, value in recorded.items())
        )
    try:
        expected, actual = np.asarray(recorded, float), np.asarray(ours, float)
    except (TypeError, ValueError):  # texts, or lists of several lengths
        if isinstance(recorded, list) and isinstance(ours, list):
            pairs = zip(recorded, ours, strict=False)
            return len(recorded) == len(ours) and all(_equal(*pair, tolerance) for pair in pairs)
        return recorded == ours
    if expected.shape != actual.shape:
        return False
    if tolerance is not None:
        return bool(np.allclose(expected, actual, rtol=0, atol=tolerance, equal_nan=True))
    return bool(np.allclose(expected, actual, rtol=1e-5, atol=1e-7, equal_nan=True))
