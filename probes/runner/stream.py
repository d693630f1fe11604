"""What probes that train side by side on one stream of features share: a batch is loaded once, a map computed once.

Those who share sit at one ``Table``. Whoever first needs a thing – a batch, the frozen backbone's maps of it, those
maps at one stride – makes it, and the others take it as it is; the table holds the last of each and nothing longer.
Parts of a model ask with ``once``, which merely computes where nobody shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones.cliptex.cost import StepCounter
from probes.runner.lockstep import Steps

T = TypeVar("T")


@dataclass
class _Held:
    """A thing on the table: what it was made of, what it took, and who had it."""

    inputs: Sequence[Any]
    value: Any
    seconds: float
    flops: int | None  # None: whoever made it did not count
    takers: list[Seat]
    versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.versions = _versions(self.value)

    def settle(self) -> None:
        """Divide what it took among those who had it."""
        for taker in self.takers:
            taker.pay(self.seconds / len(self.takers))
        self.seconds = 0.0


class Table:
    """What the members of a family share."""

    def __init__(self) -> None:
        self.seats: list[Seat] = []
        self.spent = 0.0  # seconds on shared things, all in all
        self._held: dict[Hashable, _Held] = {}
        self._streams: dict[str, _Stream] = {}

    def take(
        self, seat: Seat, slot: Hashable, inputs: Sequence[Any], compute: Callable[[], T], *, again: bool = True
    ) -> T:
        """What ``compute`` gives for ``inputs``, from the table if the last thing in this slot was made of the same ones.

        Args:
            slot: what is computed, and all that it depends on besides ``inputs``.
            inputs: tensors and other objects are the same if they are one; numbers and names if they are equal.
            again: whether it may be computed a second time, to count its operations.
        """
        held = self._held.get(slot)
        if held is not None and _same(held.inputs, inputs):
            if held.versions != _versions(held.value):
                raise RuntimeError(f"what {slot!r} gave was changed in place, so that others cannot use it")
            held.takers.append(seat)
            if seat.counter is not None:
                if held.flops is not None:
                    seat.counter.add(held.flops)
                elif again:
                    compute()
            return held.value
        if held is not None:  # before the next one is made: both need not fit into memory
            self._held.pop(slot).settle()
            del held
        if len(self.seats) < 2:
            return compute()
        before = seat.counter.so_far if seat.counter is not None else 0
        started = time.perf_counter()
        value = compute()
        seconds = time.perf_counter() - started
        self.spent += seconds
        flops = seat.counter.so_far - before if seat.counter is not None else None
        self._held[slot] = _Held(inputs, value, seconds, flops, [seat])
        return value

    def batch(self, seat: Seat, key: str, loader: DataLoader, number: int) -> Any:
        """Batch ``number`` of the stream ``key``, which is read by the loader of whoever came first."""
        stream = self._streams.setdefault(key, _Stream(loader))
        stream.users.add(seat)
        return self.take(seat, ("batch", key), (number,), lambda: stream.load(number), again=False)

    def settle(self) -> None:
        """Divide what was spent so far."""
        for held in self._held.values():
            held.settle()

    def leave(self, seat: Seat) -> None:
        self.settle()
        if seat in self.seats:
            self.seats.remove(seat)
        for key, stream in list(self._streams.items()):
            stream.users.discard(seat)
            if not stream.users:
                self._streams.pop(key).close()
        if not self.seats:
            self._held.clear()


class Seat:
    """A member's place at a table, and its clock.

    Args:
        parent: the seat of what it is a part of, whose table it shares; None for a table of its own.
        table: of a member that is part of nothing.

    Attributes:
        counter: counts the operations of the step under way, if any does. Of a shared thing each counts all, as if
            it were alone, so that its number does not depend on who else there was.
    """

    def __init__(self, parent: Seat | None = None, table: Table | None = None) -> None:
        self.parent = parent
        self.table: Table = parent.table if parent is not None else table or Table()
        self.counter: StepCounter | None = None
        self._own = 0.0
        self._began: tuple[float, float] | None = None

    def sit(self) -> None:
        """From now on things are shared with this member."""
        self.table.seats.append(self)

    @property
    def sits(self) -> bool:
        return self in self.table.seats

    def leave(self) -> None:
        """And from now on no longer; what nobody uses any more is closed."""
        self.table.leave(self)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """It is this member's turn; within its parent's, if that has one."""
        global _whose
        before, _whose = _whose, self
        self._began = time.perf_counter(), self.table.spent
        try:
            yield
        finally:
            self._own, self._began = self.clock(), None
            _whose = before

    def turns(self, steps: Steps[T]) -> Steps[T]:
        """``steps``, each in a turn of this member."""
        while True:
            with self.turn():
                try:
                    place = next(steps)
                except StopIteration as end:
                    return end.value
            try:
                yield place
            except BaseException as error:
                with self.turn():
                    steps.throw(error)
                raise

    def clock(self) -> float:
        """Seconds of its own turns so far, and an equal share of what it shared with others (up to the last ``settle``)."""
        if self._began is None:
            return self._own
        began, spent = self._began
        return self._own + time.perf_counter() - began - (self.table.spent - spent)

    def pay(self, seconds: float) -> None:
        self._own += seconds
        if self.parent is not None:
            self.parent.pay(seconds)

    def batch(self, key: str, loader: DataLoader, number: int) -> Any:
        """See ``Table.batch``."""
        return self.table.batch(self, key, loader, number)


_whose: Seat | None = None


def once(slot: Hashable, inputs: Sequence[Any], compute: Callable[[], T]) -> T:
    """``compute()``, or what it gave another member of the family for the same ``inputs``; see ``Table.take``.

    For what is not trained: as soon as a gradient flows into ``inputs`` each computes for itself.
    """
    if _whose is None or not _whose.sits or any(isinstance(one, Tensor) and one.requires_grad for one in inputs):
        return compute()
    return _whose.table.take(_whose, slot, inputs, compute)


def prepare_once(preprocessor: nn.Module, key: str) -> None:
    """Let one preparation (normalising, padding, stacking) of a batch serve all who have that batch.

    Each gets the samples anew, around the same truth: predictions are written into them.

    Args:
        preprocessor: an mmseg ``SegDataPreProcessor``; ``key`` stands for its settings.
    """
    prepare = preprocessor.forward

    def forward(data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        done = once(("prepare", key, training), (data,), lambda: prepare(data, training))
        return {**done, "data_samples": [sample.clone() for sample in done["data_samples"]]}

    preprocessor.forward = forward


class _Stream:
    """The batches of a loader by their number; in their order they are loaded without a stop."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.users: set[Seat] = set()
        self._iterator: Any = None
        self._next = 0

    def load(self, number: int) -> Any:
        if self._iterator is None or number != self._next:
            skip = getattr(self.loader.sampler, "skip", None)
            if skip is not None:
                skip(number * (self.loader.batch_size or 1))
            self._iterator = iter(self.loader)
            for _ in range(0 if skip is not None else number):
                next(self._iterator)
        self._next = number + 1
        return next(self._iterator)

    def close(self) -> None:
        """End the loading processes."""
        close_loader(self.loader, self._iterator)
        self._iterator = None


def close_loader(loader: Any, *iterators: Any) -> None:
    """End the loading processes of a loader, and of its ``iterators``."""
    for iterator in (getattr(loader, "_iterator", None), *iterators):
        if shut_down := getattr(iterator, "_shutdown_workers", None):
            shut_down()
    if isinstance(loader, DataLoader):
        loader._iterator = None


def _same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    return len(old) == len(new) and all(
        a is b or (isinstance(a, str | int) and a == b) for a, b in zip(old, new, strict=True)
    )


def _versions(value: Any) -> list[int]:
    """How often each tensor of a tuple was changed in place."""
    tensors = [one for one in value if isinstance(one, Tensor)] if isinstance(value, tuple) else []
    return [one._version for one in tensors if not one.is_inference()]
