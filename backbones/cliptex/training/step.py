"""One training step: forward, losses, backward – whole or in micro-batches, in one process or
many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones.cliptex.data.dataset import Batch
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.contrastive import (
    cached_gradients,
    contrastive_loss,
    sum_over_ranks,
    world,
)
from backbones.cliptex.training.models import CLIPWithHeads
from backbones.cliptex.training.recipes import Recipe
from common.errors import UserError

Losses = dict[str, Tensor]


class TrainStep:
    """Runs the forward and backward passes of a recipe on ``towers``, compiled if it says so and
    wrapped for DDP here. ``label_size``: side of the dense predictions; 0 without tasks.

    Raises:
        UserError: the model cannot trade time for memory (``grad_checkpointing``).
    """

    def __init__(
        self, towers: CLIPWithHeads, recipe: Recipe, label_size: int, device: torch.device
    ) -> None:
        self.towers, self.recipe, self.label_size, self.device = towers, recipe, label_size, device
        self.contrast = contrastive_loss(towers.clip)
        clip: Any = towers.clip
        if recipe.grad_checkpointing:
            try:
                clip.set_grad_checkpointing(True)
            except (AttributeError, AssertionError, NotImplementedError) as error:
                raise UserError(
                    "this model has no gradient checkpointing; set grad_checkpointing=false"
                ) from error
        self.parallel: nn.Module = towers
        # one process's batch norms see its share alone; gloo has no better
        if world()[1] > 1 and device.type == "cuda":
            self.parallel = self.towers = convert_sync_batchnorm(towers)
        if recipe.compile:
            self.parallel = torch.compile(self.parallel)  # type: ignore[assignment]
        if world()[1] > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.parallel, device_ids=ids)

    def backward(self, batch: Batch, norms: bool = False) -> tuple[Losses, dict[str, float]]:
        """Add the gradient of the step's loss, averaged over the global batch, to the parameters.

        Args:
            batch: this process's share.
            norms: also return the norm of each loss's own weighted gradient, over the global batch,
                at the last block of the image tower, the last parameters that all share (as
                GradNorm does, Chen et al. 2018). Costs a fraction of a backward pass.

        Returns:
            detached losses of this process (``clip`` and each task, without λ), and the norms.
        """
        counts = self._counts(batch)
        if self.recipe.accumulate > 1:
            return self._in_pieces(batch.split(self.recipe.accumulate), counts, norms)
        with self.autocast():
            out = self.parallel(batch.images, batch.tokens, self.label_size)
        losses = {"clip": self.contrast(**_embeddings(out))}
        losses |= self._dense(out["dense"], batch, counts)
        weighted = {name: self.recipe.weight(name) * loss for name, loss in losses.items()}
        gradients = self._gradients(weighted) if norms else {}
        _total(weighted.values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}, _norms(gradients)

    def autocast(self) -> Any:
        """The recipe's precision, for forward passes."""
        bf16 = self.recipe.precision == "bf16" or (
            self.recipe.precision == "auto" and self.device.type == "cuda"
        )
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _in_pieces(
        self, parts: Sequence[Batch], counts: Losses, norms: bool
    ) -> tuple[Losses, dict[str, float]]:
        """Gradient caching: embeddings of all micro-batches first, then each again with gradient
        and the random numbers that it had (of drop path, patch dropout); see ``contrastive``.

        The contrast is over the whole global batch, and the gradient is the one of a single large
        step.
        """
        buffers, seen, states = self.towers.buffers_now(), [], []
        with torch.no_grad(), self.autocast():
            for part in parts:
                states.append(self._random_state())
                seen.append(_embeddings(self.towers(part.images, part.tokens)))
        self.towers.put_back(buffers)  # the second pass counts, once
        rows = {name: torch.cat([each[name] for each in seen]) for name in ("image", "text")}
        clip, gradients = cached_gradients({**seen[0], **rows}, self.contrast)
        losses: Losses = {"clip": clip}
        summed: dict[str, list[Tensor]] = {}
        size = len(parts[0].images)
        for i, part in enumerate(parts):
            cached = {
                name: g[i * size : (i + 1) * size] if name in rows else g / len(parts)
                for name, g in gradients.items()
            }
            wrapped = isinstance(self.parallel, DistributedDataParallel)
            self._set_random_state(states[i])
            with self.parallel.no_sync() if wrapped and part is not parts[-1] else nullcontext():  # type: ignore[operator]
                with self.autocast():
                    out = self.parallel(part.images, part.tokens, self.label_size)
                surrogate = _total(
                    (value * cached[name]).sum() for name, value in _embeddings(out).items()
                )
                dense = self._dense(out["dense"], part, counts)
                weighted = {
                    name: self.recipe.weight(name) * loss
                    for name, loss in {"clip": surrogate, **dense}.items()
                }
                for name, own in self._gradients(weighted).items() if norms else ():
                    summed[name] = (
                        [a + b for a, b in zip(summed[name], own, strict=True)]
                        if name in summed
                        else own
                    )
                _total(weighted.values()).backward()
            for name, loss in dense.items():
                losses[name] = losses.get(name, 0.0) + loss.detach()
        return losses, _norms(summed)

    def _random_state(self) -> list[Tensor]:
        return [
            torch.get_rng_state(),
            *([torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []),
        ]

    def _set_random_state(self, state: Sequence[Tensor]) -> None:
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], self.device)

    def _counts(self, batch: Batch) -> Losses:
        """Labels of each task in the global batch, per process; at least 1."""
        tasks = self.recipe.tasks
        if not tasks:
            return {}
        local = [find_task(task).count(batch.targets[task]) for task in tasks]
        counts = sum_over_ranks(torch.stack(local)) / world()[1]
        return {task: count.clamp(min=1e-6) for task, count in zip(tasks, counts, strict=True)}

    def _dense(self, dense: dict[str, Tensor], batch: Batch, counts: Losses) -> Losses:
        totals = {
            task: find_task(task).loss(dense[task], batch.targets[task])[0]
            for task in self.recipe.tasks
        }
        return {task: total / counts[task] for task, total in totals.items()}

    def _gradients(self, weighted: Losses) -> dict[str, list[Tensor]]:
        """Of each loss, at the shared parameters."""
        shared = self.towers.shared_parameters()
        found = {}
        for name, loss in weighted.items():
            gradients = torch.autograd.grad(
                loss, shared, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            found[name] = [gradient.float() for gradient in gradients]
        return found


def _embeddings(out: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a forward pass the contrastive loss takes."""
    return {name: value for name, value in out.items() if name != "dense"}


def _norms(gradients: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Norms of gradients, each the mean of those of all ranks."""
    return {
        name: (sum_over_ranks(torch.cat([one.flatten() for one in each])) / world()[1])
        .norm()
        .item()
        for name, each in gradients.items()
    }


def _total(values: Iterable[Tensor]) -> Tensor:
    first, *others = values
    for value in others:
        first = first + value
    return first
