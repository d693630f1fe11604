"""Training that ``clip``, ``clip-ft`` and ``cliptex`` share: from initial weights, pairs and labels
to an exported backbone.

L = λ_clip · L_clip + Σ_task λ_task · L_task,    task ∈ {seg, depth, normal, …}
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.base import state_sha256
from backbones.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from backbones.cliptex.data.dataset import Labels, TrainDataset
from backbones.cliptex.data.source import PairSource
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.distributed import processes
from backbones.cliptex.training.heads import TaskHeads
from backbones.cliptex.training.models import (
    CLIPWithHeads,
    PretrainedCLIP,
    load_pretrained_clip,
    map_shapes,
)
from backbones.cliptex.training.recipes import Recipe
from backbones.cliptex.training.trainer import TrainContext, Trainer
from common.errors import UserError
from common.files import content_key

__all__ = ["TrainContext", "TrainResult", "find_trained", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a training ends with.

    Attributes:
        path, sha256: the exported weights, and the digest of their tensors.
        key: identity of recipe, initial weights, pairs and labels.
        metrics: last losses and validation retrieval.
        cost: see ``Trainer.cost``.
        notes: things the user should know, one line each (unreadable pairs, skipped steps …).
        trained: False when the weights were there already.
    """

    path: Path
    sha256: str
    key: str
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

    Under ``torchrun`` every process calls this with the same arguments; the batch is split over
    them, and the result is that of one process up to the order of sums (and, on CPUs, up to batch
    norms, which see each process's share by itself).

    Args:
        init: see ``load_pretrained_clip``.
        out: where the weights go (safetensors).
        labels: ``LabelStore`` or ``JoinedLabels``; read only when a task counts.

    Raises:
        UserError: recipe, pairs, labels or initial weights do not fit together; too many unreadable
            pairs.
        NonFiniteLoss: the loss broke; says at which step.
    """
    out, context = Path(out), context or TrainContext()
    if recipe.tasks and labels is None:
        raise UserError(
            f"recipe {recipe.name!r} learns {', '.join(recipe.tasks)} but has no labels; give"
            " --labels DIR"
        )
    with processes(context.device) as place, torch.random.fork_rng(devices=[]), _tf32(place.device):
        start = load_pretrained_clip(
            init, recipe.model, image_size=recipe.image_size, seed=recipe.seed
        )
        key = _key(recipe, start, pairs, labels)
        if done := place.share(_finished(out, key) if place.first else None):
            return done
        context = context.told(place, out)
        label_size = _label_size(recipe, start)
        batches = TrainDataset(
            pairs,
            labels,
            recipe,
            tokenizer=start.tokenizer,
            data=start.data,
            label_size=label_size,
            rank=place.rank,
            world=place.world,
        )
        notes = _check_labels(batches)
        torch.manual_seed(recipe.seed)
        towers = CLIPWithHeads(start.model, start.data.layers, _heads(recipe, start, labels)).to(
            place.device
        )
        trainer = Trainer(recipe, towers, batches, place, context, key)

        def export(path: Path, weights: dict[str, Tensor], **extra: Any) -> None:
            source = f"{recipe.name} from {start.source}"
            about = start.architecture, start.model_config, start.data, start.licence, source, extra
            save_checkpoint(Checkpoint(path, weights, *about))

        trainer.run(lambda step: export(checkpoint_path(out, step), trainer.weights(), step=step))
        cost, notes, weights = trainer.cost(), notes + trainer.notes(), trainer.weights()
        if place.first:
            extra = {
                "recipe": recipe.settings(),
                "key": key,
                "init": init,
                "init_sha256": start.digest,
                "labels": labels.identity if labels is not None and recipe.tasks else "",
                "pairs": {
                    "name": pairs.name,
                    "count": len(pairs),
                    "fingerprint": pairs.fingerprint,
                },
                "metrics": trainer.metrics,
                "cost": cost,
                "notes": notes,
            }
            export(out, weights, **extra)
            trainer.states.remove()
        place.wait()
        return TrainResult(out, state_sha256(weights), key, trainer.metrics, cost, notes)


def checkpoint_path(out: Path, step: int) -> Path:
    """Where the weights of a step are exported on the way to ``out``:
    ``NAME.steps/step-000001000.safetensors``."""
    return out.with_suffix(".steps") / f"step-{step:09d}.safetensors"


def find_trained(
    recipe: Recipe, *, init: str, pairs: PairSource, out: str | Path, labels: Labels | None = None
) -> TrainResult | None:
    """What ``train`` would return at once because ``out`` holds these very weights; None when it
    would have to train. Raises ``UserError`` when the initial weights cannot be had."""
    if not Path(out).is_file():
        return None
    start = load_pretrained_clip(init, recipe.model, image_size=recipe.image_size, seed=recipe.seed)
    return _finished(Path(out), _key(recipe, start, pairs, labels))


def _key(recipe: Recipe, start: PretrainedCLIP, pairs: PairSource, labels: Labels | None) -> str:
    init = content_key([start.digest, start.architecture, start.model_config])
    return recipe.key(
        init, pairs.fingerprint, labels.identity if labels is not None and recipe.tasks else ""
    )


def _finished(out: Path, key: str) -> TrainResult | None:
    """The result stored with ``out`` when it was made by the same recipe from the same inputs."""
    if not out.is_file():
        return None
    try:
        checkpoint = load_checkpoint(out)
    except UserError:  # damaged: made again, as if it were not there
        return None
    extra = checkpoint.extra
    if extra.get("key") != key:
        return None
    return TrainResult(
        out, checkpoint.sha256, key, extra["metrics"], extra["cost"], extra["notes"], trained=False
    )


def _label_size(recipe: Recipe, start: PretrainedCLIP) -> int:
    """Side of the dense predictions: the recipe's, or four pixels for each cell of the finest map,
    at most the image's."""
    if not recipe.tasks:
        return 0
    finest = min(stride for _, stride in map_shapes(start))
    return recipe.label_size or min(start.data.size[0], 4 * start.data.size[0] // finest)


def _heads(recipe: Recipe, start: PretrainedCLIP, labels: Labels | None) -> TaskHeads | None:
    if not recipe.tasks or labels is None:
        return None
    outputs = {}
    for task in map(find_task, recipe.tasks):
        classes = labels.classes.get(task.name, ())
        if task.has_classes and not classes:
            others = ",".join(name for name in recipe.tasks if name != task.name)
            raise UserError(
                f"the labels have no classes of {task.name}; leave it out with --set"
                f" experts={others}"
            )
        outputs[task.name] = task.channels(classes)
    channels = [count for count, _ in map_shapes(start)]
    width = recipe.head_width or min(256, max(channels) // 2)
    return TaskHeads(channels, outputs, width)


def _check_labels(batches: TrainDataset) -> list[str]:
    """Labels of other pairs are found out before hours of work, not after; what is said of the
    others."""
    if batches.labels is None:
        return []
    pairs, labels, missing = batches.pairs, batches.labels, set(batches.recipe.tasks)
    stride = max(1, len(pairs) // 32)
    for index in (
        index for first in range(stride) for index in range(first, len(pairs), stride)
    ):  # spread ones first
        missing -= set(labels.tasks_of(pairs.key(index)))
        if not missing:
            side = min(
                min(label.shape[-2:])
                for label in labels.get(pairs.key(index), batches.recipe.tasks).values()
            )
            wanted = batches.label_size
            coarse = (
                f"labels have {side} pixels and are compared at {wanted}: label with"
                f" label_side={2 * wanted}"
            )
            return [coarse] if side < wanted else []
    raise UserError(
        f"the labels have no {min(missing)} for pairs such as {pairs.key(0)}; label {pairs.name}"
        " first"
    )


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    """What is not in bf16 multiplies in TF32 on GPUs that have it."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
