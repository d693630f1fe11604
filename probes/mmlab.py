"""OpenMMLab's libraries as the probes import them: mmcv without its compiled operators, and
MMSegmentation without MMDetection. Importing ``probes`` installs both finders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

MMCV_OPERATORS = "mmcv._ext"


class TorchvisionOps(ModuleType):
    """A stand-in for ``mmcv._ext``, with the operators that our detectors use, from torchvision;
    others fail when they are called.

    ``mmcv.ops`` imports that compiled module, and mmcv's wheels for current versions of torch come
    without it.
    """

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
        """Indices (M,) of the boxes (N, 4; x1 y1 x2 y2) to keep, best first; sides measure
        ``x2 - x1 + offset``."""
        from torchvision import ops

        boxes = boxes.clone()
        boxes[:, 2:] += offset
        return ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        maps: Tensor, rois: Tensor, output: Tensor, *_: Tensor, pool_mode: int, **options: Any
    ) -> None:
        """Write RoIAlign (He et al. 2017) of ``rois`` (K, 5) into ``output`` (K, C, height, width);
        mmdet crops masks with it."""
        from torchvision import ops

        assert pool_mode == 1, "torchvision's RoIAlign averages; it has no maximum"
        size = options.pop("aligned_height"), options.pop("aligned_width")
        output.copy_(ops.roi_align(maps, rois, size, **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's operator {name!r} needs an mmcv that was built with its compiled operators"
            )

        return missing


class OperatorFinder(MetaPathFinder, Loader):
    """Finds ``TorchvisionOps`` as ``mmcv._ext``; Python asks it last, where mmcv has none."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(MMCV_OPERATORS, self) if name == MMCV_OPERATORS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return TorchvisionOps(MMCV_OPERATORS)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


# modules of mmseg that only heads which predict masks need; no probe has these → what they can do
# without: mmdet takes 240 MB and two seconds to import, mmcv's operators two
OPTIONAL = {
    "mmseg.models.decode_heads.mask2former_head": "mmdet",
    "mmseg.models.decode_heads.maskformer_head": "mmdet",
    "mmseg.utils.mask_classification": "mmcv.ops",
}


class MaskHeadLoader(SourceFileLoader):
    """Loads a module as if what is ``OPTIONAL`` were not installed, unless it was imported
    before."""

    def exec_module(self, module: ModuleType) -> None:
        absent = OPTIONAL[module.__name__]
        if absent in sys.modules:
            super().exec_module(module)
            return
        sys.modules[absent] = None  # type: ignore[assignment]  # importing it fails as if absent
        try:
            super().exec_module(module)
        finally:
            del sys.modules[absent]


class MaskHeadFinder(MetaPathFinder):
    """Finds the modules of heads that predict masks; Python asks it first."""

    def find_spec(self, name: str, path: Sequence[str] | None, *_: Any) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in OPTIONAL else None
        if spec is not None and spec.origin is not None:
            spec.loader = MaskHeadLoader(name, spec.origin)
        return spec
