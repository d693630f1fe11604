"""The error a user can cause: one line that says what is wrong and what to do; the command line
exits with 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What a file, and not the program, is to blame for, where the error names one.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG)


class UserError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, and what to do about it.

    ``exit_code`` is what the command line ends with; it is looked up by attribute, so that packages
    which may not import one another can each have their own class.
    """

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: ``did you mean a, b?``, or when nothing is near the whole
    list, of which a long one is cut."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    more = f" and {len(known) - 50} more" if len(known) > 50 else ""
    return f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known[:50])}{more}"


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__


@contextmanager
def report_malformed(otherwise: str, mend: str = "get the file again") -> Iterator[None]:
    """Say in one line what a block, which must do nothing but look at what somebody's file says,
    stumbles over: a field that is missing, of another type, or a number that cannot be.

    Args:
        otherwise: the message's beginning, such as ``FILE is not a COCO annotation file``.
    Raises:
        UserError: it does.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{otherwise} (missing or wrong field: {error!r:.150}); {mend}") from error


def user_error_message(error: BaseException) -> str | None:
    """The one line for an error that the user can mend, or None for a bug.

    Looked at are the error and what it was raised ``from``, never what was merely being handled
    when it was raised: a bug in clearing up after a full disk is a bug.
    """
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        if getattr(cause, "exit_code", None) == 2:
            return "".join(
                one if one.isprintable() else repr(one)[1:-1]
                for one in " ".join(str(cause).split())
            )
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            mend = "choose another folder" if cause.errno == errno.EROFS else "free some space"
            return (
                f"cannot write {cause.filename or 'a file'}: {cause.strerror}; {mend} and run the"
                " command again"
            )
        if isinstance(cause, OSError) and cause.errno in FORBIDDEN and cause.filename is not None:
            return f"cannot use {cause.filename}: {cause.strerror}; mend that, or name another file"
        seen.append(cause)
        cause = cause.__cause__
    return None


class NonFiniteLoss(RuntimeError):
    """A loss or its gradient became NaN or infinite; the message says where. The run ends FAILED
    with this reason."""
