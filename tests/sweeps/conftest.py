"""Every kind of storage, and an MLflow experiment of the test's own in a store that is made
once."""

from __future__ import annotations

import pytest

from reports.mlflow.run import Tracker

KINDS = ("sqlite", "postgres", "journal")


def storage_of(kind, request):
    folder = request.getfixturevalue("tmp_path")
    if kind == "postgres":
        return request.getfixturevalue("postgres_database")
    return f"sqlite:///{folder / 'sweeps.db'}" if kind == "sqlite" else str(folder / "sweeps.log")


@pytest.fixture(params=KINDS)
def storage(request):
    """Each storage in turn."""
    return storage_of(request.param, request)


@pytest.fixture
def url(tmp_path):
    """One storage, for what does not depend on its kind."""
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(store, tmp_path):
    return Tracker(tmp_path.name, store)
