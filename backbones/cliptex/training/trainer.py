"""The training loop: steps, curves, validation, and the states that an interrupted training goes on
from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.dataset import Batch, TrainDataset
from backbones.cliptex.data.source import Tally
from backbones.cliptex.protocols import Progress, RunLog, Silent
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.contrastive import sum_over_ranks
from backbones.cliptex.training.distributed import DistContext
from backbones.cliptex.training.models import CLIPWithHeads
from backbones.cliptex.training.optimizer import averaged, build_optimizer, learning_rate, update
from backbones.cliptex.training.recipes import Recipe
from backbones.cliptex.training.retrieval import recall
from backbones.cliptex.training.states import States
from backbones.cliptex.training.step import TrainStep
from common.errors import NonFiniteLoss

MOST_SKIPPED = 10  # steps in a row whose gradient is not finite, before the training is given up


@dataclass(frozen=True)
class TrainContext:
    """Where and how a training is computed and told of; never changes its result beyond rounding.

    Attributes:
        device: ``cpu``, ``cuda`` …
        log: gets ``train/loss``, ``train/loss_TASK``, ``train/lr``, ``train/images_per_second``,
            ``train/grad_norm``, ``train/grad_norm_TASK``, ``train/logit_scale``,
            ``train/lambda_TASK``, ``val/i2t_R@1`` …
        progress: one bar over the steps.
        workers: loading processes where pairs do not fit into memory.
        resume_dir: where states are kept meanwhile (default: beside the weights); an interrupted
            training goes on from the newest, on CPU to the same bits. Removed at the end.
        save_seconds: between two states; keep_every: steps between weights that are exported on the
            way (0: none).
        log_every, norms_every: steps between log entries and between measurements of the losses'
            gradient norms.
    """

    device: str | torch.device = "cpu"
    log: RunLog = field(default_factory=Silent)
    progress: Progress = field(default_factory=Silent)
    workers: int = 2
    resume_dir: str | Path | None = None
    save_seconds: float = 60.0
    keep_every: int = 0
    log_every: int = 20
    norms_every: int = 100

    def told(self, place: DistContext, out: Path) -> TrainContext:
        """The same for one process: only the first speaks; with the folder of states."""
        folder = Path(self.resume_dir) if self.resume_dir else out.with_name(f"{out.name}.resume")
        log, progress = (self.log, self.progress) if place.first else (Silent(), Silent())
        return replace(self, resume_dir=folder, log=log, progress=progress)


class Trainer:
    """One training of ``towers`` on ``batches``, by ``run``; only from states of the same ``key``
    is gone on. ``metrics``: last losses and validation retrieval."""

    def __init__(
        self,
        recipe: Recipe,
        towers: CLIPWithHeads,
        batches: TrainDataset,
        place: DistContext,
        context: TrainContext,
        key: str,
    ) -> None:
        self.recipe, self.towers, self.batches, self.place, self.context = (
            recipe,
            towers,
            batches,
            place,
            context,
        )
        self.optimizer = build_optimizer(towers, recipe)
        self.ema = averaged(towers.clip, recipe.ema) if recipe.ema else None
        self.steps = TrainStep(towers, recipe, batches.label_size, place.device)
        self.states = States(Path(str(context.resume_dir)), key)
        self.bad, self.unlabelled = Tally(f"pairs of {batches.pairs.name}"), 0
        self.metrics: dict[str, float] = {}
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.flops_per_step = self.seconds_before = 0.0
        self._changing = False  # weights and optimizer are of no step
        self._resume()

    def run(self, export: Callable[[int], None]) -> None:
        """Train to the end.

        Args:
            export: writes the weights of a step; called, in the first process, every ``keep_every``
                steps before the last.
        Raises:
            UserError: too many pairs cannot be read, or a state cannot be written.
            NonFiniteLoss: the gradient was not finite ``MOST_SKIPPED`` times in a row, or at most
                steps.
        """
        recipe, batches, context = self.recipe, self.batches, self.context
        batches.remember(context.progress, threads=max(1, context.workers))
        context.log.log_metrics(
            {f"train/lambda_{name}": recipe.weight(name) for name in ("clip", *recipe.tasks)},
            self.step,
        )
        context.progress.start(f"train {recipe.name}", batches.steps)
        context.progress.advance(self.step)
        self._window = _Window(recipe)
        self._began = saved = time.perf_counter()
        self._buffers = self.towers.buffers_now()
        try:
            for batch in batches.loader(
                self.step, context.workers, pin=self.place.device.type == "cuda"
            ):
                self._train_on(batch)
                last = self.step == batches.steps
                if len(batches.held_out) and (last or self.step % batches.steps_per_epoch == 0):
                    found = self._validate()
                    context.log.log_metrics(found, self.step)
                    self.metrics |= found
                if (
                    self.place.first
                    and not last
                    and context.keep_every
                    and self.step % context.keep_every == 0
                ):
                    export(self.step)
                if (
                    self.place.first
                    and time.perf_counter() - saved > context.save_seconds
                    and not last
                ):
                    self._save()
                    saved = time.perf_counter()
                context.progress.advance()
        except KeyboardInterrupt:
            if self.place.first and not self._changing and self.step < batches.steps:
                # the forward pass of a step that was not finished counts for nothing
                self.towers.put_back(self._buffers)
                self._save()
            raise
        finally:
            self.states.finish()

    def weights(self) -> dict[str, Tensor]:
        """What is exported: the moving average, or the last weights."""
        return dict((self.ema.module if self.ema else self.towers.clip).state_dict())

    def cost(self) -> dict[str, float]:
        """Seconds and FLOPs over all ``processes``, ``images_per_second`` and ``steps``."""
        seconds, steps = self._seconds(), self.batches.steps
        return {
            "train_seconds": seconds,
            "train_flops": self.flops_per_step * steps,
            "flops_per_step": self.flops_per_step,
            "images_per_second": steps * self.recipe.batch_size / seconds,
            "steps": float(steps),
            "processes": float(self.place.world),
        }

    def notes(self) -> list[str]:
        """What the user should know; every process calls it."""
        # each process read its own share
        self.bad.bad = {
            key: reason
            for found in self.place.gather(self.bad.bad)
            for key, reason in found.items()
        }
        notes = [self.bad.summary()] if self.bad.bad else []
        if unlabelled := sum(self.place.gather(self.unlabelled)):
            share = unlabelled / (self.batches.steps * self.recipe.batch_size)
            notes.append(
                f"{share:.1%} of what was trained on has no labels, and counts for the contrast"
                " alone"
            )
        if self.skipped:
            notes.append(
                f"{self.skipped} of {self.batches.steps} steps were skipped: their gradient was not"
                " finite"
            )
        return notes

    def _train_on(self, batch: Batch) -> None:
        recipe, step, place = self.recipe, self.step, self.place
        torch.manual_seed(
            (recipe.seed * 1_000_003 + step) * place.world + place.rank
        )  # of patch dropout and drop path
        self.bad.bad |= dict(batch.bad)
        self.bad.check(len(self.batches.pairs))
        batch = self.batches.on(batch, place.device)
        if not self.flops_per_step:
            self.flops_per_step = _flops(self.steps, batch) * place.world
        lr = learning_rate(recipe, step, self.batches.steps)
        losses, norms = self.steps.backward(batch, norms=step % self.context.norms_every == 0)
        self._changing = True
        norm = update(self.towers, self.optimizer, recipe, lr)
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            self._window.add(losses, norm, recipe.batch_size)
            if self.ema:
                self.ema.update_parameters(self.towers.clip)
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            mostly = step + 1 == self.batches.steps and 2 * self.skipped > self.batches.steps
            if mostly or self.skipped_in_a_row == MOST_SKIPPED:
                raise NonFiniteLoss(_broken(recipe, step, losses, self.skipped_in_a_row))
            self.towers.put_back(self._buffers)
        self._buffers = self.towers.buffers_now()
        self.step, self._changing, self.unlabelled = (
            step + 1,
            False,
            self.unlabelled + batch.unlabelled,
        )
        if self.step % self.context.log_every == 0 or norms or self.step == self.batches.steps:
            self.metrics |= self._window.read(self.towers, lr)
            told = {
                f"train/grad_norm_{name}": value
                for name, value in norms.items()
                if math.isfinite(value)
            }
            self.context.log.log_metrics(self.metrics | told, self.step)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Retrieval among the held-out pairs by what would be exported now; each process embeds its
        share."""
        towers = CLIPWithHeads(self.ema.module, (), None) if self.ema else self.towers
        was_training = towers.training
        towers.eval()
        images, texts = [], []
        for batch in self.batches.validation():
            batch = self.batches.on(batch, self.place.device)
            with self.steps.autocast():
                out = towers(batch.images, batch.tokens)
            images.append(out["image"].float().cpu())
            texts.append(out["text"].float().cpu())
        towers.train(was_training)
        found = [part for part in self.place.gather((images, texts)) if part[0]]
        image, text = (torch.cat([one for part in found for one in part[side]]) for side in (0, 1))
        return {f"val/{name}": value for name, value in recall(image, text).items()}

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self._began

    def _save(self) -> None:
        self.states.save(
            self.step,
            {
                "towers": self.towers.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else {},
                "seconds": self._seconds(),
                "flops_per_step": self.flops_per_step,
                "bad": self.bad.bad,
                "unlabelled": self.unlabelled,
                "skipped": self.skipped,
                "skipped_in_a_row": self.skipped_in_a_row,
            },
        )

    def _resume(self) -> None:
        """Go on from the newest state; every process reads it for itself.

        Raises:
            RuntimeError: a process does not see the file that the first one read.
        """
        newest = self.states.newest() if self.place.first else None
        step = self.place.share(newest["step"] if newest else None)
        if step is None:
            return
        saved = newest or self.states.load(step)
        if saved is None:
            raise RuntimeError(
                f"process {self.place.rank} cannot read {self.states.folder}; all need one file"
                " system"
            )
        self.step = step
        self.towers.load_state_dict(saved["towers"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        self.seconds_before, self.flops_per_step = saved["seconds"], saved["flops_per_step"]
        self.bad.bad, self.unlabelled = saved["bad"], saved["unlabelled"]
        self.skipped, self.skipped_in_a_row = saved["skipped"], saved["skipped_in_a_row"]


def _flops(steps: TrainStep, batch: Batch) -> float:
    """Floating-point operations of one process's step; one extra pass, no communication, no trace
    in the model."""
    buffers = steps.towers.buffers_now()
    part = batch.split(steps.recipe.accumulate)[0]

    def embed() -> Mapping[str, Any]:
        with steps.autocast():
            return steps.towers(part.images, part.tokens, steps.label_size)

    def forward_and_backward() -> None:
        out = embed()
        loss: Any = (out["image"] @ out["text"].T).float().mean()
        for task in steps.recipe.tasks:
            loss = loss + find_task(task).loss(out["dense"][task], part.targets[task])[0]
        loss.backward()

    total = count_flops(forward_and_backward) * steps.recipe.accumulate
    steps.towers.zero_grad(set_to_none=True)
    if steps.recipe.accumulate > 1:
        with torch.no_grad():
            total += count_flops(embed) * steps.recipe.accumulate
    steps.towers.put_back(buffers)
    return float(total)


class _Window:
    """Means of the losses since they were last read."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.names = ("clip", *recipe.tasks)
        self._clear()

    def _clear(self) -> None:
        self.losses: list[Tensor] = []
        self.norm, self.images, self.began = 0.0, 0, time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], norm: float, images: int) -> None:
        self.losses.append(torch.stack([losses[name] for name in self.names]))
        self.norm, self.images = norm, self.images + images

    def read(self, towers: CLIPWithHeads, lr: float) -> dict[str, float]:
        """Nothing but the rate when all steps since were skipped."""
        read = {"train/lr": lr}
        if self.losses:
            local = torch.stack(self.losses).mean(0)
            mean = (sum_over_ranks(local) / sum_over_ranks(torch.ones_like(local))).tolist()
            read |= {
                f"train/loss_{name}": value for name, value in zip(self.names, mean, strict=True)
            }
            read["train/loss"] = sum(
                self.recipe.weight(name) * read[f"train/loss_{name}"] for name in self.names
            )
            logit_scale: Any = towers.clip.logit_scale
            read |= {"train/grad_norm": self.norm, "train/logit_scale": logit_scale.exp().item()}
            read["train/images_per_second"] = self.images / (time.perf_counter() - self.began)
        self._clear()
        return read


def _broken(recipe: Recipe, step: int, losses: Mapping[str, Tensor], steps: int) -> str:
    named = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
    return (
        f"recipe {recipe.name!r}: the gradient became NaN or infinite {steps} times in a row, last"
        f" at step {step + 1} (losses: {named}); lower lr or the lambdas, or use precision=fp32"
    )
