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


def with_facts(fields: Fields, code: ModuleType, side: int) -> Fields:
    """``fields`` with the facts in ``READ`` of a protocol's module.

    These would take a GPU, weights or a whole training to compute, so they were read in the
    source: probe, or its kind → name → (the source's, the suite's).

    Args:
        side: 0 for the source's, 1 for the suite's.
    """
    return {
        probe: {
            **values,
            **{
                name: pair[side]
                for kind, facts in getattr(code, "READ", {}).items()
                if probe.startswith(kind)
                for name, pair in facts.items()
            },
        }
        for probe, values in fields.items()
    }


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
