"""Input sizes that differ from training, for models whose position tables are tied to one size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

# sizes remembered; a resized copy shares its parameters with the original, position tables apart
_KEPT = 4


class SizedCopies:
    """Copies of a model for other input sizes, made by its own ``set_input_size``, always from the
    original.

    ``native`` is the (height, width) that ``model`` itself takes; None where it does not say, and
    every size is a copy.
    Not a module: the copies are no part of the state dict. They are made again when the model has
    moved.
    """

    def __init__(self, model: nn.Module, native: tuple[int, int] | None) -> None:
        self.model = model
        self.native = native
        self._copies: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._made_for: tuple[torch.device, torch.dtype] | None = None

    def at(self, height: int, width: int) -> Any:
        """The model for images of ``height`` × ``width`` pixels."""
        size = (height, width)
        if size == self.native:
            return self.model
        first = next(self.model.parameters())
        if self._made_for != (first.device, first.dtype):
            self.clear()
            self._made_for = (first.device, first.dtype)
        if size not in self._copies:
            # parameters are shared (a resized one is replaced); buffers are not, since timm fills
            # them in place
            shared = {id(parameter): parameter for parameter in self.model.parameters()}
            with torch.inference_mode(False), torch.no_grad():
                resized: Any = copy.deepcopy(self.model, memo=shared)
                resized.set_input_size(size)
            self._copies[size] = resized.requires_grad_(False).eval()
            while len(self._copies) > _KEPT:
                self._copies.popitem(last=False)
        self._copies.move_to_end(size)
        return self._copies[size]

    def clear(self) -> None:
        """Forget the copies; they are made again when needed."""
        self._copies.clear()
