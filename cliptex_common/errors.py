"""What a user is shown: errors that a user can cause, in one line that says what is wrong and what
to do (the command line exits with 2), and texts without passwords and tokens: streams, tags, notes,
files and arguments.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# caused by a file, not by the program, where the error names the file
UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST),
    *(errno.EINVAL, errno.ENAMETOOLONG),
)


class UserError(ValueError):
    """The user's input is wrong. The message is one line: what is wrong, and what to do."""


class NotDownloaded(UserError):
    """Something is not on this disk, and there is no network to get it."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """A hint for an unknown ``name``: ``did you mean a, b?``, or up to 20 of the ``choices``."""
    choices = sorted(choices)
    if close := difflib.get_close_matches(name, choices, n=3, cutoff=0.5):
        return f"did you mean {', '.join(close)}?"
    more = f" and {len(choices) - 20} more" * (len(choices) > 20)
    return f"known: {', '.join(choices[:20]) or 'none'}{more}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__


def error_summary(error: BaseException) -> str:
    """Class and message of an error in one line of at most 400 characters."""
    first, *others = f"{type(error).__name__}: {error}".splitlines()
    return " ".join([first, *(line.strip() for line in others[: first.endswith(":")])])[:400]


@contextmanager
def report_malformed(message: str, advice: str = "get the file again") -> Iterator[None]:
    """Report the errors of a block that parses a user's file as one line: a field is missing, of
    another type, or has an impossible value.

    Args:
        message: beginning of the line, such as ``FILE is not a COCO annotation file``.

    Raises:
        UserError: the block raises such an error.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{message} (missing or wrong field: {error!r:.150}); {advice}") from error


def user_error_message(error: BaseException) -> str | None:
    """The line to show for an error that the user can fix, or None for a bug.

    Considers the error and its causes (``raise … from``), not its context: a bug while cleaning up
    after a full disk is a bug.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        advice = "choose another folder" if error.errno == errno.EROFS else "free some space"
        return (
            f"cannot write {error.filename or 'a file'}: {error.strerror}; {advice} and run the"
            " command again"
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; fix that, or name another path"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        excerpt = ascii(error.object[max(0, error.start - 40) : error.end + 20])
        return f"a name is not UTF-8, in {excerpt}; rename the file, folder or class"
    return user_error_message(error.__cause__) if error.__cause__ else None


class RunFailed(RuntimeError):
    """Work failed for a reason that the message says in full: no bug, so that nobody is shown a
    traceback. A command ends with 1."""


class NonFiniteLoss(RunFailed):
    """A loss, its gradient, or features of images or texts became NaN or infinite; the message says
    where. The run ends FAILED with this reason."""


class OutOfMemory(RunFailed):
    """Work does not fit into the memory of a device; the message says which, and what helps. The
    run ends FAILED with this reason."""


HIDDEN = "***"
_WEB = re.compile(r"""(https?://)[^\s/?#'"<>]*@""")
_DATABASE = re.compile(r"""((?!https?)\b\w[\w+.-]*://[^\s/?#:@'"<>]*:)[^\s'"<>]*@""")
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.-]*(?:passw|pwd|secret|token|api.?key|access.?key|signature|credential)[\w.-]*=)([^&;\s'\"<>#]+)"
)
_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
MIN_LENGTH = 6  # of a secret that is hidden wherever it occurs: shorter ones are parts of words
_secrets: set[str] = set()


def hide_secrets(text: str) -> str:
    """``text`` without the credentials in its URLs: before an ``@`` (a database's user name stays)
    and in parameters such as ``?password=``."""
    text = _DATABASE.sub(rf"\1{HIDDEN}@", _WEB.sub(rf"\1{HIDDEN}@", text))
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def remember_secrets(uri: str) -> None:
    """Let ``redact`` hide the credentials of ``uri`` wherever they occur: libraries quote parts of
    a URL."""
    user, _, host = uri.split("://", 1)[-1].rpartition("@")
    name, colon, password = user.partition(":")
    parts = [match[2] for match in _PARAMETER.finditer(uri)]
    if colon:
        parts += [user, password]
    elif uri.startswith("http"):
        parts.append(user)
    for part in parts:
        for form in {part, unquote(part)}:
            is_user_name = bool(colon) and form == name
            if len(form) >= MIN_LENGTH and not is_user_name and form not in hide_secrets(host):
                _secrets.add(form)


def redact(text: str) -> str:
    """``hide_secrets`` for text of other libraries, such as an error: hides all remembered secrets
    too."""
    text = hide_secrets(text)
    tokens = {os.environ.get(name, "") for name in _VARIABLES}
    for secret in sorted(_secrets | tokens, key=len, reverse=True):
        if len(secret) >= MIN_LENGTH:
            text = text.replace(secret, HIDDEN)
    return text
