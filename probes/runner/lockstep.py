"""Work that is done step by step, so that several pieces of it can go on side by side in one thread.

Such a piece is a generator (``Steps``): it does a step each time that it is asked, says how far it is, and returns its
result. Those that share a stream of data are kept at one place of it: ``in_lockstep`` always lets the one go on that is
furthest behind. So a piece that was resumed somewhere else, or is longer than the others, needs no care.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from probes.base import Progress

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)

Place: TypeAlias = tuple[int, int]  # (0, iteration to come) in training, (1, batch to come) in evaluation
Steps: TypeAlias = Generator[Place, None, T]
READY: Place = (0, -1)  # prepared, before the first step
_BEFORE: Place = (-1, 0)


def drain(steps: Steps[T]) -> T:
    """Take all steps at once; what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def in_lockstep(
    members: Mapping[Name, Steps[Any]], ended: Callable[[Name, Any], None] = lambda name, result: None
) -> Steps[dict[Name, Any]]:
    """The members side by side: name → its result, or the ``Exception`` that it broke with; the others go on.

    An interruption (or whatever ``ended`` raises) ends all: each member that is left is interrupted where it is.

    Args:
        ended: told of each as soon as it ends.
    """
    places = dict.fromkeys(members, _BEFORE)
    results: dict[Name, Any] = {}
    try:
        while places:
            name = min(places, key=lambda each: places[each])
            try:
                places[name] = next(members[name])
            except StopIteration as end:
                results[name] = end.value
            except MemoryError:
                raise
            except Exception as error:
                results[name] = error
            if name in results:
                del places[name]
                ended(name, results[name])
            if places:
                yield min(places.values())
    except BaseException:
        for name in places:
            with suppress(BaseException):  # the first error is the one to show
                members[name].throw(KeyboardInterrupt())
        raise
    return {name: results[name] for name in members}


class JointBar:
    """One progress bar for steps that are taken in lockstep: how far all of them are.

    What one of them does before (encoding, say) is shown as it is.
    """

    def __init__(self, bar: Progress, label: str = "") -> None:
        self._bar, self._label = bar, label
        self._step, self._shown = "", 0
        self._parts: dict[str, list[int]] = {}  # task → [done, total]

    def part(self, task: str, name: str = "") -> Progress:
        """The progress of one; ``task`` is how the descriptions of its steps begin, ``name`` tells two of one task apart."""
        return _Part(self, task, name or task)

    def start(self, task: str, name: str, description: str, total: int) -> None:
        step = description.removeprefix(task)
        if step == description:  # something of its own
            self._parts.pop(name, None)
            self._bar.start(description, total)
            return
        if step != self._step:
            self._step, self._parts = step, {}
        self._parts[name] = [0, total]
        self._bar.start((self._label or " + ".join(self._parts)) + step, max(each[1] for each in self._parts.values()))
        self._shown = 0
        self._show()

    def advance(self, name: str, steps: int) -> None:
        if name not in self._parts:
            self._bar.advance(steps)
            return
        self._parts[name][0] += steps
        self._show()

    def drop(self, name: str) -> None:
        """That one goes on no longer."""
        if self._parts.pop(name, None) and self._parts:
            self._show()

    def _show(self) -> None:
        """As far as the one that is furthest behind."""
        left = [done for done, total in self._parts.values() if done < total]
        now = min(left) if left else max(total for _, total in self._parts.values())
        if now > self._shown:
            self._bar.advance(now - self._shown)
            self._shown = now


class _Part:
    def __init__(self, joint: JointBar, task: str, name: str) -> None:
        self._joint, self._task, self._name = joint, task, name

    def start(self, description: str, total: int) -> None:
        self._joint.start(self._task, self._name, description, total)

    def advance(self, steps: int = 1) -> None:
        self._joint.advance(self._name, steps)
