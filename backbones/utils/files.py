"""Files that others rely on: written beside their place and renamed, so that a killed write never looks finished."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backbones.utils.errors import DISK_FULL, UserError


def home() -> Path:
    """Where big reusable artifacts live: ``$CLIPTEX_HOME``, or ``cliptex`` in the user's cache folder."""
    if path := os.environ.get("CLIPTEX_HOME"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cliptex"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to ``path``.

    Raises:
        UserError: the disk is full or the folder cannot be written. Any other error of the block goes through as it is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    blocks = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            blocks = True
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            blocks = False
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except Exception as error:
        if (blocks and not _refused(error, temporary)) or (not blocks and not isinstance(error, OSError)):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another folder") from error


def _refused(error: Exception, file: Path) -> bool:
    """Whether an error is that of writing ``file``, not one about another file and no mistake of a program."""
    if isinstance(error, OSError):
        if error.filename is None:  # of a write to a file that is open
            return error.errno in (*DISK_FULL, errno.EFBIG)
        return str(error.filename) == str(file) and not isinstance(error, FileNotFoundError)  # nobody wrote it: a bug
    # torch and safetensors say a full disk in their own words: a RuntimeError of the zip writer, a SafetensorError.
    words = ("inline_container", "PytorchStreamWriter", "iostream error", "I/O error")
    return "PytorchStreamReader" not in str(error) and any(word in str(error) for word in words)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line that ``folder``, which is under ``home()``, cannot be written.

    Raises:
        UserError: for any ``OSError`` of the block, which must do nothing but write there.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {folder}: {reason}; free some space or set CLIPTEX_HOME to another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def content_key(value: Any, length: int = 16) -> str:
    """The first ``length`` hex digits of the sha256 of ``canonical(value)``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a function of ``parts`` alone (their sha256), the same in every process."""
    return int(content_key(parts, 16), 16) >> 1


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
