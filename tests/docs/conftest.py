"""The entry points that the documentation shows, as if their packages were installed."""

from __future__ import annotations

import configparser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
from backbones.cliptex.experts import EXPERTS
from backbones.cliptex.tasks import TASKS
from backbones.registry import BACKBONES
from probes.registry import DATASETS, PROBES
from tests.docs.blocks import blocks

REGISTRIES = {
    registry.group: registry for registry in (BACKBONES, DATASETS, EXPERTS, PROBES, TASKS)
}


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """One MLflow store for all of these tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('docs')}/mlflow.db"


@pytest.fixture
def folder(tmp_path, monkeypatch, store) -> Path:
    """An empty folder to be in, with that store and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path


@pytest.fixture
def entry_points(monkeypatch) -> list[EntryPoint]:
    """Those of all blocks; what they register is gone after the test."""
    points = set()
    for block in blocks("ini"):
        config = configparser.ConfigParser(delimiters="=")
        config.optionxform = str
        config.read_string(block.text)
        for group, text in config["options.entry_points"].items():
            for line in filter(None, map(str.strip, text.splitlines())):
                name, value = map(str.strip, line.split("="))
                points.add(EntryPoint(name, value, group))
    monkeypatch.setattr(
        "common.registry.entry_points",
        lambda group: [p for p in points if p.group == group],
    )
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "data", dict(registry))
        monkeypatch.setattr(registry, "broken", {})
    return sorted(points)
