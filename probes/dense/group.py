"""Dense tasks on the same photographs, trained in one loop and scored in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.config import Config

from common.files import content_key
from probes.base import Context, Probe, TaskResult
from probes.dense.config import dense_config
from probes.dense.constant import constant_note
from probes.dense.data import image_only
from probes.dense.lr_grid import choose, with_rate
from probes.dense.preview import draw_preview, predict
from probes.features.feature_dataset import features_key
from probes.predictor import mmlab_head
from probes.runner.training import Member, train_together

Task = tuple[Probe, Context]


def group_key(probe: Probe, context: Context) -> str:
    """Equal for tasks that one loop can train on the same batches: those of one seed and of one
    backbone's cached features, or of crops of the same photographs for one encoder. Ground truth,
    head, optimizer, schedule and length may differ."""
    config, settings = dense_config(probe, context), context.settings
    shared: list[Any] = ["dense", context.seed, settings.batch_size, context.data.train_indices]
    shared += [settings.shuffle]
    if settings.cache != "none":
        return content_key([*shared, features_key(config, context)])
    shared += [
        config.model.backbone.to_dict(),
        config.model.data_preprocessor.to_dict(),
        context.backbone.identity(),
    ]
    train, val = (config[name].dataset.to_dict() for name in ("train_dataloader", "val_dataloader"))
    if any("cat_max_ratio" in part for part in train["pipeline"]):  # crops follow from the labels
        return content_key([*shared, train, val])
    images = {
        split: [sample.image for sample in samples]
        for split, samples in context.data.samples.items()
    }
    geometry = image_only([*train["pipeline"], *val["pipeline"]])
    return content_key([*shared, str(context.data.root.resolve()), images, geometry])


def run_group(tasks: Sequence[Task]) -> list[TaskResult | Exception]:
    """Train the heads of tasks with one ``group_key`` in one loop, on the same batches, and score
    ``val``, at the resolution of its labels, in another. Rates of an ``lr_grid`` are chosen before.
    Returns, in the order of the tasks, the result of each or its error.

    An index counts all ``tasks``. Tasks that fail before the training have no head, so
    ``train_together`` numbers the remaining heads anew.

    Raises:
        Exception: what failed for all tasks: an image that cannot be read, for example.
    """
    results: dict[int, TaskResult | Exception] = {}
    heads: dict[int, tuple[Config, Context]] = {}
    for index, (probe, context) in enumerate(tasks):
        try:
            heads[index] = dense_config(probe, context), context
        except Exception as error:
            results[index] = error
    names = " + ".join(
        f"{context.data.spec.name}/{tasks[index][0].name}" for index, (_, context) in heads.items()
    )
    notes: dict[int, list[str]] = {}
    if grids := [index for index in heads if tasks[index][1].settings.lr_grid]:
        chosen = choose([tasks[index] for index in grids], f"{names}: learning rates")
        for index, choice in zip(grids, chosen, strict=True):
            if isinstance(choice, Exception):
                results[index] = choice
                del heads[index]
                continue
            rate, notes[index] = choice
            probe, context = tasks[index]
            context = with_rate(context, rate)
            heads[index] = dense_config(probe, context), context
    indices = list(heads)

    def finish(number: int, member: Member) -> TaskResult:
        index = indices[number]
        return _result(tasks[index][0], member, notes.get(index, []))

    if heads:
        trained = train_together(list(heads.values()), description=names, finish=finish)
        results |= zip(indices, trained, strict=True)
    return [results[index] for index in range(len(tasks))]


def _result(probe: Probe, member: Member, chosen: Sequence[str]) -> TaskResult:
    context, (scores,) = member.context, member.evaluator.metrics
    images = [sample.image for sample in context.data.samples["val"]]
    if list(scores.per_image["image"]) != images:
        raise RuntimeError("the images that were scored are not those of val in their order")
    context.cost.add(member.cost)
    per_image = scores.per_image
    if context.data.spec.units:
        units = context.data.spec.units(context.data.root)
        per_image["unit"] = np.array([units.get(image, image) for image in images])
    scored = member.metrics, per_image, member.config, member.val_dataset
    notes = [*scores.notes, *constant_note(context.data, *scored), *chosen, *member.notes]
    return TaskResult(
        metrics=member.metrics,
        per_image=per_image,
        preview=draw_preview(
            lambda index: predict(member.model, member.val_item(index), probe.kind),
            member.val_dataset,
            probe.kind,
            context.work_dir / "preview.png",
        ),
        head=mmlab_head(member.model, member.config, context),
        notes=notes,
    )
