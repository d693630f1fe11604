"""Copies of a model for input sizes that differ from training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MAX_COPIES = 4  # a copy shares its parameters with the original, except position tables


class SizedCopies:
    """Copies of a model, each set to another input size, always from the original.

    Not a module: the copies are not part of the state dict. They are recreated after the model has
    moved to another device.

    Args:
        native: (height, width) that ``model`` itself takes; None if unknown.
        resize: sets a copy to a (height, width).
    """

    def __init__(
        self,
        model: nn.Module,
        native: tuple[int, int] | None,
        resize: Callable[[Any, tuple[int, int]], None],
    ) -> None:
        self.model, self.native, self.resize = model, native, resize
        self._copies: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._device: tuple[torch.device, torch.dtype] | None = None

    def at(self, height: int, width: int) -> Any:
        """The model for images of ``height`` × ``width`` pixels."""
        size = (height, width)
        if size == self.native:
            return self.model
        first = next(self.model.parameters())
        if self._device != (first.device, first.dtype):
            self.clear()
            self._device = (first.device, first.dtype)
        if size not in self._copies:
            # parameters are shared; buffers are not, since timm fills them in place
            shared = {id(parameter): parameter for parameter in self.model.parameters()}
            with torch.inference_mode(False), torch.no_grad():
                resized: Any = copy.deepcopy(self.model, memo=shared)
                self.resize(resized, size)
            self._copies[size] = resized.requires_grad_(False).eval()
            while len(self._copies) > MAX_COPIES:
                self._copies.popitem(last=False)
        self._copies.move_to_end(size)
        return self._copies[size]

    def clear(self) -> None:
        """Drop the copies; they are recreated on demand."""
        self._copies.clear()
