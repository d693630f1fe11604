"""Registries by name: backbones, experts, datasets, probes, suites and executors.

Others add entries by a plugin, a file that calls what the files of this project call
(``cliptex_common.plugins``), or, in an installed package, by an entry point of the registry's group
in its setup.cfg::

    [options.entry_points]
    cliptex_benchmark.suites =
        my-suite = my_package.my_module:SUITE

A registry is a dictionary of what was registered so far. A name that it lacks may be one of a
plugin in ``$CLIPTEX_PLUGINS``, of an entry point, or of a module of this project that is slow to
import (``register_lazy``), which are imported in this order when the name is looked up.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any, TypeVar

from cliptex_common import plugins
from cliptex_common.errors import UserError, error_summary, suggest

T = TypeVar("T")


class Registry(UserDict[str, T]):
    """Name → entry, in the order of registration.

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
        self._plugins: dict[str, plugins.Plugin] = {}  # name → the plugin that registered it
        self._lazy: dict[str, EntryPoint] = {}
        self._about: dict[str, str] = {}  # of lazy entries
        self.broken: dict[str, str] = {}  # name → why an entry point could not be loaded
        plugins.CATALOGS.extend(catalogs)

    def register(self, name: str, entry: T, plugin: plugins.Plugin | None = None) -> T:
        """Add an entry.

        Args:
            plugin: that it comes from; by default the one whose code is calling.

        Raises:
            UserError: the name is taken.
            TypeError, ValueError: what a plugin registers is no such entry.
        """
        plugin = plugin or plugins.calling_plugin()
        exists = name in self.data or (plugin is not None and name in self._points())
        is_repeated = self.data.get(name) is entry and self._plugins.get(name) is plugin
        if exists and not is_repeated:  # a module may be imported twice
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
        plugins.load_from_environment()
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
        """Import all entry points; a failure is remembered, and raised only by ``find``."""
        plugins.load_from_environment()
        for point in self._points().values():
            self._load(point)
        return self

    def descriptions(self) -> dict[str, str]:
        """Name → one line about the entry, without importing entry points."""
        plugins.load_from_environment()
        about = {name: f"plug-in {point.value}" for name, point in self._points().items()}
        about |= self._about
        for name, entry in self.items():
            about[name] = getattr(entry, "about", "") or about.get(name, "")
        return about

    def _points(self) -> dict[str, EntryPoint]:
        """Entries that are imported on first use: those of other packages, and our lazy ones."""
        return {point.name: point for point in entry_points(group=self.group)} | self._lazy

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
