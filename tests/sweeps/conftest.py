"""Storages of studies, and an MLflow experiment for each test."""

from __future__ import annotations

import pytest

from reports.tracking import Tracker


@pytest.fixture
def url(tmp_path):
    """An SQLite storage."""
    return f"sqlite:///{tmp_path / 'sweeps.db'}"


POSTGRES = pytest.param("postgres_database", marks=pytest.mark.cluster)


@pytest.fixture(params=["url", POSTGRES])
def storage(request):
    """Each kind of storage in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(store, tmp_path):
    return Tracker(tmp_path.name, store)
