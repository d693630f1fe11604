"""Task experts: models that write pseudo-labels. Importing this makes those of this floor known."""

import backbones.cliptex.experts.dpt
import backbones.cliptex.experts.nll_angmf
import backbones.cliptex.experts.unet_seg  # noqa: F401  (importing registers them)
from backbones.cliptex.experts.base import TASKS, Expert
from backbones.cliptex.experts.evaluate import evaluate
from backbones.cliptex.experts.registry import EXPERTS, find_expert, load_experts, register_expert
from backbones.cliptex.experts.training import train_expert

__all__ = [
    "EXPERTS",
    "TASKS",
    "Expert",
    "evaluate",
    "find_expert",
    "load_experts",
    "register_expert",
    "train_expert",
]
