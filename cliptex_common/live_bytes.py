"""Bytes that tensors take in a step of work, counted without computing it.

The step runs on *fake* tensors (``torch._subclasses.FakeTensorMode``), which have shapes and dtypes
but no data, so that a step of any size takes as long as calling its operators. They are on the CPU,
because torch runs them for an accelerator only where it was built for that one, and stand for those
of the device that is planned for.

What is counted are the storages that operators return. Not counted are what kernels take while they
run, the context of a device, and what its allocator wastes.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
Module = TypeVar("Module", bound=nn.Module)
_planned: ContextVar[torch.device | None] = ContextVar("planned device", default=None)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that live.

    Attributes:
        now: bytes that live; peak: most since ``take_peak``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}
        self._on_host = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:  # composite operators reach modes in inference mode: see their parts
                return func.decompose(*args, **(kwargs or {}))
        if func is aten._local_scalar_dense.default:  # no value is known: 1, True
            dtype = args[0].dtype
            return dtype is torch.bool or (1.0 if dtype.is_floating_point else 1)
        if func is aten.nonzero.default:  # as if no entry were 0: the most memory
            out = args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        else:
            if func is aten.index.Tensor:
                args = (args[0], _all_of(args[1]))
            out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def take_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.now
        return peak

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Tensors that are created in the block are not in the memory of the planned device."""
        self._on_host = True
        try:
            yield
        finally:
            self._on_host = False

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, 0 if self._on_host else storage.nbytes()
        if key in self._storages:
            return

        def drop(_: Any) -> None:
            del self._storages[key]
            self.now -= size

        # a storage's Python object lives as long as the storage
        self._storages[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


def _all_of(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices in the place of masks, as if these had no False entry."""
    replaced: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            replaced.append(index)
        else:
            rows = torch.empty(index.numel(), dtype=torch.int64)
            replaced += [rows] * index.dim()
    return replaced


@contextmanager
def counting(device: torch.device) -> Iterator[LiveBytes]:
    """Within the block tensors are fake ones that stand for those of ``device``."""
    token = _planned.set(device)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as counter:
            yield counter
    finally:
        _planned.reset(token)


# within ``counting``: a block with real tensors, as of files that are read
real_tensors = _disable_current_modes


def device_of(tensor: Tensor) -> torch.device:
    """The device of a tensor; within ``counting`` the one that it stands for."""
    return _planned.get() or tensor.device


def cached_tensors(maxsize: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """``functools.lru_cache`` for functions that return a tensor, which can be used in any mode.

    Within ``counting`` nothing is cached: fake tensors are of use there alone.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        cached = functools.lru_cache(maxsize)(function)

        @functools.wraps(function)
        def call(*args: Any) -> Tensor:
            if _planned.get() is not None:
                return function(*args)
            with torch.inference_mode(False):  # it may be used where gradients are
                return cached(*args)

        return call

    return decorate


def fake_copy(module: Module) -> Module:
    """A copy of a module whose parameters and buffers are fake; call it within ``counting``."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None or id(tensor) in memo:
                continue
            fake: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fake
    return copy.deepcopy(module, memo)
