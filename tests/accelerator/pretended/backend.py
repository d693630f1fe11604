"""How torch, and the libraries above it, come to know the pretended accelerator."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Union

import numpy as np
import torch
import torch.utils.backend_registration as registration
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.accelerator.pretended import autocast, pinned
from tests.accelerator.pretended.counters import MEMORY, record
from tests.accelerator.pretended.random_numbers import (
    DEVICE_TYPE,
    OWN,
    Generator,
    is_pretended,
)
from tests.accelerator.pretended.tensor import DEVICE, MODE, PretendedTensor


class Module:
    """``torch.gpu``: what ``torch.cuda`` is for CUDA."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        """There is one."""

    def device(self, device: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def get_device_name(self, device: Any = None) -> str:
        return "pretended accelerator"

    def synchronize(self, device: Any = None) -> None:
        record("wait", "synchronize")

    def manual_seed(self, seed: int) -> None:
        OWN.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return OWN.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        OWN.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return MEMORY.limit - MEMORY.live, MEMORY.limit

    def memory_allocated(self, device: Any = None) -> int:
        return MEMORY.live

    def max_memory_allocated(self, device: Any = None) -> int:
        return MEMORY.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        MEMORY.reset_peak()

    def empty_cache(self) -> None:
        """Nothing is cached."""


class Constructors(TorchFunctionMode):
    """``torch.tensor(…, device="gpu")``, which is not an operator."""

    FUNCTIONS = (torch.tensor, torch.as_tensor, torch.asarray)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self.FUNCTIONS or not is_pretended(kwargs.get("device")):
            return func(*args, **kwargs)
        kwargs.pop("device")
        requires_grad = kwargs.pop("requires_grad", False)
        if args and isinstance(args[0], PretendedTensor):
            tensor = args[0].to(kwargs.get("dtype") or args[0].dtype)
        else:
            tensor = func(*args, **kwargs).to(DEVICE)
        return tensor.requires_grad_() if requires_grad else tensor


_constructors = Constructors()
_apply, _load, _is_pinned = torch.nn.Module._apply, torch.load, torch.Tensor.is_pinned


def unsupported() -> str:
    """Why this version of torch cannot pretend an accelerator; '' if it can."""
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        return f"torch {torch.__version__} takes no backend in Python"
    if torch.accelerator.is_available():
        return "this machine has an accelerator"
    return ""


def start() -> None:
    """Register the accelerator and change torch for the rest of this process. Operators of this
    thread, and those on existing tensors in all threads, run on it.

    Raises:
        RuntimeError: see ``unsupported``.
    """
    if reason := unsupported():
        raise RuntimeError(reason)
    registration._setup_privateuseone_for_python_backend(DEVICE_TYPE, backend_module=Module())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operator has had a kernel for a key that is not used
        autocast.register()
    torch.Generator = Generator  # type: ignore[misc]
    torch.Tensor.pin_memory = pinned.pin_memory  # type: ignore[assignment,method-assign]
    torch.Tensor.is_pinned = pinned.is_pinned  # type: ignore[assignment,method-assign]
    torch.nn.Module._apply = _apply_keeping_parameters  # type: ignore[method-assign]
    torch.load = _load_to_device  # type: ignore[assignment]
    torch.distributed.Backend.default_device_backend_map[DEVICE_TYPE] = "gloo"
    _teach_mmengine()
    MODE.__enter__()
    _constructors.__enter__()


def _apply_keeping_parameters(self: Any, fn: Any, recurse: bool = True) -> Any:
    """``Module.to`` changes parameters in place, as on CUDA: optimizers and tied layers hold
    them."""
    future = torch.__future__
    before = future.get_swap_module_params_on_conversion()
    future.set_swap_module_params_on_conversion(True)
    try:
        return _apply(self, fn, recurse)
    finally:
        future.set_swap_module_params_on_conversion(before)


def _load_to_device(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """``torch.load``, whose reader in C++ knows no pretended tensors."""
    if not is_pretended(map_location):
        return _load(*args, map_location=map_location, **kwargs)
    loaded = _load(*args, map_location="cpu", **kwargs)
    return tree_map(
        lambda leaf: leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf, loaded
    )


def _teach_mmengine() -> None:
    """Its ``InstanceData`` asks for the classes of index tensors, which it knows by device."""
    import mmengine.structures.instance_data as module

    def indices(dtype: torch.dtype) -> type:
        def is_instance(cls: type, value: Any) -> bool:
            return isinstance(value, PretendedTensor) and value.dtype == dtype

        return type("Indices", (type,), {"__instancecheck__": is_instance})("Indices", (), {})

    module.BoolTypeTensor = Union[torch.BoolTensor, indices(torch.bool)]  # noqa: UP007
    module.LongTypeTensor = Union[torch.LongTensor, indices(torch.int64)]  # noqa: UP007
    module.IndexType = Union[  # noqa: UP007
        str, slice, int, list, module.LongTypeTensor, module.BoolTypeTensor, np.ndarray
    ]
