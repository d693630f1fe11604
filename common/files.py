"""Files that others rely on: written beside their place and renamed, so that a killed write never
looks finished."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing.util
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DISK_FULL, UserError


def home() -> Path:
    """Where big reusable artifacts live: ``$CLIPTEX_HOME``, or ``cliptex`` in the user's cache
    folder."""
    return expand_user(
        os.environ.get("CLIPTEX_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cliptex")
    )


def expand_user(path: str | os.PathLike[str]) -> Path:
    """``path`` with the user's folder for ``~``. Raises ``UserError`` where nobody knows it."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: {str(error).rstrip('.')}; name a folder in full (CLIPTEX_HOME, HOME)"
        ) from error


def plain_place(path: Path) -> Path:
    """``path``, or where the link there leads: a place for a file.

    Raises:
        UserError: a folder, a device or a pipe is there already, or it is a way to an open file
            (``/dev/stdout``).
    """
    ways = [path, path.parent / path.readlink()] if path.is_symlink() else [path]
    if any(Path(os.path.realpath(way.parent)).is_relative_to("/proc") for way in ways):
        raise UserError(f"{path} is no place for a file; name one in a folder")
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place.exists() and not place.is_file():
        raise UserError(
            f"{path} is {'a folder' if place.is_dir() else 'no regular file'}; name a file"
        )
    return place


def json_output_path(path: Path) -> Path:
    """``plain_place`` of a JSON file. Raises ``UserError`` where there is a file that is none: a
    picture, settings."""
    path = plain_place(path)
    if path.is_file() and path.stat().st_size:
        with open_regular(path) as file:
            if file.read(1) not in (b"{", b"["):
                raise UserError(f"{path} is there and is no JSON; name another file")
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to
    ``path``.

    Raises:
        UserError: the disk is full, the folder cannot be written, or something that is no file is
            there (``plain_place``). Any other error of the block goes through as it is.
    """
    path = plain_place(Path(path))
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
        if (blocks and not _refused(error, temporary)) or (
            not blocks and not isinstance(error, OSError)
        ):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path}: {reason}; free some space or choose another folder"
        ) from error


def _refused(error: Exception, file: Path) -> bool:
    """Whether an error is that of writing ``file``, not one about another file and no mistake of a
    program."""
    if isinstance(error, OSError):
        if error.filename is None:  # of a write to a file that is open
            return error.errno in (*DISK_FULL, errno.EFBIG)
        return str(error.filename) == str(file) and not isinstance(
            error, FileNotFoundError
        )  # nobody wrote it: a bug
    # torch and safetensors say a full disk in their own words: a RuntimeError of the zip writer, a
    # SafetensorError.
    words = ("inline_container", "PytorchStreamWriter", "iostream error", "I/O error")
    return "PytorchStreamReader" not in str(error) and any(word in str(error) for word in words)


@contextmanager
def report_unwritable(folder: Path) -> Iterator[None]:
    """Say in one line that ``folder``, which is under ``home()``, cannot be written.

    Raises:
        UserError: for any ``OSError`` of the block, which must do nothing but write there.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {folder}: {reason}; free some space or set CLIPTEX_HOME to another"
            " folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


SOCKET = 107  # bytes of a socket's path that Linux takes
IN_TEMPORARY = len("/pymp-12345678/listener-12345678")  # where multiprocessing puts its sockets


def keep_sockets_short() -> None:
    """Where ``TMPDIR`` is so long that no socket fits below it, those of multiprocessing go to
    ``/tmp``.

    A loading process hands tensors over by a socket; it says that it cannot, and whoever waits for
    them waits for ever.
    """
    if len(os.fsencode(tempfile.gettempdir())) + IN_TEMPORARY <= SOCKET:
        return
    asked = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        # of this process and those that it starts; removed in the end
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = asked


class UnfitFile(OSError):
    """A file that must not be read: no regular one, or too large. The user can mend it, where
    nobody deals with it."""

    exit_code = 2

    def __str__(self) -> str:
        return f"cannot read {self.filename}: {self.strerror}"


def open_regular(path: str | os.PathLike[str], most: int = 1 << 63) -> io.BufferedReader:
    """A file, open for reading. A pipe, which would be waited for without end, a device, a folder
    and a file of more than ``most`` bytes are an ``UnfitFile`` that says so."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except ValueError as error:  # a NUL in its name
        raise UnfitFile(errno.EINVAL, "no file has such a name", path) from error
    state = os.fstat(file.fileno())
    if stat.S_ISREG(state.st_mode) and state.st_size <= most:
        return file
    file.close()
    reason = (
        f"it is larger than {most >> 20} MiB"
        if stat.S_ISREG(state.st_mode)
        else "it is no regular file"
    )
    raise UnfitFile(errno.EINVAL, reason, os.fspath(path))


def read_whole(path: str | os.PathLike[str], most: int = 1 << 30) -> bytes:
    """The bytes of a file that somebody else may have written: ``open_regular`` says what it must
    be. Raises ``OSError``."""
    with open_regular(path, most) as file:
        return file.read(most + 1)


def read_utf8(path: str | os.PathLike[str], most: int = 1 << 30) -> str:
    """The text of such a file. Raises ``OSError``, ``UnicodeDecodeError``."""
    return read_whole(path, most).decode("utf-8-sig")


def read_json(path: str | os.PathLike[str], most: int = 1 << 30) -> Any:
    """What the JSON in such a file says. Raises ``OSError``, ``ValueError``."""
    return parse_json(read_utf8(path, most))


def parse_json(text: str | bytes) -> Any:
    """What JSON that somebody else may have written says. Raises ``ValueError``."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def content_key(value: Any, length: int = 16) -> str:
    """The first ``length`` hex digits of the sha256 of ``canonical(value)``."""
    return hashlib.sha256(canonical_json(value).encode(errors="surrogatepass")).hexdigest()[:length]


MAX_SEED = 2**31 - 1  # which every library takes


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of ``parts`` alone (their sha256), the same in every
    process."""
    return int(content_key(parts, 16), 16) >> 1


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises ``OSError``, as ``open_regular`` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
