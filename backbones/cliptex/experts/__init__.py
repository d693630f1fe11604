"""Task experts: models that write pseudo-labels. Importing this makes those of this floor known, and imports none."""

from backbones.cliptex.experts.base import Expert
from backbones.cliptex.experts.evaluate import evaluate
from backbones.cliptex.experts.registry import EXPERTS, find_expert, load_experts
from backbones.cliptex.experts.training import train_expert

for _name, _where, _about in (
    (
        "unet",
        "unet_seg:UNetSeg",
        "semantic segmentation (encoder-decoder); trained here on COCO instances merged into one map",
    ),
    ("dpt", "dpt:DPT", "relative inverse depth: DPT by hub name, folder or MiDaS's checkpoint; can be trained here"),
    (
        "nll-angmf",
        "nll_angmf:NllAngMF",
        "surface normals and their uncertainty (AngMF likelihood), by its authors' checkpoint; can be trained here",
    ),
):
    EXPERTS.later(_name, f"{__name__}.{_where}", _about)

__all__ = ["EXPERTS", "Expert", "evaluate", "find_expert", "load_experts", "train_expert"]
