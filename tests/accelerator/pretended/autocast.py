"""Autocast of the pretended accelerator: mostly as CUDA's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from tests.accelerator.pretended.random_numbers import DEVICE_TYPE
from tests.accelerator.pretended.tensor import PretendedTensor

KEY = "AutocastPrivateUse1"
LOW = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "matmul",
    "mm",
    "mv",
    "bmm",
    "addmm",
    "addbmm",
    "baddbmm",
    "linear",
    "prelu",
    "scaled_dot_product_attention",
]
FULL = [
    "layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "cosine_similarity",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "nll_loss",
    "cross_entropy_loss",
    "binary_cross_entropy_with_logits",
    "pow.Tensor_Scalar",
    "exp",
    "log",
    "log1p",
    "norm.Scalar",
    "sum",
    "sum.dim_IntList",
    "prod",
    "cumsum",
    "rsqrt",
    "reciprocal",
]
WIDEST = [
    "cat",
    "stack",
    "index_put",
    "where.self",
    "addcmul",
    "addcdiv",
    "bilinear",
    "dot",
    "scatter_add",
]
_libraries: list[torch.library.Library] = []  # what is registered lasts as long as these


def register() -> None:
    """Teach torch which operators compute in which precision under ``torch.autocast("gpu")``."""
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(torch.library.fallthrough_kernel, KEY)
    library = torch.library.Library("aten", "IMPL")
    _libraries.extend((fallback, library))
    for names, cast in ((LOW, _to_low), (FULL, _to_full), (WIDEST, _to_widest)):
        for name in names:
            for operator in _overloads(name):
                library.impl(operator, functools.partial(_run, operator, cast), KEY)


def _overloads(name: str) -> list[Any]:
    """The operator ``name.overload``, or all overloads of ``name`` that return their result."""
    packet, _, overload = name.partition(".")
    operator = getattr(torch.ops.aten, packet)
    names = [overload] if overload else [n for n in operator.overloads() if "out" not in n]
    return [getattr(operator, each) for each in names]


def _run(operator: Any, cast: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on arguments that are cast; autocast is off within it."""
    floats = [leaf for leaf in tree_leaves((args, kwargs)) if _is_castable(leaf)]
    dtype = cast(floats)
    if dtype is not None:
        args, kwargs = tree_map(
            lambda leaf: leaf.to(dtype) if _is_castable(leaf) else leaf, (args, kwargs)
        )
    with torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))
    ):
        return operator(*args, **kwargs)


def _is_castable(leaf: Any) -> bool:
    return (
        isinstance(leaf, PretendedTensor)
        and leaf.is_floating_point()
        and leaf.dtype != torch.double
    )


def _to_low(floats: list[torch.Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype(DEVICE_TYPE)


def _to_full(floats: list[torch.Tensor]) -> torch.dtype:
    return torch.float32


def _to_widest(floats: list[torch.Tensor]) -> torch.dtype | None:
    return torch.float32 if len({tensor.dtype for tensor in floats}) > 1 else None
