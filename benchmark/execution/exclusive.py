"""One process at a time creates a result, whatever its command is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path

from benchmark.execution.progress import reporter
from cliptex_common.locks import lock_path, locked, locked_async


def exclusive(out: Path) -> AbstractContextManager[None]:
    """Exclude other processes from creating ``out`` while the block runs."""
    return locked(*_lock(out))


def exclusive_async(out: Path) -> AbstractAsyncContextManager[None]:
    """``exclusive`` for a coroutine."""
    return locked_async(*_lock(out))


def _lock(out: Path) -> tuple[Path, Callable[[], None]]:
    message = f"another process creates {out.name}: waiting for it"
    return lock_path("make", str(out.absolute())), lambda: reporter().start(message, 1)
