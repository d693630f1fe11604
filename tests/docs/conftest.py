"""A folder with an MLflow store, and the plugins that the documentation shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.commands.new import NAMES, template

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """One MLflow store for all of these tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('docs')}/mlflow.db"


@pytest.fixture
def folder(workdir, monkeypatch, store) -> Path:
    """An empty folder to be in, with that store and a home of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return workdir


@pytest.fixture
def plugin_files(tmp_path):
    """The plugins that the pages name."""
    for kind, name in NAMES.items():
        (tmp_path / f"{name}.py").write_text(template(kind, name))
    shutil.copytree(ROOT / "docs/examples", tmp_path, dirs_exist_ok=True)
