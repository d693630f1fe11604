"""Things by name, and what other packages add to them: the one registry behind backbones, experts,
datasets, probes, suites and executors.

Another package adds to a registry without touching this code, by an entry point of its group (in
its setup.cfg)::

    [options.entry_points]
    cliptex_benchmark.suites =
        my-suite = my_package.my_module:SUITE

An entry point is imported when its name is asked for, or when things are listed, so that importing
stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any, Generic, TypeVar

from common.errors import UserError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name → thing, in the order of registration.

    Args:
        what: one of them, for messages (``suite``).
        group: its entry points are ``cliptex_benchmark.GROUP``.
        check: raises for an entry point's object that is no such thing; returns what is registered
            under which name.
    """

    def __init__(self, what: str, group: str, check: Callable[[str, Any], T] | None = None) -> None:
        self.what, self.group, self._check = what, f"cliptex_benchmark.{group}", check
        self._things: dict[str, T] = {}
        self._later: dict[str, tuple[EntryPoint, str]] = {}
        self.broken: dict[str, str] = {}  # name → why an entry point could not be loaded

    def register(self, name: str, thing: T) -> T:
        """Add a thing. Raises ``ValueError`` when its name is another's already."""
        if self._things.get(name, thing) is not thing:
            raise ValueError(f"there is a {self.what} {name!r} already")
        self._things[name] = thing
        return thing

    def unregister(self, name: str) -> None:
        """Take a thing out again, if it is there."""
        self._things.pop(name, None)

    def register_lazy(self, name: str, value: str, about: str) -> None:
        """Add ``MODULE:OBJECT`` that is slow to import, as an entry point of our own; ``about`` it,
        one line."""
        self._later[name] = EntryPoint(name, value, self.group), about

    def find(self, name: str, also: str = "") -> T:
        """The thing called ``name``.

        Raises:
            UserError: there is none (names the nearest; ``also`` is added), or the package that
                brings it is broken.
        """
        if name in self._things:
            return self._things[name]
        points = self._points()
        if name in points:
            self._load(points[name])
        if name in self._things:
            return self._things[name]
        if name in self.broken:
            raise UserError(
                f"{self.what} {name!r} cannot be loaded: {self.broken[name]}; mend or uninstall the"
                " package that brings it"
            )
        raise UserError(f"no {self.what} {name!r}; {nearest(name, {*self._things, *points})}{also}")

    def load_entry_points(self) -> Registry[T]:
        """Register what is not imported yet; one that fails is remembered, and only asking for it
        is an error."""
        for point in self._points().values():
            self._load(point)
        return self

    def descriptions(self) -> dict[str, str]:
        """Name → one line about it; nothing is imported for that."""
        said = {name: about for name, (_, about) in self._later.items()}
        plugins = {name: f"plug-in {point.value}" for name, point in self._points().items()}
        known = {
            name: getattr(thing, "about", "") or said.get(name, "") for name, thing in self.items()
        }
        return {**plugins, **said, **known}

    def _points(self) -> dict[str, EntryPoint]:
        installed = {point.name: point for point in entry_points(group=self.group)}
        return {**installed, **{name: point for name, (point, _) in self._later.items()}}

    def _load(self, point: EntryPoint) -> None:
        if point.name in self._things:
            return
        if (
            point.name in self._later
        ):  # our own: what breaks in it is a bug, not the fault of some package
            self.register(point.name, point.load())
            return
        try:
            thing = point.load()
            self.register(point.name, self._check(point.name, thing) if self._check else thing)
            self.broken.pop(point.name, None)
        except (
            Exception,
            SystemExit,
        ) as error:  # someone else's code: whatever it raises must not break the others
            self.broken[point.name] = f"{type(error).__name__}: {error}".splitlines()[0]

    def __getitem__(self, name: str) -> T:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


def instance_of(
    kind: type, name: Callable[[Any], str] | None = attrgetter("name"), *, subclass: bool = False
) -> Callable[[str, Any], Any]:
    """A ``check`` of a registry: entry points bring an instance (or a ``subclass``) of ``kind``,
    which calls itself what the entry point does, where it has a ``name``."""

    def check(given: str, thing: Any) -> Any:
        is_class = isinstance(thing, type)
        if is_class is not subclass or not (
            issubclass(thing, kind) if is_class else isinstance(thing, kind)
        ):
            wanted = f"{'subclass of ' * subclass}{kind.__module__}.{kind.__name__}"
            raise TypeError(f"it brings {thing!r}, no {wanted}")
        if name is not None and name(thing) != given:
            raise ValueError(f"entry point {given!r} brings one named {name(thing)!r}")
        return thing

    return check
