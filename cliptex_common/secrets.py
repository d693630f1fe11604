"""Keep passwords and tokens out of what is shown and stored: streams, tags, notes, files and
arguments."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

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
