"""The error a user can cause: one line that says what is wrong and what to do; the command line exits with 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, and what to do about it.

    ``exit_code`` is what the command line ends with; it is looked up by attribute, so that packages which may
    not import one another can each have their own class.
    """

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: ``did you mean a, b?``, or the whole list when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"


def users_line(error: BaseException) -> str | None:
    """The one line for an error that the user can mend; None for a bug.

    It is the error itself, or one that it was raised ``from``: with ``exit_code`` 2, or a disk that is full or cannot be
    written. What was merely being handled when it was raised (``__context__``) is another matter.
    """
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "exit_code", None) == 2:
            return " ".join(str(cause).split())
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return f"cannot write {cause.filename or 'a file'}: {cause.strerror}; free some space and run the command again"
        cause = cause.__cause__
    return None
