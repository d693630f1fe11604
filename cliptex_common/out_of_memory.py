"""What happens where the memory of a device ends: batches of frozen passes are halved, and what
does not fit at all fails with one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cliptex_common.device import is_out_of_memory
from cliptex_common.errors import OutOfMemory, UserError, first_line

T = TypeVar("T")
log = logging.getLogger("cliptex.memory")


def out_of_memory(error: BaseException, advice: str) -> OutOfMemory:
    """One line with what torch says of the sizes.

    It does not refer to ``error``, whose traceback would hold the tensors of the failed pass.
    """
    return OutOfMemory(f"out of memory on the device ({first_line(error)}); {advice}")


@contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """Report in one line that the memory of the device ended in the block.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(str(out_of_memory(error, advice))) from None


class Halving:
    """Runs a pass over the parts of batches, which are halved when the memory of the device ends.

    Args:
        size: most rows of a part.
        about: what is done, for people: ``encoding images``.
        notes: gets a line when parts become smaller. Each row is computed as before, but sums may
            be rounded differently.
    """

    def __init__(self, size: int, about: str, notes: list[str]) -> None:
        self.size, self.about, self.notes = size, about, notes
        self._largest = 0  # part that did not fit

    def __call__(self, function: Callable[[Any], T], batch: Any) -> list[T]:
        """``function`` of consecutive parts of a batch (a tensor or a list).

        Raises:
            OutOfMemory: a single row does not fit.
        """
        results: list[T] = []
        start = 0
        while start < len(batch):
            part, failure = batch[start : start + self.size], None
            try:
                results.append(function(part))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = out_of_memory(error, f"{self.about} one by one does not fit")
            if failure is None:
                start += len(part)
            elif len(part) == 1:
                raise failure
            else:  # outside of the handler: the traceback held the tensors of the pass
                self._halve(len(part))
        return results

    def _halve(self, rows: int) -> None:
        self.size, self._largest = rows // 2, self._largest or rows
        note = (
            f"{self.about}: at most {self.size} at once instead of {self._largest}, which do not"
            " fit the memory of the device; sums may be rounded differently"
        )
        log.warning(note)
        self.notes[:] = [line for line in self.notes if not line.startswith(f"{self.about}: ")]
        self.notes.append(note)
