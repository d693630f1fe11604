"""OpenMMLab's libraries as the probes import them: mmcv without its compiled operators, and others
without what no probe needs of them. Importing ``probes`` installs both finders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
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


# module → what it imports that no probe needs, with the functions of it that are deferred to their
# first call; without any it seems not to be installed, unless it was imported before. All take
# seconds: mmdet (also 240 MB) and mmcv's operators, for heads that predict masks; transformers with
# all that it finds installed, for one optimizer; torch's distributed tensors, for another, and for
# models on several nodes; a table of text tokens; W&B, for timm's tables.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "mmseg.models.decode_heads.mask2former_head": ("mmdet",),
    "mmseg.models.decode_heads.maskformer_head": ("mmdet",),
    "mmseg.utils.mask_classification": ("mmcv.ops",),
    "mmengine.model.wrappers": (
        "mmengine.model.wrappers.fully_sharded_distributed",
        "MMFullyShardedDataParallel",
    ),
    "mmengine._strategy": ("mmengine._strategy.fsdp", "FSDPStrategy"),
    "mmengine.optim.optimizer.builder": ("transformers", "Adafactor"),
    "mmengine.optim.optimizer.zero_optimizer": ("torch.distributed.optim",),
    "mmseg.utils": ("mmseg.utils.tokenizer", "tokenize"),
    "mmseg.models.text_encoder.clip_text_encoder": ("mmseg.utils.tokenizer", "tokenize"),
    "mmseg.datasets.transforms.transforms": ("scipy.ndimage", "gaussian_filter"),
    "mmseg.models.assigners.hungarian_assigner": ("scipy.optimize", "linear_sum_assignment"),
    "mmseg.models.backbones.beit": ("scipy.interpolate", "interp2d"),
    "mmseg.models.losses.huasdorff_distance_loss": ("scipy.ndimage", "distance_transform_edt"),
    "timm.utils.summary": ("wandb", "log"),
}


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function that imports itself when it is called. Its first parameters have the name that
    MMEngine gives an optimizer's by."""
    return lambda *params, **named: getattr(import_module(module), function)(*params, **named)


class OptionalLoader(SourceFileLoader):
    """Loads a module without what is ``OPTIONAL``."""

    def exec_module(self, module: ModuleType) -> None:
        name, *functions = OPTIONAL[module.__name__]
        imported = sys.modules.get(name)
        if imported and not functions:
            super().exec_module(module)
            return
        stand_in = ModuleType(name) if functions else None  # importing None fails as if absent
        for function in functions:
            setattr(stand_in, function, deferred(name, function))
        sys.modules[name] = stand_in  # type: ignore[assignment]
        try:
            super().exec_module(module)
        finally:
            del sys.modules[name]
            if imported:
                sys.modules[name] = imported


class OptionalFinder(MetaPathFinder):
    """Finds the modules that have something ``OPTIONAL``; Python asks it first."""

    def find_spec(self, name: str, path: Sequence[str] | None, *_: Any) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in OPTIONAL else None
        if spec is not None and spec.origin is not None:
            spec.loader = OptionalLoader(name, spec.origin)
        return spec
