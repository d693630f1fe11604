"""Page-locked memory: which CPU tensors were pinned, so that copies from them are asynchronous."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_pinned: dict[int, StorageWeakRef] = {}  # by address, which a weak reference keeps from reuse


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, remembered as pinned."""
    for address in [key for key, storage in list(_pinned.items()) if storage.expired()]:
        _pinned.pop(address, None)
    storage = tensor.untyped_storage()
    _pinned[storage._cdata] = StorageWeakRef(storage)
    return tensor


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    """In place of ``Tensor.is_pinned``."""
    return tensor.device.type == "cpu" and tensor.untyped_storage()._cdata in _pinned


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """In place of ``Tensor.pin_memory``: a pinned copy.

    Raises:
        RuntimeError: the tensor is not on the CPU.
    """
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin {tensor.device}: only tensors on the CPU can be pinned")
    return tensor if is_pinned(tensor) else pin(tensor.clone(memory_format=torch.preserve_format))
