"""The ``experts train`` command: train an expert, measure it, save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backbones.cliptex.experts.base import CONFIG, EXPERTS, Expert, read_config
from backbones.cliptex.experts.data import ExpertData, load_data
from backbones.cliptex.protocols import Progress
from backbones.cliptex.tasks import find_task, origins
from cliptex_common.errors import UserError
from cliptex_common.files import content_key
from cliptex_common.out_of_memory import report_out_of_memory
from cliptex_common.settings import with_changes

if TYPE_CHECKING:  # it imports open_clip and timm, and `list experts` must not
    from backbones.cliptex.training.trainer import TrainContext

VERSION = 3
CURVE_POINTS = 200
STATES = "training-state"  # folder of a running training, in the expert's


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
        data_root: with the ground truth of the expert's task, see ``Task.ground_truth``.
        context: states are saved in ``out``.
        settings: changes to the expert's settings, values or text.

    Returns:
        ``expert.json`` of the folder: identity, ``accuracy``, ``images``, and ``seconds``,
        ``flops`` and ``threads`` of the training. An expert from the same data, settings and seed
        is returned as it is.

    Raises:
        UserError: unknown expert or setting, missing or unreadable data, ``out`` holds something
            else, or the memory of the device ends.
        NonFiniteLoss: the loss broke.
    """
    kind = EXPERTS.find(name)
    if kind.train_on is Expert.train_on:
        raise UserError(
            f"expert {name!r} cannot be trained here; give published weights as {name}=PATH"
        )
    chosen = with_changes(kind.settings_type(), settings or {})
    train, val = (
        load_data(data_root, kind.task, split, chosen.size, context.progress)
        for split in ("train", "val")
    )
    inputs = {"version": VERSION, "expert": name, "settings": asdict(chosen), "seed": seed}
    inputs = {**inputs, **EXPERTS.origin(name), **origins([kind.task])}
    key = content_key({**inputs, "train": train.fingerprint, "val": val.fingerprint}, 32)
    if (out / CONFIG).is_file():
        if (config := read_config(out)).get("training_key") == key:
            return config
        raise UserError(
            f"{out} holds another expert, or one of other data or settings; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)  # fails before the training, not after
    torch.manual_seed(seed)
    expert = kind.create(chosen, train.classes)
    expert.source = f"trained on {data_root.name}, {len(train)} images, seed {seed}"
    steps = round(chosen.epochs * len(train) / chosen.batch_size)
    log_every = max(1, steps // CURVE_POINTS)
    context = replace(context, resume_dir=out / STATES, log_every=log_every)
    with report_out_of_memory("try a lower batch_size (--set batch_size=…)"):
        cost = expert.train_on(train, context, seed)
    expert.freeze(context.device)
    accuracy = evaluate_expert(expert, val, context.progress)
    context.log.log_metrics(
        {f"expert/{expert.task}/{metric}": value for metric, value in accuracy.items()}, 0
    )
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
    return read_config(out)


def evaluate_expert(expert: Expert, data: ExpertData, progress: Progress) -> dict[str, float]:
    """Score an expert's hard labels against ground truth by its task, see ``Task.score``."""
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
    task = find_task(expert.task)
    if task.has_classes and data.classes != expert.classes:
        # in the expert's class numbers, by name; classes that it lacks are not scored
        table = np.full(256, 65535, np.int64)
        for number, name in enumerate(data.classes):
            if name in expert.classes:
                table[number] = expert.classes.index(name)
        ground_truth = table[ground_truth]
    return task.score(joined, ground_truth, len(expert.classes))
