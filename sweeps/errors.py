"""The errors of a sweep."""

from cliptex_common.errors import UserError


class NoSweep(UserError):
    """There is no such study, or no storage yet."""


class TrialPruned(Exception):
    """The current trial is stopped early; it counts as finished, without a value."""

    run_status = "KILLED"  # of its MLflow runs
