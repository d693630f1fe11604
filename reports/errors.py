"""Errors of the tracking store that the user can mend."""


class TrackingError(ValueError):
    """The store cannot be used, or holds something unreadable; one line that says what to do. The command exits with 2."""

    exit_code = 2
