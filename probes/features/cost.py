"""How images are encoded: on which device, by how many processes, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from backbones.cliptex.protocols import Progress, Silent
from probes.base import Context
from probes.cost import Cost


@dataclass(frozen=True)
class EncodeRun:
    """The resources that encode images.

    Attributes:
        device: the device that computes.
        num_workers: loading processes (0 = in this one); their number by itself never changes a
            value.
        progress: shows how far encoding is.
        cost: counts the images that are encoded, and their seconds.
    """

    device: torch.device
    num_workers: int = 2
    progress: Progress = field(default_factory=Silent)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(cls, context: Context) -> EncodeRun:
        """The resources of a task."""
        return cls(context.device, context.num_workers, context.progress, context.cost)
