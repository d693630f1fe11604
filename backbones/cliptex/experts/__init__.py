"""Task experts: models that write pseudo-labels. They are registered here, and imported lazily."""

from backbones.cliptex.experts.base import EXPERTS, Expert, find_expert, load_experts

EXPERTS.register_lazy(
    "unet-seg",
    f"{__name__}.unet:UNetSeg",
    "semantic segmentation by a U-Net, trained here on COCO instances merged into one map",
)
EXPERTS.register_lazy(
    "unet-depth", f"{__name__}.unet:UNetDepth", "relative inverse depth by a U-Net, trained here"
)
EXPERTS.register_lazy(
    "unet-normals",
    f"{__name__}.unet:UNetNormals",
    "surface normals and their uncertainty by a U-Net (AngMF likelihood), trained here",
)
EXPERTS.register_lazy(
    "dpt",
    f"{__name__}.published:DPT",
    "relative inverse depth by a transformers model: a hub name or a folder",
)
EXPERTS.register_lazy(
    "nll-angmf",
    f"{__name__}.published:NllAngMF",
    "surface normals and their uncertainty (AngMF likelihood), by its authors' checkpoint",
)

__all__ = ["EXPERTS", "Expert", "find_expert", "load_experts"]
