"""How an accelerator runs torch's operators: which of them wait for a result, which take tensors of
two devices. As CUDA does it, where backends differ."""

from __future__ import annotations

from typing import Any

import torch

# these need a result on the CPU: a number, a count that is a shape, or an error code
WAITING = {
    "_local_scalar_dense",
    "_linalg_eigh",
    "_linalg_solve_ex",
    "_linalg_svd",
    "_unique2",
    "bincount",
    "equal",
    "linalg_cholesky_ex",
    "linalg_inv_ex",
    "linalg_lstsq",
    "masked_select",
    "nms",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# their first argument is indexed by a list of tensors, which may be on the CPU
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# those of torch's native_functions.yaml with a kernel for the CPU alone
ONLY_ON_CPU = {
    "_histogramdd_bin_edges",
    "_histogramdd_from_bin_cts",
    "_histogramdd_from_bin_tensors",
    "_spdiags",
    "histogram",
    "to_mkldnn",
}
# of tensors that the device cannot have: a test adds float64, which MPS has not
MISSING_TYPES: set[torch.dtype] = set()
COPYING = {"copy_", "_to_copy"}
# others take a number of the CPU (a tensor of no dimension) for a number; these do not
STRICT = {
    "addmm",
    "bmm",
    "cat",
    "embedding",
    "gather",
    "index_select",
    "mm",
    "scatter",
    "scatter_add",
    "stack",
    "take",
}
# optimizers, whose step may be counted on the CPU
MIXING = {"_fused_adamw_", "_fused_adam_", "_fused_sgd_"}


def operator_name(func: Any) -> str:
    """Of ``aten::mm.out``: ``mm``."""
    return func._schema.name.split("::")[1]


def waits(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether an operator on tensors of the device waits for it."""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITING


def takes_from_cpu(name: str, tensor: torch.Tensor) -> bool:
    """Whether an operator on tensors of the device takes this one of the CPU beside them."""
    if name.startswith("_foreach") or name in MIXING:
        return True
    return tensor.dim() == 0 and name.rstrip("_") not in STRICT


def draws_random_numbers(func: Any) -> bool:
    """Whether an operator draws from the default generator of its device."""
    return torch.Tag.nondeterministic_seeded in func.tags
