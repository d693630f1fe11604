"""Errors of the tracking store that the user can fix."""

from __future__ import annotations

from cliptex_common.errors import UserError, first_line


class TrackingError(UserError):
    """The MLflow store cannot be used, or holds something unreadable."""


def damaged(artifact: str, run_id: str, run_name: str, error: Exception) -> TrackingError:
    """The error for an artifact that exists but cannot be read."""
    return TrackingError(
        f"the artifact {artifact} of run {run_id} ({run_name}) is damaged "
        f"({type(error).__name__}: {first_line(error)}); "
        "run that task again with --force, or delete the run"
    )
