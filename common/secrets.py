"""Passwords and tokens stay out of what is shown and kept: streams, tags, notes, files and
arguments all go through here."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
_WEB = re.compile(r"""(https?://)[^\s/?#'"<>]*@""")
_OTHER = re.compile(r"""((?!https?)\b\w[\w+.-]*://[^\s/?#:@'"<>]*:)[^\s'"<>]*@""")
_PARAMETER = re.compile(
    r"(?i)([?&;][\w.-]*(?:passw|pwd|secret|token|api.?key|access.?key|signature|credential)[\w.-]*=)([^&;\s'\"<>#]+)"
)
_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# letters of a secret that is hidden where it stands alone: shorter ones are in half of all words
LEAST = 6
_known: set[str] = set()


def hide_secrets(text: str) -> str:
    """``text`` without what its addresses have before an ``@`` (but a database's user) and as
    ``?password=`` and the like."""
    text = _OTHER.sub(rf"\1{HIDDEN}@", _WEB.sub(rf"\1{HIDDEN}@", text))
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def remember_secrets(uri: str) -> None:
    """From now on ``redact`` hides the secrets of ``uri`` wherever they stand: libraries quote
    parts of an address."""
    user, _, host = uri.partition("://")[2 * ("://" in uri)].rpartition("@")
    name, colon, password = user.partition(":")
    found = [match[2] for match in _PARAMETER.finditer(uri)]
    found += [user, password] if colon else [user] if uri.startswith("http") else []
    forms = {
        form for each in found for form in (each, unquote(each)) if form not in hide_secrets(host)
    }
    _known.update(form for form in forms if len(form) >= LEAST and not (colon and form == name))


def redact(text: str) -> str:
    """``hide_secrets`` for text that others wrote, such as an error: also the secrets that are
    remembered."""
    text = hide_secrets(text)
    known = {
        *_known,
        *(value for name in _VARIABLES if len(value := os.environ.get(name, "")) >= LEAST),
    }
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
