"""Task experts: models that write pseudo-labels. They are registered here, and imported lazily."""

from backbones.cliptex.experts.base import EXPERTS, Expert, find_expert
from backbones.cliptex.experts.registry import load_experts
from backbones.cliptex.experts.training import evaluate_expert, train_expert

EXPERTS.register_lazy(
    "unet",
    f"{__name__}.unet:UNetSeg",
    "semantic segmentation (encoder-decoder); trained here on COCO instances merged into one map",
)
EXPERTS.register_lazy(
    "dpt",
    f"{__name__}.dpt:DPT",
    "relative inverse depth: a transformers model by hub name or folder; can be trained here",
)
EXPERTS.register_lazy(
    "nll-angmf",
    f"{__name__}.nll_angmf:NllAngMF",
    "surface normals and their uncertainty (AngMF likelihood), by its authors' checkpoint; can be"
    " trained here",
)

__all__ = ["EXPERTS", "Expert", "evaluate_expert", "find_expert", "load_experts", "train_expert"]
