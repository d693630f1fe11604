"""Plugins: a user's Python files that register backbones, datasets, probes … by the calls that the
files of this project use.

A process imports those that ``load`` is given, and, when it first looks for a name that it does not
have, those of ``$CLIPTEX_PLUGINS``. A registry records which plugin an entry came from
(``Registry.origin``).

``load`` first imports what registers this project's own entries, by name, because these modules
build on this one: a name that exists is refused at the plugin's line, and their time is not the
plugin's.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

from cliptex_common.errors import UserError, error_summary

VARIABLE = "CLIPTEX_PLUGINS"  # files, separated as in PATH
SECONDS = 10.0  # that importing one may take
OWN = ("backbones.named", "benchmark.catalog", "benchmark.execution", "probes.experts")


class _TookTooLong(BaseException):
    """Not an ``Exception``, which a plugin may catch."""


@dataclass(eq=False)
class Plugin:
    """A plugin's file as this process has imported it.

    Attributes:
        path: absolute, without links.
        entries: (registry, name) of each entry that it registered.
    """

    path: Path
    source: bytes
    entries: list[tuple[Any, str]] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the file."""
        return hashlib.sha256(self.source).hexdigest()

    @cached_property
    def module(self) -> str:
        """Its name in ``sys.modules``, which no other module has."""
        return f"cliptex_plugin_{re.sub(r'[^a-zA-Z0-9]', '_', self.path.stem)}_{self.sha256[:8]}"

    def execute(self) -> None:
        """Run its code as a module."""
        module = sys.modules[self.module] = ModuleType(self.module)
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), vars(module))

    def remove(self) -> None:
        """Take back all that it registered."""
        for registry, name in self.entries:
            registry.pop(name, None)
        sys.modules.pop(self.module, None)
        LOADED.pop(self.path, None)

    def line_of(self, error: BaseException) -> str:
        """``:LINE`` of the plugin that raised an error; '' if none did."""
        lines = [
            line
            for frame, line in walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(self.path)
        ]
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            lines.append(error.lineno or 1)
        return f":{lines[-1]}" if lines else ""


LOADED: dict[Path, Plugin] = {}  # by path
_lock = threading.RLock()


def loaded() -> tuple[tuple[str, bytes], ...]:
    """Path and content of each plugin of this process: ``load`` of these in another process gives
    it the same entries, whether it sees the files or not."""
    return tuple((str(plugin.path), plugin.source) for plugin in LOADED.values())


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import the plugins of ``$CLIPTEX_PLUGINS`` and these, in this order.

    Raises:
        UserError: as ``load``.
    """
    for path in [*paths_in_environment(), *paths]:
        load(path)


def load(path: str | Path, source: bytes | None = None) -> None:
    """Import a plugin. One that this process has is imported again only if its content has changed;
    what it registered before is then gone.

    Args:
        source: its content as another process read it; by default that of the file.

    Raises:
        UserError: there is no such file, it raises, takes too long, registers nothing, or registers
            a name that exists; with its line.
    """
    path = Path(path).expanduser().resolve()
    plugin = Plugin(path, _read(path) if source is None else source)
    for module in OWN:
        import_module(module)
    with _lock:
        if earlier := LOADED.get(path):
            if earlier.source == plugin.source:
                return
            earlier.remove()
        LOADED[path] = plugin
        try:
            with _time_limit(SECONDS):
                plugin.execute()
            if not plugin.entries:
                raise UserError("it registers nothing; see `python -m benchmark new --help`")
        except KeyboardInterrupt:
            plugin.remove()
            raise
        except BaseException as error:  # also SystemExit: it must not end the command silently
            plugin.remove()
            raise UserError(f"plugin {path}{plugin.line_of(error)}: {_reason(error)}") from error


def load_from_environment() -> None:
    """Import the plugins of ``$CLIPTEX_PLUGINS`` that this process has not imported yet."""
    for path in paths_in_environment():
        if path.expanduser().resolve() not in LOADED:
            load(path)


def paths_in_environment() -> list[Path]:
    """The files of ``$CLIPTEX_PLUGINS``."""
    return [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]


def registering() -> Plugin | None:
    """The plugin whose import calls the caller; None if another module's does, even if a plugin
    imports that module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return of_module(frame.f_globals.get("__name__", "")) if frame is not None else None


def of_module(name: str) -> Plugin | None:
    """The plugin that is the module ``name``."""
    return next((plugin for plugin in LOADED.values() if plugin.module == name), None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read plugin {path}: {error.strerror}; give a Python file"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, _TookTooLong):
        return (
            f"its import takes more than {SECONDS:g} s; do the work in functions, which are called"
            " when they are needed"
        )
    if isinstance(error, UserError):
        return str(error)
    return error_summary(error)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``_TookTooLong`` in the block after ``seconds``, and every second from then on. Only
    the main thread can be interrupted; in others there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TookTooLong

    handler = signal.signal(signal.SIGALRM, stop)
    others_delay, others_interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, others_delay, others_interval)
        signal.signal(signal.SIGALRM, handler)
