"""The objective L = Σ λ · L, and the forward and backward pass of a step by it: at once or in
micro-batches, in one process or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any, TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones.cliptex.batches import Batch
from backbones.cliptex.losses import ContrastiveLoss, contrastive_loss
from backbones.cliptex.model import CLIPWithHeads
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.tasks import find_task
from backbones.cliptex.trainer import (
    copy_buffers,
    rank_and_world,
    restore_buffers,
    sum_over_ranks,
    world_size,
)
from cliptex_common.device import is_accelerator, random_state, set_random_state
from cliptex_common.errors import UserError

Losses = dict[str, Tensor]
Number = TypeVar("Number", float, Tensor)


def weighted_losses(
    recipe: Recipe, losses: Mapping[str, Number], fraction_done: float
) -> tuple[Number, dict[str, Number]]:
    """L = λ_clip L_clip + Σ_task λ_task L_task (the paper's objective), and its terms λ L.

    Args:
        losses: L of ``clip`` and each task.
        fraction_done: of the steps; a λ may change with it, see ``Recipe.schedules``.
    """
    weights = recipe.loss_weights_at(fraction_done)
    terms = {name: weights[name] * loss for name, loss in losses.items()}
    return reduce(add, terms.values()), terms


def dense_losses(dense: Losses, targets: Losses, counts: Losses) -> Losses:
    """L of each task: the sum over this process's labels, over their number ``counts`` in the
    batch."""
    losses = {}
    for task, count in counts.items():
        loss = find_task(task).loss(dense[task], targets[task])
        if isinstance(loss, Tensor):
            raise UserError(f"task {task!r}: loss returns one tensor; return its sum and count")
        losses[task] = loss[0] / count
    return losses


class Passes:
    """A recipe's forward and backward passes through ``model``.

    Args:
        label_size: side of the dense predictions; 0 without tasks.

    Attributes:
        model: bare; it embeds without gradient.
        parallel: the same in DDP's wrapper, where there are several processes; for passes with
            gradient.

    Raises:
        UserError: the model cannot trade time for memory (``grad_checkpointing``).
    """

    def __init__(
        self, model: CLIPWithHeads, recipe: Recipe, label_size: int, device: torch.device
    ) -> None:
        self.model, self.recipe, self.label_size, self.device = model, recipe, label_size, device
        self.contrast = contrastive_loss(model.clip, *rank_and_world())
        clip: Any = model.clip
        if recipe.grad_checkpointing:
            try:
                clip.set_grad_checkpointing(True)
            except (AttributeError, AssertionError, NotImplementedError) as error:
                raise UserError(
                    "this model has no gradient checkpointing; set grad_checkpointing=false"
                ) from error
        self.parallel: nn.Module = model
        distributed = world_size() > 1
        # on CPUs each process normalises its own share: gloo has no synchronised batch norm
        if distributed and is_accelerator(device):
            self.parallel = self.model = convert_sync_batchnorm(model)
        if distributed:
            ids = [device.index] if is_accelerator(device) else None
            self.parallel = DistributedDataParallel(self.parallel, device_ids=ids)

    def backward(
        self, batch: Batch, norms: bool = False, fraction_done: float = 0.0
    ) -> tuple[Losses, dict[str, float]]:
        """Compute the step's losses, and add the gradient of their sum, averaged over the global
        batch, to the parameters.

        Args:
            batch: this process's share.
            norms: also return the norm of each loss's own weighted gradient, over the global batch,
                at the last block of the image tower, the last parameters that all share if the
                heads read it (as GradNorm does, Chen et al. 2018); else those of tasks are 0.
                Costs a fraction of a backward pass.
            fraction_done: of the steps.

        Returns:
            detached losses of this process (``clip`` and each task, without λ), and the norms.
        """
        counts = self._label_counts(batch)
        if self.recipe.accumulate > 1:
            return self._accumulate(
                batch.split(self.recipe.accumulate), counts, norms, fraction_done
            )
        with self.autocast():
            out = self.parallel(batch.images, batch.tokens, self.label_size)
        losses = {"clip": self.contrast(**_embeddings(out))}
        losses |= dense_losses(out["dense"], batch.targets, counts)
        total, terms = weighted_losses(self.recipe, losses, fraction_done)
        gradients = self._gradients(terms) if norms else {}
        total.backward()
        return {name: loss.detach() for name, loss in losses.items()}, _norms(gradients)

    def autocast(self) -> Any:
        """The recipe's precision, for forward passes."""
        bf16 = self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _accumulate(
        self, parts: Sequence[Batch], counts: Losses, norms: bool, fraction_done: float
    ) -> tuple[Losses, dict[str, float]]:
        """Gradient caching: embed all micro-batches, then each again with gradient.

        Both passes use the same random numbers (drop path, patch dropout). The contrast is over the
        whole global batch, and the gradient is that of a single large step; see
        ``cached_gradients``.
        """
        buffers, embeddings, random_states = copy_buffers(self.model), [], []
        with torch.no_grad(), self.autocast():
            for part in parts:
                random_states.append(random_state(self.device))
                embeddings.append(_embeddings(self.model(part.images, part.tokens)))
        restore_buffers(self.model, buffers)  # only the second pass updates statistics
        rows = {name: torch.cat([each[name] for each in embeddings]) for name in ("image", "text")}
        clip, gradients = cached_gradients({**embeddings[0], **rows}, self.contrast)
        losses: Losses = {"clip": clip}
        summed: dict[str, list[Any]] = {}  # gradients of each loss over the micro-batches
        size = len(parts[0].images)
        for i, part in enumerate(parts):
            cached = {
                name: g[i * size : (i + 1) * size] if name in rows else g / len(parts)
                for name, g in gradients.items()
            }
            set_random_state(random_states[i], self.device)
            # DDP averages gradients over processes only in the last micro-batch
            no_sync = getattr(self.parallel, "no_sync", nullcontext)
            with nullcontext() if part is parts[-1] else no_sync():
                with self.autocast():
                    out = self.parallel(part.images, part.tokens, self.label_size)
                products = [
                    (value * cached[name]).sum() for name, value in _embeddings(out).items()
                ]
                surrogate = reduce(add, products)
                dense = dense_losses(out["dense"], part.targets, counts)
                total, terms = weighted_losses(
                    self.recipe, {"clip": surrogate, **dense}, fraction_done
                )
                for name, own in self._gradients(terms).items() if norms else ():
                    earlier = summed.get(name, [0.0] * len(own))
                    summed[name] = [a + b for a, b in zip(earlier, own, strict=True)]
                total.backward()
            for name, loss in dense.items():
                losses[name] = losses.get(name, 0.0) + loss.detach()
        return losses, _norms(summed)

    def _label_counts(self, batch: Batch) -> Losses:
        """Labels of each task in the global batch, divided by the processes; at least 1e-6."""
        tasks = self.recipe.tasks
        if not tasks:
            return {}
        local = [find_task(task).count(batch.targets[task]) for task in tasks]
        counts = sum_over_ranks(torch.stack(local)) / world_size()
        return {task: count.clamp(min=1e-6) for task, count in zip(tasks, counts, strict=True)}

    def _gradients(self, terms: Losses) -> dict[str, list[Tensor]]:
        """The gradient of each term of L at the shared parameters."""
        shared = self.model.shared_parameters()
        gradients = {}
        for name, loss in terms.items():
            own = torch.autograd.grad(
                loss, shared, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            gradients[name] = [gradient.float() for gradient in own]
        return gradients


def _embeddings(out: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments of the contrastive loss in the output of a forward pass."""
    return {name: value for name, value in out.items() if name != "dense"}


def _norms(gradients: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The norm of each loss's gradient, averaged over all ranks."""
    norms = {}
    for name, parts in gradients.items():
        flat = torch.cat([part.flatten() for part in parts])
        norms[name] = (sum_over_ranks(flat) / world_size()).norm().item()
    return norms


def cached_gradients(
    embeddings: Mapping[str, Tensor], loss: ContrastiveLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch that was embedded without gradient, and its gradients for the embeddings.

    Gradient caching (Gao et al. 2021, arXiv:2101.06983): each micro-batch is then run again with
    gradient and ``(embedding · cached gradient).sum()`` is backpropagated, which gives exactly the
    gradient of the complete batch.
    """
    leaves = {name: tensor.detach().float().requires_grad_() for name, tensor in embeddings.items()}
    value = loss(**leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, gradients, strict=True))
