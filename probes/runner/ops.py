"""The compiled operators of mmcv that our detectors use, from torchvision.

mmcv's wheels for current versions of torch come without the compiled module ``mmcv._ext``, which
``mmcv.ops`` imports. ``install`` puts a module in its place.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torchvision.ops
from torch import Tensor

NAME = "mmcv._ext"


class TorchvisionOps(ModuleType):
    """A stand-in for ``mmcv._ext``; operators that torchvision lacks fail when they are called."""

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
        """Indices (M,) of the boxes (N, 4; x1 y1 x2 y2) to keep, best first; sides measure
        ``x2 - x1 + offset``."""
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        maps: Tensor, rois: Tensor, output: Tensor, *_: Tensor, pool_mode: int, **options: Any
    ) -> None:
        """Write RoIAlign (He et al. 2017) of ``rois`` (K, 5) into ``output`` (K, C, height, width);
        mmdet crops masks with it."""
        assert pool_mode == 1, "torchvision's RoIAlign averages; it has no maximum"
        size = options.pop("aligned_height"), options.pop("aligned_width")
        output.copy_(torchvision.ops.roi_align(maps, rois, size, **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's operator {name!r} needs an mmcv that was built with its compiled operators"
            )

        return missing


def install() -> None:
    """Put the stand-in at ``mmcv._ext``, unless mmcv has compiled operators; to be called before
    mmdet or ``mmcv.ops`` is imported."""
    if NAME not in sys.modules and find_spec(NAME) is None:
        module = TorchvisionOps(NAME)
        module.__spec__ = ModuleSpec(NAME, None)
        sys.modules[NAME] = module
