"""Tensors of the pretended accelerator, and how operators run on them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.accelerator.pretended import operators
from tests.accelerator.pretended.counters import Allocation, record
from tests.accelerator.pretended.kernels import KERNELS
from tests.accelerator.pretended.pinned import is_pinned, pin
from tests.accelerator.pretended.random_numbers import (
    is_of_device,
    is_pretended,
    own_random_numbers,
)

aten = torch.ops.aten
DEVICE = torch.device("privateuseone", 0)  # called gpu:0 after ``backend.start``


class PretendedTensor(torch.Tensor):
    """A tensor on ``gpu:0``: its values are in ``host``, a tensor on the CPU that nothing else
    sees."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> PretendedTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )

    def __init__(self, host: Tensor) -> None:
        self.host, self._allocation = host, Allocation(host)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, dict(kwargs or {}))

    # what torch implements in C++ for its own tensors only

    def __repr__(self, **options: Any) -> str:
        return f"gpu({self.host})"

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_lists_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_lists_as_tensors(index), value)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            own = {"host", "_allocation"}
            copied.__dict__.update({k: v for k, v in self.__dict__.items() if k not in own})
            memo[id(self)] = copied
        return memo[id(self)]

    def new_tensor(
        self, data: Any, dtype: Any = None, device: Any = DEVICE, requires_grad: bool = False
    ) -> Tensor:
        dtype = dtype or self.dtype
        return torch.tensor(data, dtype=dtype, device=device, requires_grad=requires_grad)


class PretendedMode(TorchDispatchMode):
    """Runs operators that create tensors on the device, and in inference mode all others too,
    which torch then does not hand to ``PretendedTensor``."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.namespace != "prim" and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        if _concerns_device(args, kwargs):
            return run(func, args, kwargs)
        pinned = kwargs.pop("pin_memory", False)
        output = func(*args, **kwargs)
        return pin(output) if pinned else output


MODE = PretendedMode()


def _concerns_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an argument, the result, or the generator is of the device."""
    generator = kwargs.get("generator")
    if is_pretended(kwargs.get("device")) or (generator is not None and is_of_device(generator)):
        return True
    return any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs)))


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator of which a tensor, or the result, is on the device.

    Raises:
        RuntimeError: it mixes devices, draws from a generator of another device, or copies to the
            CPU without waiting, so that what is read there may not have arrived.
        NotImplementedError: an accelerator has no kernel for it.
        TypeError: the result has a type of ``operators.MISSING_TYPES``.
        torch.OutOfMemoryError: see ``memory_limit``.
    """
    if func._can_decompose():  # composite operators come here in inference mode only
        with MODE:
            return func.decompose(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # the implementation by products of matrices
    name = operators.operator_name(func)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
    to_device = _result_is_on_device(name, args, kwargs, bool(on_device))
    if on_device and name in operators.ONLY_ON_CPU:
        raise NotImplementedError(f"{func}: no kernel for {DEVICE}")
    if name in operators.COPYING:
        _count_copy(name, args, kwargs, to_device)
    elif on_device:
        _count_waits(name, args, kwargs)
        _check_devices(func, name, args, leaves)
    generator = kwargs.get("generator")
    if generator is not None and is_of_device(generator) != to_device:
        device = DEVICE if to_device else "cpu"
        raise RuntimeError(f"{func}: the generator is not of {device}, where the result is")
    draws = to_device and generator is None and operators.draws_random_numbers(func)
    kernel = KERNELS.get(name, func)
    with own_random_numbers() if draws else nullcontext():
        output = kernel(*_on_host(args), **_on_host(_without_device(kwargs)))
    if torch.Tag.inplace_view in func.tags and on_device:
        with no_dispatch():  # the shape of the tensor itself
            func(*args, **kwargs)
    if not to_device:
        return args[0] if name == "copy_" else output
    return _on_device(output, {id(tensor.host): tensor for tensor in on_device})


def _result_is_on_device(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], some: bool
) -> bool:
    if kwargs.get("device") is not None:
        return is_pretended(kwargs["device"])
    return isinstance(args[0], PretendedTensor) if name == "copy_" else some


def _count_copy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> None:
    """Count a copy between devices; from pageable memory the CPU waits in any case."""
    source = args[1] if name == "copy_" else args[0]
    from_device = isinstance(source, PretendedTensor)
    if from_device == to_device:
        return
    is_async = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    if is_async and not to_device:
        raise RuntimeError("a copy to the CPU that nothing waits for may be read too early")
    is_async = is_async and is_pinned(source)
    record(
        "async copy" if is_async else "blocking copy", f"{name} {'to' if to_device else 'from'} gpu"
    )


def _count_waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if operators.waits(name, kwargs):
        record("wait", name)
    if name in operators.INDEXING and isinstance(args[0], PretendedTensor):
        for index in args[1]:
            if index is None:
                continue
            if not isinstance(index, PretendedTensor):
                record("blocking copy", f"{name} to gpu")
            elif index.dtype in (torch.bool, torch.uint8):
                record("wait", f"{name} by a mask")


def _check_devices(func: Any, name: str, args: tuple[Any, ...], leaves: list[Tensor]) -> None:
    """Raise ``RuntimeError`` if an operator of the device gets a tensor of the CPU that it does not
    take."""
    indices: list[Any] = []
    if name in operators.INDEXING and isinstance(args[0], PretendedTensor):
        indices = list(args[1])
    for tensor in leaves:
        if isinstance(tensor, PretendedTensor) or any(tensor is index for index in indices):
            continue
        if not operators.takes_from_cpu(name, tensor):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found {DEVICE} and"
                f" {tensor.device} (of shape {tuple(tensor.shape)})"
            )


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments for the operator on the CPU."""
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    return kwargs


def _on_host(values: Any) -> Any:
    """``values`` with the tensors on the CPU in the place of those on the device."""
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, PretendedTensor) else leaf, values)


def _on_device(output: Any, existing: dict[int, PretendedTensor]) -> Any:
    """``output`` with tensors on the device; an operator in place returns its own argument."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in existing:
            return existing[id(leaf)]
        if leaf.dtype in operators.MISSING_TYPES:
            raise TypeError(f"{DEVICE} has no {leaf.dtype}")
        # a view of a normal tensor in inference mode is a normal one
        with torch.inference_mode(leaf.is_inference()):
            return PretendedTensor(leaf)

    return tree_map(convert, output)


def _lists_as_tensors(index: Any) -> Any:
    """``x[[2, 1, 0]]``: the list becomes a tensor on the CPU, which is copied, as on CUDA."""

    def convert(part: Any) -> Any:
        is_list = isinstance(part, list | range) and len(part) > 0
        return torch.tensor(part) if is_list and isinstance(part[0], int) else part

    return tuple(map(convert, index)) if isinstance(index, tuple) else convert(index)
