"""Things by name, and what other packages add to them: the one registry behind backbones, experts, datasets, probes, suites
and executors.

Another package adds to a registry without touching this code, by an entry point of its group (in its setup.cfg)::

    [options.entry_points]
    cliptex_benchmark.suites =
        my-suite = my_package.my_module:SUITE

Entry points are read when an unknown name is asked for, or when names are listed, so that importing stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from backbones.errors import UserError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name → thing, in the order of registration.

    Args:
        what: one of them, for messages (``suite``).
        group: its entry points are ``cliptex_benchmark.GROUP``.
        check: raises for an entry point's object that is no such thing; returns what is registered under which name.
    """

    def __init__(self, what: str, group: str, check: Callable[[str, Any], T] | None = None) -> None:
        self.what, self.group, self._check = what, f"cliptex_benchmark.{group}", check
        self._things: dict[str, T] = {}
        self._broken: dict[str, str] = {}

    def register(self, name: str, thing: T) -> T:
        """Add a thing. Raises ``ValueError`` when its name is another's already."""
        if self._things.get(name, thing) is not thing:
            raise ValueError(f"there is a {self.what} {name!r} already")
        self._things[name] = thing
        return thing

    def find(self, name: str, also: str = "") -> T:
        """The thing called ``name``.

        Raises:
            UserError: there is none (names the nearest; ``also`` is added), or the package that brings it is broken.
        """
        if name not in self._things:
            self.read_entry_points()
        if name in self._things:
            return self._things[name]
        if name in self._broken:
            raise UserError(
                f"{self.what} {name!r} cannot be loaded: {self._broken[name]}; mend or uninstall the package that brings it"
            )
        raise UserError(f"no {self.what} {name!r}; {nearest(name, self._things)}{also}")

    def read_entry_points(self) -> Registry[T]:
        """Register what other packages bring; one that fails is remembered, and only asking for it is an error."""
        for point in entry_points(group=self.group):
            if point.name in self._things:
                continue
            try:
                thing = point.load()
                self.register(point.name, self._check(point.name, thing) if self._check else thing)
                self._broken.pop(point.name, None)
            except Exception as error:  # someone else's code: whatever it raises must not break the others
                self._broken[point.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return self

    def __getitem__(self, name: str) -> T:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
