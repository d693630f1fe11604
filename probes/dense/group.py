"""Dense tasks on the same photographs, trained in one loop and scored in another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine.config import Config

from cliptex_common.files import content_key
from probes.base import Context, Probe, TaskResult
from probes.dense.config import dense_config
from probes.dense.constant import constant_note
from probes.dense.data import image_only
from probes.dense.learning_rates import choose
from probes.dense.preview import draw_preview, scored
from probes.features.content_hashes import content_hashes
from probes.train.loop import HeadTrainer, config_text, train_together

Task = tuple[Probe, Context]


def group_key(probe: Probe, context: Context) -> str:
    """Equal for tasks that one loop can train on the same batches: those of one seed and of the
    same crops of the same photographs for one frozen backbone. Ground truth, head, optimizer,
    schedule and length may differ."""
    config, settings = dense_config(probe, context), context.settings
    shared: list[Any] = ["dense", context.seed, settings.batch_size, context.data.train_indices]
    shared += [
        settings.shuffle,
        settings.cache,
        config.model.backbone.to_dict(),
        config.model.data_preprocessor.to_dict(),
        context.backbone.identity(),
    ]
    train, val = (config[name].dataset.to_dict() for name in ("train_dataloader", "val_dataloader"))
    if any("cat_max_ratio" in part for part in train["pipeline"]):  # crops follow from the labels
        return content_key([*shared, train, val])
    images = [
        content_hashes([context.data.root / sample.image for sample in samples])
        for samples in context.data.samples.values()
    ]
    geometry = image_only([*train["pipeline"], *val["pipeline"]])
    return content_key([*shared, images, geometry])


def run_group(tasks: Sequence[Task]) -> list[TaskResult | Exception]:
    """Train the heads of tasks with one ``group_key`` in one loop, on the same batches, and score
    ``val``, at the resolution of its labels, in another. Rates of an ``lr_grid`` are chosen before.
    Returns, in the order of the tasks, the result of each or its error.

    Raises:
        Exception: what failed for all tasks: an image that cannot be read, for example.
    """
    results: dict[int, TaskResult | Exception] = {}
    heads: dict[int, tuple[Config, Context]] = {}  # of the tasks that can be trained
    for index, (probe, context) in enumerate(tasks):
        try:
            probe.fits(context.backbone, context.data, context.settings)
            config = dense_config(probe, context)
            if context.head is not None:  # nothing is trained
                config.train_dataloader.dataset = config.val_dataloader.dataset
            heads[index] = config, context
        except Exception as error:
            results[index] = error
    names = " + ".join(
        f"{context.data.spec.name}/{tasks[index][0].name}" for index, (_, context) in heads.items()
    )
    notes: dict[int, list[str]] = {}  # on the rates that are chosen
    grids = {
        index: tasks[index]
        for index, (_, context) in heads.items()
        if context.head is None and context.settings.lr_grid
    }
    if grids:
        for index, choice in choose(grids, f"{names}: learning rates").items():
            if isinstance(choice, Exception):
                results[index] = choice
                del heads[index]
            else:
                context, notes[index] = choice
                heads[index] = dense_config(tasks[index][0], context), context

    def finish(index: int, trainer: HeadTrainer) -> TaskResult:
        return _result(tasks[index][0], trainer, notes.get(index, []))

    if heads:
        results |= train_together(heads, description=names, finish=finish)
    return [results[index] for index in range(len(tasks))]


def _result(probe: Probe, trainer: HeadTrainer, rate_notes: Sequence[str]) -> TaskResult:
    context, (scores,) = trainer.context, trainer.evaluator.metrics
    images = [sample.image for sample in context.data.samples["val"]]
    if list(scores.per_image["image"]) != images:
        raise RuntimeError("the images that were scored are not those of val in their order")
    context.cost.add(trainer.cost)
    per_image = scores.per_image
    if context.data.spec.units:
        units = context.data.spec.units(context.data.root)
        per_image["unit"] = np.array([units.get(image, image) for image in images])
    notes = list(scores.notes)
    if context.head is None:
        scored_by = trainer.config, trainer.val_dataset
        notes += constant_note(context.data, trainer.metrics, per_image, *scored_by)
    notes += [*rate_notes, *trainer.notes]
    # where a head is used, its config has nothing to train on
    config = trainer.config if context.head is None else None
    with context.cost.phase("pictures"):
        preview = draw_preview(
            partial(scored, scores, trainer.val_dataset),
            trainer.val_dataset,
            probe.kind,
            context.work_dir / "preview.png",
        )
    return TaskResult(
        metrics=trainer.metrics,
        per_image=per_image,
        preview=preview,
        head=None if context.head else trainer.head(),
        notes=notes,
        config=config_text(config, context, lambda used: dense_config(probe, used)),
    )
