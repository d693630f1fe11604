"""Training that ``clip``, ``clip-ft`` and ``cliptex`` share, from inputs to exported weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.adapters.open_clip import OpenClipBackbone
from backbones.backbone import Backbone, state_sha256
from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from backbones.cliptex.batches import Batch, TrainDataset
from backbones.cliptex.labels import Labels
from backbones.cliptex.model import CLIPWithHeads, TaskHeads, load_initial_clip
from backbones.cliptex.objective import Passes, dense_losses, weighted_losses
from backbones.cliptex.pairs import FailureCounter, PairSource
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.targets import PixelMap
from backbones.cliptex.tasks import find_task, labelled_tasks
from backbones.cliptex.trainer import (
    DistContext,
    TrainContext,
    Trainer,
    build_optimizer,
    copy_buffers,
    processes,
    restore_buffers,
)
from cliptex_common.device import (
    count_flops,
    float32_products,
    report_out_of_memory,
    takes_pinned_memory,
)
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.process import return_freed_memory


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training.

    Attributes:
        path, sha256: the exported weights, and the digest of their tensors.
        key: identity of recipe, initial weights, pairs and labels.
        labels: that of the labels alone, '' for none.
        metrics: last losses and validation retrieval.
        cost: see ``Trainer.cost``.
        notes: things the user should know, one line each (unreadable pairs, skipped steps …).
        trained: False when the weights existed already.
    """

    path: Path
    sha256: str
    key: str
    labels: str
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trained: bool = True


def train(
    recipe: Recipe,
    *,
    init: str,
    pairs: PairSource,
    out: str | Path,
    labels: Labels | None = None,
    context: TrainContext | None = None,
) -> TrainResult:
    """Train and export a backbone, or return at once when ``out`` holds these very weights.

    Under ``torchrun`` or SLURM every process calls this with the same arguments; the batch is split
    over them, and the result is that of one process up to the order of sums (and, on CPUs, up to
    batch norms, which see each process's share by itself).

    Args:
        init: see ``load_initial_clip``.
        out: where the weights go (safetensors).
        labels: ``LabelStore`` or ``JoinedLabels``; read only when a task counts.

    Raises:
        UserError: recipe, pairs, labels or initial weights do not fit together; too many unreadable
            pairs; the memory of the device ends.
        NonFiniteLoss: the loss broke; the message names the step.
    """
    out, context = Path(out), context or TrainContext()
    with (
        processes(context.device) as process,
        torch.random.fork_rng(devices=[]),
        float32_products(tf32=True),  # where bf16 is not used
        report_out_of_memory(CLIPTrainer.memory_advice),
    ):
        recipe = recipe.with_precision(process.device)
        start = load_initial_clip(
            init, recipe.model, image_size=recipe.image_size, seed=recipe.seed
        )
        key = _key(recipe, start, pairs, labels)
        if result := process.share(_finished(out, key) if process.first else None):
            return result
        folder = context.resume_dir or states_folder(out)
        context = replace(context, resume_dir=folder).on_rank(process)
        source, dataset, notes = _open_data(
            recipe, start, pairs, labels, process.rank, process.world
        )
        for note in notes:
            context.notify(note)
        torch.manual_seed(recipe.seed)
        model = CLIPWithHeads(start.model, source.data.layers, build_heads(recipe, source, labels))
        model = model.to(process.device)
        trainer = CLIPTrainer(recipe, model, dataset, process, context, key)

        def export(path: Path, weights: dict[str, Tensor], **extra: Any) -> None:
            checkpoint = Checkpoint(
                path,
                weights,
                architecture=start.architecture,
                model_config=dict(start.model_config),
                data=start.data,
                licence=start.weights.licence,
                source=f"{recipe.name} from {start.weights.source}",
                extra=extra,
            )
            save_checkpoint(checkpoint)

        def export_step(step: int) -> None:
            path = out.with_suffix(".steps") / f"step-{step:09d}.safetensors"
            export(path, trainer.weights(), step=step)

        return_freed_memory()  # of models that were built to be overwritten
        trainer.run(export_step)
        for note in trainer.notes():
            context.notify(note)
            notes.append(note)
        cost, weights = trainer.cost(), trainer.weights()
        labels_identity = _labels_identity(recipe, labels)
        if process.first:
            extra = {
                "recipe": recipe.settings(),
                "key": key,
                "init": init,
                "init_sha256": start.weights.sha256,
                "labels": labels_identity,
                "pairs": {
                    "name": pairs.name,
                    "count": len(pairs),
                    "fingerprint": pairs.fingerprint,
                },
                "metrics": trainer.metrics,
                "cost": cost,
                "threads": torch.get_num_threads(),  # the last bits of sums depend on them
                "notes": notes,
            }
            export(out, weights, **extra)
            trainer.states.remove()
        process.wait()
        sha256 = state_sha256(weights)
        return TrainResult(out, sha256, key, labels_identity, trainer.metrics, cost, notes)


def check_training(
    recipe: Recipe, *, init: str, pairs: PairSource, out: str | Path, labels: Labels | None = None
) -> None:
    """Raise ``UserError`` as ``train`` does before its first step."""
    start = load_initial_clip(init, recipe.model, image_size=recipe.image_size, seed=recipe.seed)
    source, *_ = _open_data(recipe, start, pairs, labels)
    build_heads(recipe, source, labels)


def _open_data(
    recipe: Recipe,
    start: OpenClipBackbone,
    pairs: PairSource,
    labels: Labels | None,
    rank: int = 0,
    world: int = 1,
) -> tuple[Backbone, TrainDataset, list[str]]:
    """The backbone as the heads read it, its data, and notes about these."""
    if labels is None and (labelled := labelled_tasks(recipe.tasks)):
        raise UserError(
            f"recipe {recipe.name!r} learns {', '.join(labelled)} but has no labels; give"
            " --labels DIR"
        )
    source = head_source(recipe, start)
    dataset = TrainDataset(
        pairs,
        labels,
        recipe,
        tokenizer=start.tokenizer,
        data=start.data,
        label_size=prediction_side(recipe, source),
        rank=rank,
        world=world,
    )
    return source, dataset, _check_labels(dataset)


def states_folder(out: Path) -> Path:
    """Where the training of the weights ``out`` saves its states by default."""
    return out.with_name(f"{out.name}.resume")


def find_trained(
    recipe: Recipe,
    *,
    init: str,
    pairs: PairSource,
    out: str | Path,
    labels: Labels | None = None,
    device: str | torch.device = "cpu",
) -> TrainResult | None:
    """What ``train`` on ``device`` would return at once; None when it would have to train.

    Raises:
        UserError: the initial weights cannot be loaded.
    """
    if not Path(out).is_file():
        return None
    recipe = recipe.with_precision(device)
    start = load_initial_clip(init, recipe.model, image_size=recipe.image_size, seed=recipe.seed)
    return _finished(Path(out), _key(recipe, start, pairs, labels))


def _key(recipe: Recipe, start: Backbone, pairs: PairSource, labels: Labels | None) -> str:
    init = content_key([start.weights.sha256, start.architecture, start.model_config])
    return recipe.key(init, pairs.fingerprint, _labels_identity(recipe, labels))


def _labels_identity(recipe: Recipe, labels: Labels | None) -> str:
    return labels.identity if labels is not None and recipe.tasks else ""


def _finished(out: Path, key: str) -> TrainResult | None:
    """The result stored with ``out``, if the same recipe and inputs made it."""
    if not out.is_file():
        return None
    try:
        checkpoint = load_checkpoint(out)
    except UserError:  # damaged: trained again
        return None
    extra = checkpoint.extra
    if extra.get("key") != key:
        return None
    return TrainResult(
        out,
        checkpoint.sha256,
        key,
        extra["labels"],
        extra["metrics"],
        extra["cost"],
        extra["notes"],
        trained=False,
    )


def head_source(recipe: Recipe, start: Backbone) -> Backbone:
    """``start`` with the feature maps that the heads read: its own, or those of ``recipe.layers``.

    Raises:
        UserError: there is no such layer.
    """
    if not recipe.tasks or not recipe.layers:
        return start
    start.model.eval()  # its maps are measured, which must not move statistics of batch norms
    source = start.at_layers(recipe.layers)
    start.model.train()
    return source


def prediction_side(recipe: Recipe, source: Backbone) -> int:
    """Side of the dense predictions, and of the targets that they are compared with: the recipe's
    ``label_size``, or four pixels for each cell of the finest of ``source``'s maps, at most the
    image's side.
    """
    if not recipe.tasks:
        return 0
    size = source.data.size[0]
    return recipe.label_size or min(size, 4 * size // min(source.strides))


def build_heads(recipe: Recipe, source: Backbone, labels: Labels | None) -> TaskHeads | None:
    if not recipe.tasks:
        return None
    outputs = {}
    for task in map(find_task, recipe.tasks):
        classes = labels.classes.get(task.name, ()) if labels is not None else ()
        if task.has_classes and not classes:
            raise UserError(
                f"the labels name no classes of {task.name}; leave it out with --set experts=…"
            )
        outputs[task.name] = task.output_channels(classes)
    width = recipe.head_width or min(256, max(source.channels) // 2)
    # no finer than the labels
    upsample = min(
        4, math.ceil(prediction_side(recipe, source) / (source.data.size[0] // min(source.strides)))
    )
    return TaskHeads(source.channels, outputs, width, upsample)


def _check_labels(dataset: TrainDataset) -> list[str]:
    """Notes about labels that say nothing, or are coarser than what is learned.

    Raises:
        UserError: no pair has labels of a task, as when they were made from other pairs.
    """
    if dataset.labels is None:
        return []
    pairs, labels, tasks = dataset.pairs, dataset.labels, dataset.labelled
    missing, first = set(tasks), [pairs.key(n) for n in range(min(LOOKED_AT, len(pairs)))]
    notes = [
        f"labels of {task} know no pixel of the first {LOOKED_AT} pairs, so λ_{task} has no effect"
        " there: its expert may be too weak, or too strict"
        for task in tasks
        if _is_blank(labels, task, first)
    ]
    for key in map(pairs.key, range(len(pairs))):
        missing -= set(labels.tasks_of(key))
        if not missing:
            side = min(min(label.shape[-2:]) for label in labels.get(key, tasks).values())
            size = dataset.label_size
            if side >= size:
                return notes
            return [
                *notes,
                f"labels have {side} pixels and are compared at {size}: label with"
                f" label_side={2 * size}",
            ]
    raise UserError(
        f"the labels have no {min(missing)} for pairs such as {pairs.key(0)}; label {pairs.name}"
        " first"
    )


LOOKED_AT = 64  # pairs whose labels are decoded before a training


def _is_blank(labels: Labels, task: str, keys: Sequence[str]) -> bool:
    """Whether pairs have labels of a task, and none of these knows a pixel."""
    label_map, has_labels = find_task(task), False
    if not isinstance(label_map, PixelMap):
        return False
    for key in keys:
        if task in labels.tasks_of(key):
            label = label_map.to_tensor(labels.get(key, [task])[task])
            if bool(label_map.valid(label[None]).any()):
                return False
            has_labels = True
    return has_labels


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
    fraction_done = 0.0  # of the steps that were done before the newest

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
        context.log.log_metrics(self._lambdas(start / self.steps), start)
        pin = takes_pinned_memory(self.process.device)
        return map(self._on_device, self.dataset.loader(start, context.workers, pin=pin))

    def _on_device(self, batch: Batch) -> Batch:
        self.unreadable.bad |= dict(batch.bad)
        self.unreadable.check(len(self.dataset.pairs))
        return self.dataset.add_targets(self.dataset.to_device(batch, self.process.device))

    def rate(self, step: int) -> float:
        """Linear from lr / warm-up steps to lr, then half a cosine to 0."""
        lr, steps = self.recipe.lr, self.steps
        warmup = round(self.recipe.warmup * steps)
        if step < warmup:
            return lr * (step + 1) / warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def backward(self, batch: Batch, norms: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        self.fraction_done = self.step / self.steps
        return self.passes.backward(batch, norms, self.fraction_done)

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

    def _lambdas(self, fraction_done: float) -> dict[str, float]:
        weights = self.recipe.loss_weights_at(fraction_done)
        return {f"train/lambda_{name}": value for name, value in weights.items()}

    def curves(self, losses: Mapping[str, float]) -> dict[str, float]:
        logit_scale: Any = self.model.clip.logit_scale
        return {
            **(self._lambdas(self.fraction_done) if self.recipe.schedules else {}),
            **{f"train/loss_{name}": value for name, value in losses.items()},
            "train/loss": weighted_losses(self.recipe, losses, self.fraction_done)[0],
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
            losses = {"clip": (out["image"] @ out["text"].T).float().mean()}  # its one product
            ones = dict.fromkeys(recipe.tasks, torch.ones((), device=part.images.device))
            losses |= dense_losses(out["dense"], part.targets, ones)
            weighted_losses(recipe, losses, self.fraction_done)[0].backward()

        total = count_flops(forward_and_backward)
        model.zero_grad(set_to_none=True)
        if recipe.accumulate > 1:
            with torch.no_grad():
                total += count_flops(forward)
        restore_buffers(model, buffers)
        return float(total * recipe.accumulate)

    @torch.no_grad()
    @float32_products(tf32=False)
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


CHUNK = 1024


def recall(image: Tensor, text: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k in per cent, both ways (``i2t_R@k``, ``t2i_R@k``).

    Ties count against the matching text, so constant embeddings score 0, as NaN does.

    Args:
        image, text: (N, d) unit-length embeddings; the i-th image belongs to the i-th text.
    """
    metrics: dict[str, float] = {}
    for name, queries, targets in (("i2t", image, text), ("t2i", text, image)):
        ranks = []
        for start in range(0, len(queries), CHUNK):
            scores = queries[start : start + CHUNK] @ targets.T
            own = scores.diagonal(start)[:, None]
            ranks.append((~(scores < own)).sum(1) - 1)
        rank = torch.cat(ranks)
        metrics |= {
            f"{name}_R@{k}": 100.0 * (rank < k).float().mean().item()
            for k in ks
            if k <= len(targets)
        }
    return metrics
