"""Registries by name (backbones, experts, datasets, probes, suites, executors …), and the plugins
that add to them.

A registry is a dictionary of what was registered so far. A name that it lacks may be one of a
plugin in ``$CLIPTEX_PLUGINS``, of an entry point, or of a module of this project that is slow to
import (``register_lazy``), which are imported in this order when the name is looked up.

A plugin is a user's Python file that makes the calls that the files of this project make. A process
imports those that ``load_plugins`` is given, and those of ``$CLIPTEX_PLUGINS``; a registry records
which plugin an entry came from (``Registry.origin``). Modules that plugins import by a path of
before stay importable (``keep_importable``). An installed package registers by an entry point of
the registry's group in its setup.cfg::

    [options.entry_points]
    cliptex_benchmark.suites =
        my-suite = my_package.my_module:SUITE
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import threading
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from itertools import count
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any, TypeVar

from pydantic import PositiveFloat

from cliptex_common.errors import UserError, error_summary, suggest
from cliptex_common.files import expand_user, read_bytes
from cliptex_common.settings import read_value

PLUGINS_VARIABLE = "CLIPTEX_PLUGINS"  # files, separated as in PATH
TIMEOUT_VARIABLE = "CLIPTEX_PLUGIN_TIMEOUT"  # seconds; imports on a busy machine take minutes
CATCHES = 3  # of the error of the time limit, one a second


@dataclass(eq=False)
class Plugin:
    """A plugin's file as this process has imported it: because ``load`` was given it, or
    because ``$CLIPTEX_PLUGINS`` names it and a registry first lacked a name.

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


def plugin_sources() -> tuple[tuple[str, bytes], ...]:
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
    names = os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep)
    return [expand_user(name).resolve() for name in names if name]


def load(path: str | Path, source: bytes | None = None, registers: bool = True) -> None:
    """Import a plugin. One that this process has is imported again only if its content has changed;
    what it registered before is then gone.

    Args:
        source: its content as another process read it; by default that of the file.
        registers: whether it must register something.

    Raises:
        UserError: there is no such file, it raises, takes longer than ``$CLIPTEX_PLUGIN_TIMEOUT``
            seconds (600), registers nothing though it must, or registers a name that
            exists; with its line.
    """
    path = expand_user(path).resolve()
    try:
        plugin = Plugin(path, read_bytes(path) if source is None else source)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give the path of a Python file"
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
            with _time_limit(path):
                plugin.execute()
                for read in READERS if not plugin.entries else ():
                    resolve_name(read)(plugin)
            if registers and not plugin.entries:
                raise UserError("it registers nothing; see `python -m benchmark new --help`")
        except BaseException as error:  # also SystemExit: it must not end the command silently
            plugin.remove()
            if isinstance(error, KeyboardInterrupt):
                raise
            reason = str(error) if isinstance(error, UserError) else error_summary(error)
            raise UserError(f"plugin {path}{plugin.line_of(error)}: {reason}") from error


def load_module(path: str, fresh: bool = False) -> Plugin:
    """The plugin of a file that is used by what it defines, whether it registers anything or not.

    Args:
        fresh: import it again if it has changed. Otherwise what this process has imported counts,
            in a worker the content that it was sent, whether it sees the file or not.

    Raises:
        UserError: as ``load``.
    """
    file = expand_user(path).resolve()
    plugin = LOADED.get(file)
    if plugin is None and not file.exists():
        plugin = next((each for each in LOADED.values() if each.path.match(path)), None)
    if plugin is None or (fresh and file.exists()):
        load(file, registers=False)
        plugin = LOADED[file]
    return plugin


@contextmanager
def _time_limit(path: Path) -> Iterator[None]:
    """Raise ``UserError`` in a block that does not end; in the main thread, as signals reach no
    other. Code of ``path`` that catches it ``CATCHES`` times ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = read_value(TIMEOUT_VARIABLE, os.environ.get(TIMEOUT_VARIABLE, "600"), PositiveFloat)

    catches = count()

    def interrupt(number: int, frame: FrameType | None) -> None:
        message = f"it has not ended after {seconds:g} s; correct it, or raise {TIMEOUT_VARIABLE}"
        if next(catches) == CATCHES:
            sys.stderr.write(f"error: plugin {path}: {message}\n")
            os._exit(2)
        raise UserError(message)

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


T = TypeVar("T")


class Registry(UserDict[str, T]):
    """Name → entry, a dictionary of what was registered so far, in that order.

    A name that it lacks may be one of a plugin in ``$CLIPTEX_PLUGINS``, of an entry point, or of a
    module of this project that is slow to import (``register_lazy``): ``find`` imports these, in
    this order.

    Args:
        kind: of entry, for messages (``suite``).
        group: its entry points are ``cliptex_benchmark.GROUP``.
        check: takes name and object of a plugin or an entry point; returns the entry, or raises if
            the object is not one.
        catalogs: modules that register this project's entries.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        check: Callable[[str, Any], T] = lambda name, entry: entry,
        catalogs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.kind, self.group = kind, f"cliptex_benchmark.{group}"
        self._check = check
        self._plugins: dict[str, Plugin] = {}  # name → the plugin that registered it
        self._lazy: dict[str, EntryPoint] = {}
        self._about: dict[str, str] = {}  # of lazy entries
        self.broken: dict[str, str] = {}  # name → why an entry point could not be loaded
        CATALOGS.extend(catalogs)

    def register(self, name: str, entry: T, plugin: Plugin | None = None) -> T:
        """Add an entry.

        Args:
            plugin: that it comes from; by default the one whose code is calling.

        Raises:
            UserError: the name is taken.
            TypeError, ValueError: what a plugin registers is no such entry.
        """
        plugin = plugin or calling_plugin()
        exists = name in self.data or (plugin is not None and name in self._points())
        # a module that is imported twice registers the same entry again
        is_repeated = self.data.get(name) is entry and self._plugins.get(name) is plugin
        if exists and not is_repeated:
            owner = f", of plugin {self._plugins[name].path}" if name in self._plugins else ""
            raise UserError(f"{self.kind} {name!r} exists already{owner}; choose another name")
        if plugin is not None:
            entry = self._check(name, entry)
            plugin.entries.append((self, name))
            self._plugins[name] = plugin
        self.data[name] = entry
        return entry

    def register_lazy(self, name: str, value: str, about: str) -> None:
        """Add ``MODULE:OBJECT``, which is imported on first use; ``about`` describes it in one
        line."""
        self._lazy[name], self._about[name] = EntryPoint(name, value, self.group), about

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._plugins.pop(name, None)

    def origin(self, name: str) -> dict[str, str]:
        """``{"plugin": sha256}`` of an entry that a plugin registered, a part of the identity of
        what it computes; ``{}`` of others."""
        return {"plugin": self._plugins[name].sha256} if name in self._plugins else {}

    def find(self, name: str, also: str = "") -> T:
        """The entry called ``name``.

        Raises:
            UserError: no such entry (suggests the nearest; ``also`` is appended), or its package is
                broken.
        """
        if name in self.data:
            return self.data[name]
        load_from_environment()
        points = self._points()
        if name in points:
            self._load(points[name])
        if name in self.data:
            return self.data[name]
        if name in self.broken:
            raise UserError(
                f"{self.kind} {name!r} cannot be loaded: {self.broken[name]}; fix or uninstall the"
                " package that brings it"
            )
        raise UserError(f"no {self.kind} {name!r}; {suggest(name, {*self.data, *points})}{also}")

    def load_entry_points(self) -> Registry[T]:
        """The registry itself, with all its entry points imported; a failure is remembered, and
        raised only by ``find``."""
        load_from_environment()
        for point in self._points().values():
            self._load(point)
        return self

    def descriptions(self) -> dict[str, str]:
        """Name → one line about the entry, without importing entry points."""
        load_from_environment()
        about = {name: f"plug-in {point.value}" for name, point in self._points().items()}
        about |= self._about
        for name, entry in self.items():
            about[name] = getattr(entry, "about", "") or about.get(name, "")
        return about

    def _points(self) -> dict[str, EntryPoint]:
        """Entries that are imported on first use: those of other packages, and our lazy ones."""
        points = _entry_points(self.group, tuple(sys.path))
        return {point.name: point for point in points} | self._lazy

    def _load(self, point: EntryPoint) -> None:
        if point.name in self.data:
            return
        try:
            self.data[point.name] = self._check(point.name, point.load())
            self.broken.pop(point.name, None)
        except (Exception, SystemExit) as error:  # another package must not break the others
            if point.name in self._lazy:  # ours: a bug
                raise
            self.broken[point.name] = error_summary(error)


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Those of the packages on ``sys.path``; reading their metadata takes 13 ms."""
    return entry_points(group=group)


def instance_of(
    cls: type, name: Callable[[Any], str] | None = attrgetter("name"), *, subclass: bool = False
) -> Callable[[str, Any], Any]:
    """A ``check`` of a registry: the object is an instance (or a ``subclass``) of ``cls``, and its
    own ``name`` is the entry's."""

    def check(registered_name: str, entry: Any) -> Any:
        if subclass:
            fits = isinstance(entry, type) and issubclass(entry, cls)
        else:
            fits = isinstance(entry, cls)
        if not fits:
            expected = f"{'subclass of ' * subclass}{cls.__module__}.{cls.__name__}"
            raise TypeError(f"{registered_name!r} is {entry!r}, no {expected}")
        if name is not None and name(entry) != registered_name:
            raise ValueError(f"it is registered as {registered_name!r} and named {name(entry)!r}")
        return entry

    return check


class _Moved(ModuleType):
    """A module in place of one that has moved; what it has is imported when it is asked for."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old)
        self.__dict__["_new"] = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(self._new), name)


def keep_importable(moved: Mapping[str, str]) -> None:
    """Let ``from OLD import name`` go on: old path of a module → where its names are."""
    sys.modules.update((old, _Moved(old, new)) for old, new in moved.items())
