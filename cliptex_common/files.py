"""Files and locks that processes share: atomic writes, users' files, keys of contents, locks.

A file is written beside its target and renamed, so that a killed write never looks finished."""

from __future__ import annotations

import asyncio
import errno
import glob
import hashlib
import json
import multiprocessing.util
import os
import stat
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from cliptex_common.errors import DISK_FULL, UserError

MAX_SEED = 2**31 - 1  # the largest seed that every library accepts; see ``derive_seed``
MAX_SOCKET_PATH = 107  # bytes, on Linux
SOCKET_NAME = "/pymp-12345678/listener-12345678"  # of multiprocessing, below the temporary folder


def home() -> Path:
    """Where large reusable artifacts are stored: ``$CLIPTEX_HOME``, or ``cliptex`` in the user's
    cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_user(os.environ.get("CLIPTEX_HOME") or f"{cache}/cliptex")


def expand_user(path: str | os.PathLike[str]) -> Path:
    """``path`` with ``~`` and ``~NAME`` as folders. Raises ``UserError`` if there is no such
    user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user; give another path") from error


def json_output_path(path: Path) -> Path:
    """``path``, unless writing JSON there would overwrite a file of another kind.

    Raises:
        UserError: there is a folder or device, or a file that is not JSON (a picture, settings).
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or device; name a file")
    if path.is_file() and path.read_bytes()[:1] not in (b"", b"{", b"["):
        raise UserError(f"{path} exists and is not JSON; name another file")
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to
    ``path``. What a killed process left of ``path`` on this machine is removed.

    Raises:
        UserError: the disk is full, the folder cannot be written, or ``path`` is a device, which
            renaming would remove. Other errors of the block pass unchanged.
    """
    path = Path(path)
    prefix = f".{path.name}.{os.uname().nodename}+"  # no host has a + in its name
    temporary = path.with_name(f"{prefix}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_regular(path)
        for leftover in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
            if not _is_running(int(leftover.stem.rpartition("+")[2])):
                leftover.unlink(missing_ok=True)
        temporary.touch()  # a later FileNotFoundError is a bug: the block did not write the file
        temporary.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    try:
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            if temporary.is_file():
                temporary.unlink()
    except Exception as error:
        if not _is_write_error(error, temporary):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"cannot write {path}: {reason}; free some space or choose another folder"
        ) from error


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_write_error(error: Exception, temporary: Path) -> bool:
    """Whether ``error`` comes from writing ``temporary``, not from another file or a bug."""
    if isinstance(error, OSError):
        if error.filename is None:  # a write to an open file
            return error.errno in DISK_FULL
        # FileNotFoundError: the block never wrote the file, a bug
        involved = (str(temporary), str(temporary.parent))
        return str(error.filename) in involved and not isinstance(error, FileNotFoundError)
    # torch and safetensors report a full disk in their own words
    words = ("inline_container", "PytorchStreamWriter", "iostream error", "I/O error")
    return "PytorchStreamReader" not in str(error) and any(word in str(error) for word in words)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def make_folder(path: Path, mode: int = 0o777) -> Path:
    """``path``, a folder that is created if needed. Raises ``UserError`` if it cannot be."""
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {path}: {error.strerror}; choose another folder") from error
    return path


def check_creatable(path: Path) -> None:
    """Raise ``UserError`` if nothing can be created at ``path``; nothing is created."""
    path = path.absolute()
    parent = next(each for each in (path, *path.parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise UserError(f"cannot create {path}: {error.strerror}; choose another folder") from error


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise ``OSError`` if ``path`` is no regular file: reading a pipe, a device or the kernel's
    log may never end."""
    is_regular = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 – called for each image
    if not is_regular or os.path.realpath(path).startswith("/proc/"):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a user's file. Raises ``OSError``, also if it is no regular file."""
    check_regular(path)
    return Path(path).read_bytes()


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a user's file in UTF-8, with or without a byte order mark.

    Raises ``OSError``, ``UnicodeDecodeError``.
    """
    return read_bytes(path).decode("utf-8-sig")


def parse_file(path: str | os.PathLike[str], loads: Callable[[str], Any]) -> Any:
    """What ``loads`` reads in a user's file. Raises ``OSError``, ``ValueError``."""
    try:
        return loads(read_text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a user's JSON file. Raises ``OSError``, ``ValueError``."""
    return parse_file(path, json.loads)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing or damaged."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def content_key(value: Any, length: int = 16) -> str:
    """The first ``length`` hex digits of the sha256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed, a function of ``parts`` alone, the same in every process."""
    return int(content_key(parts, 16), 16) >> 1


def package_file(package: str, *parts: str) -> Path:
    """A file in the folder of an installed package, which is not imported."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises ``OSError``."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(paths: Iterable[str | Path]) -> dict[str, str]:
    """Path → hex sha256; '' of a file that is gone."""
    return {str(path): sha256_file(Path(path)) if Path(path).is_file() else "" for path in paths}


def shorten_socket_paths() -> None:
    """Put the sockets of multiprocessing into ``/tmp`` where ``TMPDIR`` makes their paths too long.

    Loading processes pass tensors over these sockets. Without one they fail, and the process that
    waits for their batches waits for ever.
    """
    if len(os.fsencode(tempfile.gettempdir() + SOCKET_NAME)) <= MAX_SOCKET_PATH:
        return
    configured = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # cached for this process and those it starts
    finally:
        tempfile.tempdir = configured


def lock_path(name: str, subject: object) -> Path:
    """``$CLIPTEX_HOME/locks/NAME-KEY.lock``, KEY from the content of ``subject``."""
    return home() / "locks" / f"{name}-{content_key(subject)}.lock"


@contextmanager
def locked(
    path: Path, on_wait: Callable[[], None] = lambda: None, *, wait: bool = True
) -> Iterator[None]:
    """Hold the lock during the block, as the only process. After a wait, look again for the result:
    the process that held the lock has probably created it.

    The lock is the operating system's (``flock``), so it ends with its process. Its file is never
    removed: that would let a second process in beside one that waits.

    Args:
        path: see ``lock_path``.
        on_wait: called once if another process has the lock.

    Raises:
        UserError: the folder cannot be written, or its file system has no locks.
        Timeout: another process has the lock, and ``wait`` is False.
    """
    lock = FileLock(path, fallback_to_soft=False)
    if not _acquire(lock, path, blocking=False):
        if not wait:
            raise Timeout(str(path))
        on_wait()
        _acquire(lock, path, poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, **options: Any) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(**options)
    except Timeout:  # an OSError too
        return False
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "no locks (flock) there"
        advice = "set CLIPTEX_HOME to a folder of a local disk"
        raise UserError(f"cannot lock {path}: {reason}; {advice}") from error
    return True


@asynccontextmanager
async def locked_async(
    path: Path, on_wait: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    """``locked`` for a coroutine: other coroutines continue while it waits."""
    waited = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path, wait=False))
                break
            except Timeout:
                if not waited:
                    on_wait()
                waited = True
                await asyncio.sleep(0.1)
        yield


def acquire_liveness_lock(folder: Path) -> FileLock:
    """A new lock of this process in ``folder``: while it is held, the process is alive and uses
    what the folder stands for. Locks there of processes that have ended are removed, so call it
    under a lock of the folder.

    Not one of filelock's shared locks: ``ReadWriteLock`` is an SQLite database that a forked
    process (a data loader) may not open, and ``SoftReadWriteLock`` outlives a killed process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.lock"):
        if not _may_be_locked(path):
            path.unlink(missing_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex}.lock"
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    return lock


def release_liveness_lock(lock: FileLock) -> None:
    """Release a lock of ``acquire_liveness_lock``; does nothing in a forked child."""
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock of ``acquire_liveness_lock``. Raises ``OSError`` if the file
    cannot be opened, as that of another user."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _may_be_locked(path: Path) -> bool:
    try:
        return is_locked(path)
    except OSError:
        return True


def is_in_use(folder: Path) -> bool:
    """Whether a process holds a liveness lock in ``folder``."""
    return any(map(_may_be_locked, folder.glob("*.lock")))


_in_use: dict[tuple[int, Path], FileLock] = {}  # by process (a fork holds none) and path


def mark_in_use(path: Path) -> None:
    """Keep ``path`` from being removed until this process ends (see ``guard_removal``), by a
    liveness lock that is never released."""
    key = os.getpid(), path.absolute()
    with locked(lock_path("users", "")):
        if key not in _in_use:
            _in_use[key] = acquire_liveness_lock(_users(path))


@contextmanager
def guard_removal(path: Path) -> Iterator[bool]:
    """Yield whether ``path`` may be removed: no process uses it, or starts to during the block."""
    with locked(lock_path("users", "")):
        yield not is_in_use(_users(path))


def _users(path: Path) -> Path:
    """Folder of the liveness locks of the processes that use ``path``."""
    return home() / "users" / content_key(str(path.absolute()))
