"""mmcv's compiled operators, given from torchvision's kernels where mmcv was installed without
them.

mmdet imports ``mmcv.ops``, whose files ask a compiled module ``mmcv._ext`` for their functions at
import time; the wheels of mmcv that exist for new torch versions come without that module, and
building it takes many minutes. ``install()`` puts a small module in its place which has the
operators that our probes use and names any other one clearly. Everything here works on every device
that torchvision's kernels work on.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor

from common.errors import UserError

NAME = "mmcv._ext"


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) float, x1 y1 x2 y2.
        scores: (N,) float; equal scores keep their input order.
        iou_threshold: a box is dropped when its IoU with a kept one is greater than this.
        offset: 0 or 1; width and height are ``x2 - x1 + offset``.

    Returns:
        (M,) int64 indices of the kept boxes, best first.
    """
    if offset:
        # moving x2, y2 by one makes every width, height and overlap what mmcv calls its value at
        # offset 1
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling (He et al. 2017) into ``output`` (K, C, aligned_height,
    aligned_width).

    ``input`` is (N, C, H, W), ``rois`` (K, 5) as batch index, x1, y1, x2, y2 in input pixels;
    ``sampling_ratio`` 0 takes ceil(roi size / output size) samples per bin and axis. ``argmax_*``
    belong to max pooling and are left alone.

    Raises:
        UserError: ``pool_mode`` is 0 (max), for which torchvision has no kernel.
    """
    _average_only(pool_mode)
    pooled = torch.ops.torchvision.roi_align(
        input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of ``roi_align_forward`` with respect to its input, written to ``grad_input`` (N, C,
    H, W)."""
    _average_only(pool_mode)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois,
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def get_compiler_version() -> str:
    return "none (operators from torchvision)"


def get_compiling_cuda_version() -> str:
    return "not available"


def compiled_ops_present() -> bool:
    """Whether mmcv's own compiled operators are installed."""
    ours = isinstance(sys.modules.get(NAME), _TorchvisionOps)
    return not ours and importlib.util.find_spec(NAME) is not None


def install() -> bool:
    """Put the stand-in at ``mmcv._ext`` unless compiled operators are there; harmless when called
    again.

    Must come before the first import of ``mmcv.ops``, mmdet or mmseg.

    Returns:
        Whether the stand-in is in place (False: mmcv's compiled operators are used).
    """
    if compiled_ops_present():
        return False
    if NAME not in sys.modules:
        # mmengine and mmcv ask importlib for the module's spec, so that it needs a real one
        spec = importlib.machinery.ModuleSpec(NAME, _InPlace(), origin=__file__)
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
    return True


def _average_only(pool_mode: int) -> None:
    if pool_mode == 0:
        raise UserError(
            "RoIAlign with pool_mode='max' is not among torchvision's kernels; use 'avg', or"
            f" {_BUILD}"
        )


_BUILD = (
    "build mmcv with its operators (MMCV_WITH_OPS=1 pip install --no-deps --no-binary onedl-mmcv"
    " onedl-mmcv)"
)
_GIVEN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        nms,
        roi_align_forward,
        roi_align_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}


class _TorchvisionOps(ModuleType):
    """The stand-in. ``mmcv.ops`` only checks at import that every name is there; what we lack fails
    when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _GIVEN:
            return _GIVEN[name]

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise UserError(
                f"mmcv's operator {name!r} is not installed and torchvision has no kernel for it;"
                f" {_BUILD}"
            )

        return missing


class _InPlace(importlib.abc.Loader):
    """Loader of the stand-in's spec: the module is made whole, there is nothing to execute."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _TorchvisionOps(spec.name, __doc__)

    def exec_module(self, module: ModuleType) -> None:
        pass
