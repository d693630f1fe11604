"""Training that ``clip``, ``clip-ft`` and ``cliptex`` share, from inputs to exported weights.

L = λ_clip · L_clip + Σ_task λ_task · L_task,    task ∈ {seg, depth, normal, …}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.backbone import Backbone, state_sha256
from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from backbones.cliptex.batches import TrainDataset
from backbones.cliptex.data.source import PairSource
from backbones.cliptex.labels.joined import Labels
from backbones.cliptex.model import CLIPWithHeads, load_initial_clip
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.tasks import find_task
from backbones.cliptex.trainer import TrainContext
from backbones.cliptex.training.clip_trainer import CLIPTrainer
from backbones.cliptex.training.distributed import processes
from backbones.cliptex.training.heads import TaskHeads
from cliptex_common.device import float32_products
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.heap import return_freed_memory
from cliptex_common.out_of_memory import report_out_of_memory


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
    if recipe.tasks and labels is None:
        raise UserError(
            f"recipe {recipe.name!r} learns {', '.join(recipe.tasks)} but has no labels; give"
            " --labels DIR"
        )
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
        dataset = TrainDataset(
            pairs,
            labels,
            recipe,
            tokenizer=start.tokenizer,
            data=start.data,
            label_size=label_side(recipe, start),
            rank=process.rank,
            world=process.world,
        )
        notes = _check_labels(dataset)
        for note in notes:
            context.notify(note)
        torch.manual_seed(recipe.seed)
        model = CLIPWithHeads(start.model, start.data.layers, build_heads(recipe, start, labels))
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


def label_side(recipe: Recipe, start: Backbone) -> int:
    """Side of the dense predictions: the recipe's, or four pixels for each cell of the finest map.

    At most the image's side.
    """
    if not recipe.tasks:
        return 0
    size = start.data.size[0]
    return recipe.label_size or min(size, 4 * size // min(start.strides))


def build_heads(recipe: Recipe, start: Backbone, labels: Labels | None) -> TaskHeads | None:
    if not recipe.tasks or labels is None:
        return None
    outputs = {}
    for task in map(find_task, recipe.tasks):
        classes = labels.classes.get(task.name, ())
        if task.has_classes and not classes:
            raise UserError(
                f"the labels name no classes of {task.name}; leave it out with --set experts=…"
            )
        outputs[task.name] = task.output_channels(classes)
    width = recipe.head_width or min(256, max(start.channels) // 2)
    # no finer than the labels
    upsample = min(
        4, math.ceil(label_side(recipe, start) / (start.data.size[0] // min(start.strides)))
    )
    return TaskHeads(start.channels, outputs, width, upsample)


def _check_labels(dataset: TrainDataset) -> list[str]:
    """Notes about labels that are coarser than what is learned.

    Raises:
        UserError: no pair has labels of a task, as when they were made from other pairs.
    """
    if dataset.labels is None:
        return []
    pairs, labels, tasks = dataset.pairs, dataset.labels, dataset.recipe.tasks
    missing = set(tasks)
    for key in map(pairs.key, range(len(pairs))):
        missing -= set(labels.tasks_of(key))
        if not missing:
            side = min(min(label.shape[-2:]) for label in labels.get(key, tasks).values())
            size = dataset.label_size
            if side >= size:
                return []
            return [
                f"labels have {side} pixels and are compared at {size}: label with"
                f" label_side={2 * size}"
            ]
    raise UserError(
        f"the labels have no {min(missing)} for pairs such as {pairs.key(0)}; label {pairs.name}"
        " first"
    )
