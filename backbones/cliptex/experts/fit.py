"""Training an expert on images with dense ground truth, as ``experts train`` does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.backbone import state_sha256
from backbones.cliptex.batches import random_geometry
from backbones.cliptex.experts.base import (
    CONFIG,
    EXPERTS,
    Expert,
    ExpertData,
    FitSettings,
    load_data,
    read_expert_config,
)
from backbones.cliptex.pairs import computed_ahead
from backbones.cliptex.targets import warp_images
from backbones.cliptex.tasks import find_label_map, origins
from backbones.cliptex.trainer import (
    DistContext,
    TrainContext,
    Trainer,
    build_optimizer,
    copy_buffers,
    restore_buffers,
)
from cliptex_common.device import count_flops, float32_products, report_out_of_memory, upload
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.progress import Progress
from cliptex_common.settings import with_changes

EXPERT_VERSION = 3  # raised whenever the same settings and data would give other weights
CURVE_POINTS = 200
STATES = "training-state"  # folder of a running training, in the expert's
Batch = tuple[Tensor, Tensor]


def train_expert(
    name: str,
    data_root: Path,
    out: Path,
    context: TrainContext,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train expert ``name``, measure it on the validation split and write it to the folder ``out``.

    Args:
        data_root: with the ground truth of the expert's task, see ``LabelMap.ground_truth``.
        context: states are saved in ``out``.
        settings: changes to the expert's settings, values or text.

    Returns:
        ``expert.json`` of the folder: identity, ``accuracy``, ``images``, and ``seconds``,
        ``flops`` and ``threads`` of the training. An expert from the same data, settings and seed
        is returned as it is.

    Raises:
        UserError: unknown expert or setting, an expert that cannot be trained here, missing or
            unreadable data, ``out`` holds something else, or the memory of the device ends.
        NonFiniteLoss: the loss broke.
    """
    kind = EXPERTS.find(name)
    if kind.loss is Expert.loss:
        raise UserError(
            f"expert {name!r} cannot be trained here; give published weights as {name}=PATH"
        )
    chosen = with_changes(kind.settings_type(), settings or {})
    train, val = (
        load_data(data_root, kind.task, split, chosen.size, context.progress)
        for split in ("train", "val")
    )
    inputs = {"version": EXPERT_VERSION, "expert": name, "settings": asdict(chosen), "seed": seed}
    inputs = {**inputs, **EXPERTS.origin(name), **origins([kind.task])}
    key = content_key({**inputs, "train": train.fingerprint, "val": val.fingerprint}, 32)
    if (out / CONFIG).is_file():
        if (config := read_expert_config(out)).get("training_key") == key:
            return config
        raise UserError(
            f"{out} holds another expert, or one of other data or settings; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)  # fails before the training, not after
    torch.manual_seed(seed)
    expert = kind.create(chosen, train.classes)
    expert.source = f"trained on {data_root.name}, {len(train)} images, seed {seed}"
    log_every = max(1, step_count(chosen, train) // CURVE_POINTS)
    context = replace(context, resume_dir=out / STATES, log_every=log_every)
    with (
        report_out_of_memory("try a lower batch_size (--set batch_size=…)"),
        float32_products(tf32=True),
    ):
        trainer = ExpertTrainer(expert, train, context, seed)
        trainer.run()
    trainer.states.remove()
    expert.freeze(context.device)
    with float32_products(tf32=False):
        accuracy = evaluate_expert(expert, val, context.progress)
    context.log.log_metrics(
        {f"expert/{expert.task}/{metric}": value for metric, value in accuracy.items()}, 0
    )
    cost = trainer.cost()
    expert.save(
        out,
        training_key=key,
        seed=seed,
        images={"train": len(train), "val": len(val)},
        accuracy=accuracy,
        seconds=round(cost["train_seconds"], 2),
        flops=cost["train_flops"],
        threads=torch.get_num_threads(),  # the last bits of sums depend on them
    )
    return read_expert_config(out)


class ExpertTrainer(Trainer):
    """Trains an expert by ``Expert.loss``, on targets that are augmented with their images."""

    advice = "try a lower lr (--set lr=…)"
    grad_clip = 5.0

    def __init__(self, expert: Expert, data: ExpertData, context: TrainContext, seed: int) -> None:
        settings: FitSettings = expert.settings
        # ``Trainer`` needs these attributes, and an optimizer of what ``loss`` has made ready
        self.loss = expert.to(context.device).train().loss(data)
        self.data, self.settings = data, settings
        self.prefix, self.name = f"expert/{data.task}", f"the {data.task} expert"
        self.seed, self.batch_size = seed, settings.batch_size
        self.steps = step_count(settings, data)
        digest = state_sha256(expert.state_dict())
        self.key = content_key([repr(settings), seed, data.fingerprint, digest])
        optimizer = build_optimizer(expert, settings.lr, settings.weight_decay)
        process = DistContext(0, 1, torch.device(context.device))
        super().__init__(expert, optimizer, context, process)

    def batches(self, start: int) -> Iterator[Batch]:
        def load(step: int) -> Batch:
            return augmented_batch(self.data, self.settings, self.seed, step)

        device, threads = self.process.device, min(1, self.context.workers)
        for images, target in computed_ahead(load, range(start, self.steps), threads):
            yield upload(images, device), upload(target, device)

    def rate(self, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.settings.lr * min((step + 1) / max(1, 0.1 * self.steps), cosine)

    def backward(self, batch: Batch, norms: bool = False) -> tuple[dict[str, Tensor], dict]:
        loss = self.loss(*batch)
        loss.backward()
        return {"loss": loss.detach()}, {}

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def flops(self, batch: Batch) -> float:
        buffers = copy_buffers(self.model)
        flops = count_flops(lambda: self.backward(batch))
        self.optimizer.zero_grad(set_to_none=True)
        restore_buffers(self.model, buffers)
        return float(flops)


def step_count(settings: FitSettings, data: ExpertData) -> int:
    """Steps of a training, at least one."""
    return max(1, round(settings.epochs * len(data) / settings.batch_size))


def augmented_batch(data: ExpertData, settings: FitSettings, seed: int, step: int) -> Batch:
    """Images (B, 3, S, S) float in [0, 1] and their targets: a function of seed and step."""
    positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
    epochs, offsets = np.divmod(positions, len(data))
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(len(data))
        for epoch in np.unique(epochs)
    }
    indices = [int(orders[epoch][at]) for epoch, at in zip(epochs, offsets, strict=True)]
    geometry = random_geometry(
        indices,
        [(data.size, data.size)] * len(indices),
        seed=seed,
        epoch=epochs,
        scale=settings.crop_scale,
    )
    images, targets = data.read(indices)
    images = warp_images(images, geometry, data.size) / 255
    target = find_label_map(data.task).warp(list(targets), geometry, data.size)
    return jitter(images, settings.color_jitter, np.random.default_rng([seed, 1, step])), target


def jitter(images: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Change each image's brightness, contrast, saturation, colour cast, blur and noise.

    ``images``: (N, 3, H, W) in [0, 1].
    """
    if strength == 0:
        return images
    count = len(images)

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    def factor(channels: int) -> Tensor:
        return column(np.exp(strength * random.uniform(-1, 1, (count, channels, 1, 1))))

    images = images * factor(1) * factor(3).sqrt()
    grey = images.mean(1, keepdim=True)
    saturation = column(random.uniform(1 - 2 * strength, 1 + strength, (count, 1, 1, 1)))
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor(1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    is_blurred = column(random.random((count, 1, 1, 1)) < 0.3)
    images = images + is_blurred * (blurred - images)
    noise = torch.from_numpy(random.standard_normal(images.shape, np.float32))
    level = column(0.05 * strength * random.random((count, 1, 1, 1)))
    return (images + level * noise).clamp(0, 1)


def evaluate_expert(expert: Expert, data: ExpertData, progress: Progress) -> dict[str, float]:
    """Score an expert's hard labels against ground truth by its task, see ``LabelMap.accuracy``."""
    progress.start(f"measuring the {expert.task} expert", len(data))
    outputs: dict[str, list[np.ndarray]] = {}
    targets = []
    for images, target in data.batches(32):
        for name, maps in expert.predict(images).items():
            outputs.setdefault(name, []).append(maps)
        targets.append(target.numpy())
        progress.advance(len(images))
    joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
    ground_truth = np.concatenate(targets)
    task = find_label_map(expert.task)
    if task.has_classes and data.classes != expert.classes:
        # in the expert's class numbers, by name; classes that it lacks are not scored
        table = np.full(256, 65535, np.int64)
        for number, name in enumerate(data.classes):
            if name in expert.classes:
                table[number] = expert.classes.index(name)
        ground_truth = table[ground_truth]
    return task.accuracy(joined, ground_truth, len(expert.classes))
