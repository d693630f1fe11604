"""Dense tasks on the same photographs, trained in one loop and scored in another.

A learning rate is chosen before, without ``val``: heads with each rate of each task's ``lr_grid``
train in one loop on train less a held-out tenth, and are scored on it; a head with the best rate is
then trained on all of train. The held-out images follow from their content alone, so they are the
same for all backbones, seeds and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mmengine.config import Config

from cliptex_common.files import content_key
from probes.base import Context, Probe, RunLog, TaskResult
from probes.dense.config import dense_config
from probes.dense.constant import constant_note
from probes.dense.data import image_only
from probes.dense.preview import draw_preview, predict
from probes.features.content_hashes import content_hashes
from probes.predictor import mmlab_head
from probes.runner.training import Member, train_together
from probes.selection import Candidate, held_out_by_content, log_scores, select_candidate

Task = tuple[Probe, Context]
Choice = tuple[Context, list[str]]  # of a head with the best rate, and notes for the user


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

    An index counts all ``tasks``. Tasks that fail before the training have no head, so
    ``train_together`` numbers the remaining heads anew.

    Raises:
        Exception: what failed for all tasks: an image that cannot be read, for example.
    """
    results: dict[int, TaskResult | Exception] = {}
    heads: dict[int, tuple[Config, Context]] = {}
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
    notes: dict[int, list[str]] = {}
    contexts = {index: context for index, (_, context) in heads.items() if context.head is None}
    if grids := [index for index, context in contexts.items() if context.settings.lr_grid]:
        choices = choose([tasks[index] for index in grids], f"{names}: learning rates")
        for index, choice in zip(grids, choices, strict=True):
            if isinstance(choice, Exception):
                results[index] = choice
                del heads[index]
            else:
                context, notes[index] = choice
                heads[index] = dense_config(tasks[index][0], context), context
    indices = list(heads)

    def finish(number: int, member: Member) -> TaskResult:
        index = indices[number]
        return _result(tasks[index][0], member, notes.get(index, []))

    if heads:
        trained = train_together(list(heads.values()), description=names, finish=finish)
        results |= zip(indices, trained, strict=True)
    return [results[index] for index in range(len(tasks))]


def with_rate(context: Context, rate: float) -> Context:
    """``context`` for a head with this learning rate, without a grid."""
    return replace(context, settings=replace(context.settings, lr=rate, lr_grid=()))


def choose(tasks: Sequence[Task], description: str) -> list[Choice | Exception]:
    """Train a head with each rate of each task's grid in one loop, and compare those of a task by
    its main metric on the held-out images. Returns the choice of each task, or its error. Of equals
    the lower rate wins; a head that fails is left out, and a task of which all fail has the error
    of the first.

    Each task's log gets ``select/METRIC/lr_…`` and ``select/lr``, and its cost that of its heads.
    """
    held_out = held_out_by_content(tasks[0][1])
    heads = []
    for probe, context in tasks:
        images = frozenset(context.data.encoded("train")[index].image for index in held_out)
        for rate in sorted(context.settings.lr_grid):
            folder = context.work_dir / f"lr_{rate:g}"
            folder.mkdir(parents=True, exist_ok=True)
            head = with_rate(context, rate)
            head = replace(head, work_dir=folder, log=_SuffixedLog(context.log, f"/lr_{rate:g}"))
            heads.append((dense_config(probe, head, images), head))
    trained = iter(train_together(heads, description=description, leave_out=held_out))
    return [
        _choose(
            probe,
            context,
            {rate: next(trained) for rate in sorted(context.settings.lr_grid)},
            len(held_out),
        )
        for probe, context in tasks
    ]


def _choose(
    probe: Probe, context: Context, results: Mapping[float, Member | Exception], held_out: int
) -> Choice | Exception:
    main, metric = next(iter(probe.metrics.items()))
    candidates, notes = [], list[str]()
    for rate, result in results.items():
        score = math.nan
        if isinstance(result, Exception):
            notes.append(f"learning rate {rate:g} failed: {result}")
        else:
            score = result.metrics[main]
            context.cost.add(result.cost)
        candidates.append(Candidate(rate, f"lr_{rate:g}", score, coordinate=rate))
    first = next(iter(results.values()))
    if isinstance(first, Exception) and len(notes) == len(results):
        return first
    log_scores(context.log, main, candidates, context.settings.max_iters)
    best, reason = select_candidate(candidates, main, held_out, metric.direction)
    context.log.log_metrics({"select/lr": best.value}, context.settings.max_iters)
    notes.insert(0, f"learning rate {best.value:g}: {reason}; then trained on all")
    return with_rate(context, best.value), notes


class _SuffixedLog:
    """A run's log that appends a suffix to the names of the curves of one head."""

    def __init__(self, log: RunLog, suffix: str) -> None:
        self._log, self._suffix = log, suffix

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        suffixed = {f"{name}{self._suffix}": value for name, value in metrics.items()}
        self._log.log_metrics(suffixed, step)


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
    constant = [] if context.head else constant_note(context.data, *scored)
    notes = [*scores.notes, *constant, *chosen, *member.notes]
    return TaskResult(
        metrics=member.metrics,
        per_image=per_image,
        preview=draw_preview(
            lambda index: predict(member.model, member.val_item(index), probe.kind),
            member.val_dataset,
            probe.kind,
            context.work_dir / "preview.png",
        ),
        head=None if context.head else mmlab_head(member.model, member.config, context),
        notes=notes,
    )
