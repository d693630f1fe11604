"""Training an expert on a folder in the official layouts, measuring it, and keeping it: the
``experts train`` verb."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.cliptex.experts.base import CONFIG, Expert, read_config
from backbones.cliptex.experts.data import ExpertData, load_data
from backbones.cliptex.experts.fit import FitRun
from backbones.cliptex.experts.registry import find_expert
from backbones.cliptex.protocols import Progress, Silent
from backbones.cliptex.tasks import find_task
from common.errors import UserError
from common.files import content_key
from common.settings import with_changes

VERSION = 1


def train_expert(
    name: str, data_root: Path, out: Path, run: FitRun, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train expert ``name`` on ``data_root``, measure it on the validation split and write it to
    the folder ``out``.

    Args:
        data_root: with ``coco/`` (seg) or ``nyu/`` (depth, normal) in their official layouts, train
            and val.
        run: its state is kept in ``out``.
        settings: changes to the expert's settings, values or text.

    Returns:
        ``expert.json`` of the folder: identity, ``accuracy``, ``images``, ``seconds`` and ``flops``
        of the training. An expert that is there already, from the same data, settings and seed, is
        returned as it is; a killed training goes on where it was saved.

    Raises:
        UserError: unknown expert or setting, missing or unreadable data, a loss that is not finite,
            or ``out`` holds something else.
    """
    kind = find_expert(name)
    chosen = with_changes(kind.settings_type(), settings or {})
    out = Path(out)
    train = load_data(data_root, kind.task, "train", chosen.size, run.progress)
    val = load_data(data_root, kind.task, "val", chosen.size, run.progress)
    asked = {"version": VERSION, "expert": name, "settings": asdict(chosen), "seed": run.seed}
    key = content_key({**asked, "train": train.fingerprint, "val": val.fingerprint}, 32)
    if (out / CONFIG).is_file():
        if (found := read_config(out)).get("training_key") == key:
            return found
        raise UserError(
            f"{out} holds another expert, or one of other data or settings; choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # said now, not when it is trained
        raise UserError(
            f"cannot write an expert to {out} ({error.strerror}); choose another folder"
        ) from error
    started = time.monotonic()
    torch.manual_seed(run.seed)
    expert = kind.create(chosen, train.classes)
    expert.source = f"trained on {Path(data_root).name}, {len(train)} images, seed {run.seed}"
    expert.train_on(train, replace(run, state=out / "training-state"))
    # a resumed training took longer than this process
    seconds = expert.spent.seconds if expert.spent else time.monotonic() - started
    flops = expert.spent.flops if expert.spent else 0.0
    expert.freeze(run.device)
    accuracy = evaluate(expert, val, progress=run.progress)
    run.log.log_metrics(
        {f"expert/{expert.task}/{metric}": value for metric, value in accuracy.items()}, 0
    )
    expert.save(
        out,
        training_key=key,
        seed=run.seed,
        images={"train": len(train), "val": len(val)},
        accuracy=accuracy,
        seconds=round(seconds, 2),
        flops=flops,
    )
    return read_config(out)


def evaluate(
    expert: Expert, data: ExpertData, *, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, float]:
    """How right an expert's hard labels are against truth: what its task scores, see
    ``Task.score``."""
    progress = progress or Silent()
    progress.start(f"measuring the {expert.task} expert", len(data))
    kept: dict[str, list[np.ndarray]] = {}
    truths = []
    for images, real in data.batches(batch_size):
        for name, maps in expert.predict(images).items():
            kept.setdefault(name, []).append(maps)
        truths.append(real.numpy())
        progress.advance(len(images))
    labels, truth = (
        {name: np.concatenate(parts) for name, parts in kept.items()},
        np.concatenate(truths),
    )
    task = find_task(expert.task)
    if task.has_classes:
        truth = _renumbered(truth, data.classes, expert)
    return task.score(labels, truth, len(expert.classes))


def _renumbered(truth: np.ndarray, classes: tuple[str, ...], expert: Expert) -> np.ndarray:
    """Truth in the expert's own class numbers, by name; classes that it does not know are not
    scored."""
    if classes == expert.classes:
        return truth
    table = np.full(256, 65535, np.int64)
    for place, name in enumerate(classes):
        if name in expert.classes:
            table[place] = expert.classes.index(name)
    return table[truth]
