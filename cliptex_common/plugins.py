"""Plugins: a user's Python files that register backbones, datasets, probes … by the calls that the
files of this project use.

A process imports those that ``load`` is given, and, when it first looks for a name that it does not
have, those of ``$CLIPTEX_PLUGINS``. A registry records which plugin an entry came from
(``Registry.origin``).
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
from pkgutil import resolve_name
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

from pydantic import PositiveFloat

from cliptex_common.errors import UserError, error_summary
from cliptex_common.files import read_bytes
from cliptex_common.settings import read_value

VARIABLE = "CLIPTEX_PLUGINS"  # files, separated as in PATH
TIMEOUT = "CLIPTEX_PLUGIN_TIMEOUT"  # seconds; imports on a busy machine take minutes


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
# modules that register this project's entries. They are imported before a plugin, so that the line
# of the plugin that registers one of their names is refused
CATALOGS: list[str] = []
# ``MODULE:FUNCTION``, called with a plugin whose code registers nothing: it may be a config file
READERS: list[str] = []


def loaded() -> tuple[tuple[str, bytes], ...]:
    """Path and content of each plugin of this process: ``load`` of these in another process gives
    it the same entries, whether it sees the files or not."""
    return tuple((str(plugin.path), plugin.source) for plugin in LOADED.values())


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import the plugins of ``$CLIPTEX_PLUGINS`` and these, in this order.

    Raises:
        UserError: as ``load``.
    """
    for path in [*_paths_in_environment(), *paths]:
        load(path)


def load_from_environment() -> None:
    """Import the plugins of ``$CLIPTEX_PLUGINS`` that this process has not imported yet."""
    for path in _paths_in_environment():
        if path not in LOADED:
            load(path)


def _paths_in_environment() -> list[Path]:
    names = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(name).expanduser().resolve() for name in names if name]


def load(path: str | Path, source: bytes | None = None) -> None:
    """Import a plugin. One that this process has is imported again only if its content has changed;
    what it registered before is then gone.

    Args:
        source: its content as another process read it; by default that of the file.

    Raises:
        UserError: there is no such file, it raises, takes longer than ``$CLIPTEX_PLUGIN_TIMEOUT``
            seconds (600), registers nothing, or registers a name that
            exists; with its line.
    """
    path = Path(path).expanduser().resolve()
    try:
        plugin = Plugin(path, read_bytes(path) if source is None else source)
    except OSError as error:
        raise UserError(
            f"cannot read plugin {path}: {error.strerror}; give a Python file"
        ) from error
    for module in CATALOGS:
        import_module(module)
    with _lock:
        if earlier := LOADED.get(path):
            if earlier.source == plugin.source:
                return
            earlier.remove()
        LOADED[path] = plugin
        try:
            with _time_limit():
                plugin.execute()
                for read in READERS if not plugin.entries else ():
                    resolve_name(read)(plugin)
            if not plugin.entries:
                raise UserError("it registers nothing; see `python -m benchmark new --help`")
        except BaseException as error:  # also SystemExit: it must not end the command silently
            plugin.remove()
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = str(error) if isinstance(error, UserError) else error_summary(error)
            raise UserError(f"plugin {path}{plugin.line_of(error)}: {reason}") from error


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise ``UserError`` in a block that does not end; in the main thread, as signals reach no
    other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = read_value(TIMEOUT, os.environ.get(TIMEOUT, "600"), PositiveFloat)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise UserError(f"it has not ended after {seconds:g} s; correct it, or raise {TIMEOUT}")

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again, where it is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def calling_plugin() -> Plugin | None:
    """The plugin whose module-level code calls the caller.

    It is read from the call stack: a plugin's import imports other modules, and what these register
    is not the plugin's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    name = frame.f_globals.get("__name__") if frame is not None else None
    return next((plugin for plugin in LOADED.values() if plugin.module == name), None)
