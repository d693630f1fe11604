"""The errors of a sweep."""

from common.errors import UserError


class NoSweep(UserError):
    """There is no such study, or no storage yet."""


class TrialPruned(Exception):
    """The trial under way is bad enough to be stopped; it counts as finished, without a value of
    its own."""

    run_status = "KILLED"  # of its MLflow runs
