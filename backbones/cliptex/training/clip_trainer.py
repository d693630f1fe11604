"""The training of a CLIP with task heads: its batches, losses, validation and notes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.cliptex.batches import Batch, TrainDataset
from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.source import FailureCounter
from backbones.cliptex.model import CLIPWithHeads
from backbones.cliptex.objective import Passes
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.tasks import find_task
from backbones.cliptex.trainer import TrainContext, Trainer, copy_buffers, restore_buffers
from backbones.cliptex.training.distributed import DistContext
from backbones.cliptex.training.optimizer import build_optimizer
from backbones.cliptex.training.retrieval import recall
from cliptex_common.device import takes_pinned_memory

MAX_LOGIT_SCALE = math.log(100)
FEW_EPOCHS = 1.5  # a training that reads its samples no more often does not cache them


class CLIPTrainer(Trainer):
    """Trains ``model`` by ``recipe`` on ``dataset``; ``key``: identity of the training."""

    advice = "lower lr or the lambdas, or use precision=fp32"
    memory_advice = (
        "raise accumulate (gradient caching, with the same result), set grad_checkpointing=true, or"
        " lower batch_size or image_size"
    )
    model: CLIPWithHeads

    def __init__(
        self,
        recipe: Recipe,
        model: CLIPWithHeads,
        dataset: TrainDataset,
        process: DistContext,
        context: TrainContext,
        key: str,
    ) -> None:
        self.recipe, self.dataset, self.key = recipe, dataset, key
        self.name, self.seed, self.steps = recipe.name, recipe.seed, dataset.steps
        self.batch_size, self.grad_clip = recipe.batch_size, recipe.grad_clip
        self.ema_decay = recipe.ema
        optimizer = build_optimizer(
            model,
            recipe.lr,
            recipe.weight_decay,
            head_multiple=recipe.head_lr,
            betas=(recipe.beta1, recipe.beta2),
            eps=1e-6,
        )
        super().__init__(model, optimizer, context, process)
        self.passes = Passes(model, recipe, dataset.label_size, process.device)
        self.unreadable, self.unlabelled = FailureCounter(f"pairs of {dataset.pairs.name}"), 0

    def batches(self, start: int) -> Iterable[Batch]:
        recipe, context = self.recipe, self.context
        if recipe.epochs > FEW_EPOCHS:
            self.dataset.cache_in_memory(context.progress, threads=max(1, context.workers))
        lambdas = {f"train/lambda_{name}": value for name, value in recipe.loss_weights.items()}
        context.log.log_metrics(lambdas, start)
        pin = takes_pinned_memory(self.process.device)
        return map(self._on_device, self.dataset.loader(start, context.workers, pin=pin))

    def _on_device(self, batch: Batch) -> Batch:
        self.unreadable.bad |= dict(batch.bad)
        self.unreadable.check(len(self.dataset.pairs))
        return self.dataset.to_device(batch, self.process.device)

    def rate(self, step: int) -> float:
        """Linear from lr / warm-up steps to lr, then half a cosine to 0."""
        lr, steps = self.recipe.lr, self.steps
        warmup = round(self.recipe.warmup * steps)
        if step < warmup:
            return lr * (step + 1) / warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def backward(self, batch: Batch, norms: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        return self.passes.backward(batch, norms)

    def exported(self) -> torch.nn.Module:
        return self.model.clip

    def after_update(self) -> None:
        """Bound the logit scale at 100 (Radford et al. 2021, § 2.5); not SigLIP's, with a bias."""
        clip: Any = self.model.clip
        if getattr(clip, "logit_bias", None) is None:
            with torch.no_grad():
                clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def step_done(self, batch: Batch) -> None:
        self.unlabelled += batch.unlabelled

    def curves(self, losses: Mapping[str, float]) -> dict[str, float]:
        logit_scale: Any = self.model.clip.logit_scale
        return {
            **{f"train/loss_{name}": value for name, value in losses.items()},
            "train/loss": sum(
                self.recipe.loss_weights[name] * value for name, value in losses.items()
            ),
            "train/logit_scale": logit_scale.exp().item(),
        }

    def flops(self, batch: Batch) -> float:
        """Counted in one extra pass, without communication between processes."""
        recipe, model, label_size = self.recipe, self.model, self.dataset.label_size
        buffers = copy_buffers(model)
        part = batch.split(recipe.accumulate)[0]

        def forward() -> dict[str, Any]:
            with self.passes.autocast():
                return model(part.images, part.tokens, label_size)

        def forward_and_backward() -> None:
            out = forward()
            loss: Any = (out["image"] @ out["text"].T).float().mean()
            for task in recipe.tasks:
                loss = loss + find_task(task).loss(out["dense"][task], part.targets[task])[0]
            loss.backward()

        total = count_flops(forward_and_backward)
        model.zero_grad(set_to_none=True)
        if recipe.accumulate > 1:
            with torch.no_grad():
                total += count_flops(forward)
        restore_buffers(model, buffers)
        return float(total * recipe.accumulate)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Retrieval among the held-out pairs, after each epoch, with what is exported.

        Each process embeds its share.
        """
        dataset = self.dataset
        is_due = self.step == dataset.steps or self.step % dataset.steps_per_epoch == 0
        if not len(dataset.held_out) or not is_due:
            return {}
        model = CLIPWithHeads(self.ema.module, (), None) if self.ema else self.model
        was_training = model.training
        model.eval()
        embeddings: dict[str, list[Tensor]] = {"image": [], "text": []}
        for batch in dataset.validation():
            batch = dataset.to_device(batch, self.process.device)
            with self.passes.autocast():
                out = model(batch.images, batch.tokens)
            for name, parts in embeddings.items():
                parts.append(out[name].float().cpu())
        model.train(was_training)
        shares = self.process.gather(embeddings)
        image, text = (
            torch.cat([part for share in shares for part in share[name]]) for name in embeddings
        )
        return {f"val/{name}": value for name, value in recall(image, text).items()}

    def notes(self) -> list[str]:
        """What the user should know after the training; every process calls it."""
        for unreadable in self.process.gather(self.unreadable.bad):  # each read its own share
            self.unreadable.bad |= unreadable
        notes = [self.unreadable.summary()] if self.unreadable.bad else []
        steps = self.steps
        if unlabelled := sum(self.process.gather(self.unlabelled)):
            share = unlabelled / (steps * self.recipe.batch_size)
            notes.append(f"{share:.1%} of the samples have no labels; only the contrast uses them")
        if self.skipped:
            notes.append(f"{self.skipped} of {steps} steps were skipped: gradient not finite")
        return notes

    def extra_state(self) -> dict[str, Any]:
        return {"unreadable": self.unreadable.bad, "unlabelled": self.unlabelled}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.unreadable.bad, self.unlabelled = state["unreadable"], state["unlabelled"]
