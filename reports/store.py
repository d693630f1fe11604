"""Reaching an MLflow store: its address, a client that fails fast, and names as MLflow can hold them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from reports.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"


def tracking_uri(given: str | None = None) -> str:
    """The store to use: what was given, else ``MLFLOW_TRACKING_URI``, else MLflow's own default in the working directory.

    Raises:
        TrackingError: a file store (``./mlruns`` or ``file:…``), which MLflow 3.13 and later refuse to write.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{uri!r} is no MLflow database or server (file stores are refused since MLflow 3.13); "
            "use sqlite:///FILE.db, postgresql://… or http://…"
        )
    return uri


def connect(uri: str) -> MlflowClient:
    """A client on the store at ``uri``, which is made and migrated when it is a new database.

    Raises:
        TrackingError: the store cannot be reached, or a newer MLflow wrote it.
    """
    # Telemetry would reach for the network; a missing server must be said in seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # An unreachable database is tried ten times with growing pauses by default.
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool" if uri.startswith("sqlite") else "QueuePool")
    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    try:
        _check_database(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"cannot use the MLflow store at {hide_password(uri)}: {_first_line(error)}; "
            "start the server or give another --tracking-uri"
        ) from error
    return client


def _check_database(uri: str) -> None:
    """Ask a database once, quickly, before MLflow does it slowly."""
    if uri.startswith(("http://", "https://", "databricks")):
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(connection).get_table_names()
            if "alembic_version" in tables:
                revision = connection.execute(sqlalchemy.text("select version_num from alembic_version")).scalar()
                _check_revision(uri, revision)
    finally:
        engine.dispose()


def _check_revision(uri: str, revision: str | None) -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(uri))
    known = {r.revision for r in script.walk_revisions()}
    if revision not in known:
        raise TrackingError(
            f"{hide_password(uri)} was written by a newer MLflow (schema {revision}); upgrade mlflow or use another store"
        )


def metric_key(name: str) -> str:
    """A metric's name as MLflow admits it: ``i2t_R@1`` → ``i2t_R_at_1`` (``@`` is not allowed there)."""
    return name.replace("@", "_at_")


def metric_name(key: str) -> str:
    """The inverse of ``metric_key``."""
    return key.replace("_at_", "@")


def hide_password(uri: str) -> str:
    """``uri`` fit for printing."""
    scheme, _, rest = uri.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}:***@{host}" if at and ":" in user else uri


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
