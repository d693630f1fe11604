"""Saved states of a running training: each complete or absent, written in the background."""

from __future__ import annotations

import contextlib
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from cliptex_common.files import atomic_write

MAX_STATES = 2  # one more than is needed, should the newest be damaged


class States:
    """The newest states of the training ``key`` in a folder.

    A state is a dict of tensors, numbers, strings and containers of them.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state`` and write it in the background, once the previous one is written.

        Raises:
            UserError: the disk is full or the folder cannot be written (for this state or the
                previous one).
        """
        self.finish()
        copied = tree_map_only(Tensor, lambda value: value.detach().to("cpu", copy=True), state)
        self._writing = self._writer.submit(
            self._write, step, {**copied, "key": self.key, "step": step}
        )

    def finish(self) -> None:
        """Wait until the state is on disk; raises as ``save``."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def steps(self) -> list[int]:
        """Steps of all states, newest first; they may be damaged, or another training's."""
        return sorted(
            (int(path.stem.removeprefix("state-")) for path in self.folder.glob("state-*.pt")),
            reverse=True,
        )

    def load(self, step: int) -> dict[str, Any] | None:
        """The state of ``step``; None if it is damaged or another training's."""
        try:
            state = torch.load(self._path(step), map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return state if state.get("key") == self.key else None

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read."""
        return next((state for step in self.steps() if (state := self.load(step))), None)

    def remove(self) -> None:
        """Remove all, and the folder when it is empty then."""
        self.finish()
        self._prune(0)
        for path in self.folder.glob(".state-*.tmp"):  # of a process that was killed
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"state-{step:09d}.pt"

    def _write(self, step: int, state: dict[str, Any]) -> None:
        with atomic_write(self._path(step)) as temporary:
            torch.save(state, temporary)
        self._prune(MAX_STATES)

    def _prune(self, count: int) -> None:
        for step in self.steps()[count:]:
            self._path(step).unlink(missing_ok=True)
