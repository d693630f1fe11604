"""One training step: forward, losses, backward – whole or in micro-batches, in one process or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones.cliptex.data.dataset import Batch
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.contrastive import cached_gradients, contrastive_loss, sum_over_ranks, world
from backbones.cliptex.training.models import Towers

Losses = dict[str, Tensor]


class Steps:
    """Runs the forward and backward passes of a recipe.

    Args:
        towers: the model, on its device; wrapped for DDP here when there are several processes.
        recipe: λs, micro-batches and precision.
        label_size: side of the dense predictions; 0 without tasks.
    """

    def __init__(self, towers: Towers, recipe: Recipe, label_size: int, device: torch.device) -> None:
        self.towers, self.recipe, self.label_size, self.device = towers, recipe, label_size, device
        self.parallel: nn.Module = towers
        if world()[1] > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(towers, device_ids=ids)

    def backward(self, batch: Batch, norms: bool = False) -> tuple[Losses, dict[str, float]]:
        """Add the gradient of the step's loss, averaged over the global batch, to the parameters.

        Args:
            batch: this process's share.
            norms: also return the norm of each loss's own weighted gradient at the last block of the image tower, the
                last parameters that all share (as GradNorm does, Chen et al. 2018). Costs a fraction of a backward
                pass. With micro-batches, of the first one only.

        Returns:
            detached losses of this process (``clip`` and each task, without λ), and the norms.
        """
        counts = self._counts(batch)
        if self.recipe.accumulate > 1:
            return self._in_pieces(batch.split(self.recipe.accumulate), counts, norms)
        with self.autocast():
            out = self.parallel(batch.images, batch.tokens, self.label_size)
        losses = {"clip": contrastive_loss(out["image"], out["text"], out["logit_scale"])}
        losses |= self._dense(out["dense"], batch, counts)
        weighted = {name: self.recipe.weight(name) * loss for name, loss in losses.items()}
        measured = self._norms(weighted) if norms else {}
        _total(weighted.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}, measured

    def autocast(self) -> Any:
        """The recipe's precision, for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.recipe.precision == "bf16" else nullcontext()

    def _in_pieces(self, parts: Sequence[Batch], counts: Losses, norms: bool) -> tuple[Losses, dict[str, float]]:
        """Gradient caching: embeddings of all micro-batches first, then each again with gradient; see ``contrastive``.

        The contrast is over the whole global batch, and the gradient is the one of a single large step.
        """
        buffers = self.towers.buffers_now()
        with torch.no_grad(), self.autocast():
            seen = [self.towers(part.images, part.tokens) for part in parts]
        self.towers.put_back(buffers)  # the second pass counts, once
        image, text = torch.cat([out["image"] for out in seen]), torch.cat([out["text"] for out in seen])
        clip, *gradients = cached_gradients(image, text, seen[0]["logit_scale"], contrastive_loss)
        losses: Losses = {"clip": clip}
        measured: dict[str, float] = {}
        size = len(parts[0].images)
        for i, part in enumerate(parts):
            rows, last = slice(i * size, (i + 1) * size), i == len(parts) - 1
            wrapped = isinstance(self.parallel, DistributedDataParallel)
            with self.parallel.no_sync() if wrapped and not last else nullcontext():  # type: ignore[operator]
                with self.autocast():
                    out = self.parallel(part.images, part.tokens, self.label_size)
                surrogate = (out["image"] * gradients[0][rows]).sum() + (out["text"] * gradients[1][rows]).sum()
                surrogate = surrogate + out["logit_scale"] * gradients[2] / len(parts)
                dense = self._dense(out["dense"], part, counts)
                weighted = {
                    name: self.recipe.weight(name) * loss for name, loss in {"clip": surrogate, **dense}.items()
                }
                if norms and i == 0:
                    measured = self._norms(weighted)
                _total(weighted.values()).backward()
            for name, loss in dense.items():
                losses[name] = losses.get(name, 0.0) + loss.detach()
        return losses, measured

    def _counts(self, batch: Batch) -> Losses:
        """Labels of each task in the global batch, per process; at least 1."""
        tasks = self.recipe.tasks
        if not tasks:
            return {}
        local = [find_task(task).count(batch.targets[task]) for task in tasks]
        counts = sum_over_ranks(torch.stack(local)) / world()[1]
        return {task: count.clamp(min=1e-6) for task, count in zip(tasks, counts, strict=True)}

    def _dense(self, dense: dict[str, Tensor], batch: Batch, counts: Losses) -> Losses:
        totals = {task: find_task(task).loss(dense[task], batch.targets[task])[0] for task in self.recipe.tasks}
        return {task: total / counts[task] for task, total in totals.items()}

    def _norms(self, weighted: Losses) -> dict[str, float]:
        shared = self.towers.shared_parameters()
        norms = {}
        for name, loss in weighted.items():
            gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
            norms[name] = torch.stack([g.float().norm() for g in gradients if g is not None]).norm().item()
        return norms


def _total(values: Iterable[Tensor]) -> Tensor:
    first, *others = values
    for value in others:
        first = first + value
    return first
