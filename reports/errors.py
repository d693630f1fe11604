"""Errors of the tracking store that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrackingError(ValueError):
    """The store cannot be used, or holds something unreadable; one line that says what to do. The
    command exits with 2."""

    exit_code = 2


def damaged(artifact: str, run_id: str, run_name: str, error: Exception) -> TrackingError:
    """What to say of an artifact that is there but cannot be read."""
    told = next(iter(str(error).splitlines()), "")[:120] or "unreadable"
    return TrackingError(
        f"the artifact {artifact} of run {run_id} ({run_name}) is damaged ({type(error).__name__}:"
        f" {told}); run that task again with --force, or delete the run"
    )


def instead(name: str, known: Iterable[str]) -> str:
    """What to name instead of ``name``: the nearest one, or all there are."""
    there = sorted(known)
    near = difflib.get_close_matches(name, there, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(there) or 'none'}"
