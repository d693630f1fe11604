"""Dense tasks on the same photographs, trained in one loop and scored in another; before that the
choice of a learning rate, after it the note on the best constant, and the preview.

A rate is chosen without ``val``: heads with each rate of each task's ``lr_grid`` train in one loop
on train less a held-out tenth, and are scored on it; a head with the best rate is then trained on
all of train. The held-out images follow from their content alone, so they are the same for all
backbones, seeds and tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmseg.registry import METRICS as MMSEG_METRICS

from cliptex_common.files import content_key
from cliptex_common.images import class_legend, spread_indices, write_grid
from probes.base import Context, Probe, TaskResult
from probes.datasets.base import PreparedDataset
from probes.dense.config import dense_config
from probes.dense.losses import TaskScores
from probes.dense.pipelines import image_only
from probes.dense.tasks import DENSE_TASKS
from probes.features.files import content_hashes
from probes.pictures import GALLERY_IMAGES, write_gallery
from probes.select import Choice, contexts_of_rates, held_out_by_content, rates_of, select_rate
from probes.train.loop import HeadTrainer, config_text, note_tuning, train_together
from reports.records import CEILING, FLOOR

ProbeAndContext = tuple[Probe, Context]


def join_group(probe: Probe, context: Context) -> tuple[str | None, Context]:
    """A key that is equal for tasks that one loop can train on the same batches: those of one seed
    and of the same crops of the same photographs for one frozen backbone. Ground truth, head,
    optimizer, schedule and length may differ. None for one that tunes its backbone, which is
    trained alone. And the context with its resolved config."""
    config, settings = dense_config(probe, context), context.settings
    context = replace(context, config=config)
    if settings.is_tuned:
        return None, context
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
        return content_key([*shared, train, val]), context
    images = [
        content_hashes([context.data.root / sample.image for sample in samples])
        for samples in context.data.samples.values()
    ]
    geometry = image_only([*train["pipeline"], *val["pipeline"]])
    return content_key([*shared, images, geometry]), context


def run_group(tasks: Sequence[ProbeAndContext]) -> list[TaskResult | Exception]:
    """Train the heads of tasks with one key (``join_group``) in one loop, on the same batches, and
    score ``val``, at the resolution of its labels, in another. Rates of an ``lr_grid`` are chosen
    before.
    Returns, in the order of the tasks, the result of each or its error.

    Raises:
        Exception: what failed for all tasks: an image that cannot be read, for example.
    """
    results: dict[int, TaskResult | Exception] = {}
    heads: dict[int, tuple[Config, Context]] = {}  # of the tasks that can be trained
    for index, (probe, context) in enumerate(tasks):
        try:
            probe.fits(context.backbone, context.data, context.settings)
            config = context.config or dense_config(probe, context)
            # nothing is trained, and train need not be on this disk: the loop opens val twice
            if context.head is not None:
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
        if context.head is None and len(rates_of(context.settings)) > 1
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
    notes, metrics = list(scores.notes), dict(trainer.metrics)
    if context.head is None:
        scored_by = trainer.config, trainer.val_dataset
        notes += constant_note(context.data, context.settings, metrics, per_image, *scored_by)
    notes += note_tuning(trainer)
    main = next(iter(probe.metrics))
    bounds = {end: metrics.pop(end + main) for end in (FLOOR, CEILING) if end + main in metrics}
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
        metrics=metrics,
        per_image=per_image,
        bounds=bounds,
        preview=preview,
        head=None if context.head else trainer.head(),
        notes=notes,
        config=config_text(config, context, lambda used: dense_config(probe, used)),
    )


def choose(tasks: Mapping[int, ProbeAndContext], description: str) -> dict[int, Choice | Exception]:
    """Train a head with each rate of each task's grid in one loop, and compare those of a task by
    its main metric on the held-out images. Returns the choice of each task, or its error; see
    ``select_rate``."""
    held_out = held_out_by_content(next(iter(tasks.values()))[1])
    heads = {}
    for index, (probe, context) in tasks.items():
        images = frozenset(context.data.encoded("train")[item].image for item in held_out)
        for rate, of_rate in contexts_of_rates(context).items():
            heads[index, rate] = dense_config(probe, of_rate, images), of_rate
    if next(iter(tasks.values()))[1].settings.is_tuned:
        # each trains a network of its own, so that the memory need hold one only
        trained: dict[tuple[int, float], HeadTrainer | Exception] = {}
        for key, head in heads.items():
            trained |= train_together({key: head}, description=description, leave_out=held_out)
            if isinstance(result := trained[key], HeadTrainer):
                result.discard()
    else:
        trained = train_together(heads, description=description, leave_out=held_out)
    choices = {}
    for index, (probe, context) in tasks.items():
        rates = {rate: trained[index, rate] for rate in sorted(rates_of(context.settings))}
        choices[index] = select_rate(probe, context, rates, len(held_out))
    return choices


# of train, and of each of its images, evenly spread: a constant needs no more
CONSTANT_IMAGES, CONSTANT_PIXELS = 200, 20_000
# constants and their scores, by all that decides them: many heads are scored on one dataset
_constants: dict[tuple[Any, ...], Any] = {}


def constant_note(
    data: PreparedDataset,
    settings: Any,
    metrics: dict[str, float],
    per_image: Any,
    config: Any = None,
    val: Any = None,
) -> list[str]:
    """Add to ``metrics`` as floor what the best constant prediction has on ``val``; a note if they
    are no better.

    Args:
        data: whose ``train`` is the share that is trained on.
        settings: of the probe; some change the ground truth.
        per_image: per-image scores, see ``DenseTask.constant_score``; where that gives None:
        config: the probe's, with ``val_evaluator``.
        val: the dataset of the config's ``val_dataloader``.
    """
    task = DENSE_TASKS.find(data.spec.kind)
    main, metric = next(iter(task.metrics.items()))
    if not np.isfinite(metrics[main]):
        return []
    reading = repr(task.reading(data.spec, len(data.classes), settings))
    key = data.name, str(data.root), data.fingerprint, data.train_indices, reading
    if key not in _constants:
        _constants[key] = best_constant(data, settings)
    constant = _constants[key]
    score = task.constant_score(constant, per_image)
    if score is None:
        pipeline = config.val_dataloader["dataset"]["pipeline"]
        scored = (*key, repr(config.val_evaluator), repr(pipeline))
        if scored not in _constants:
            scores = _score(val, task.field, config.val_evaluator, constant)
            _constants[scored] = float(scores[main])
        score = _constants[scored]
    if not np.isfinite(score):
        return []
    metrics.setdefault(FLOOR + main, score)
    if metric.direction * metrics[main] > metric.direction * score:
        return []
    return [
        f"does not beat the best constant prediction: {main} {metrics[main]:.4g}, and {score:.4g}"
        f" with {task.constant_name(constant, data)} everywhere"
    ]


def best_constant(data: PreparedDataset, settings: Any = None) -> Any:
    """The best prediction for every pixel of ``train``, see ``DenseTask.best_constant``; unless
    None, of the ground truth as a probe's ``settings`` have it."""
    task, samples = DENSE_TASKS.find(data.spec.kind), data.samples["train"]
    options = task.reading(data.spec, len(data.classes), settings)
    pixels = []
    for sample in samples[:: max(1, len(samples) // CONSTANT_IMAGES)]:
        ground_truth = task.load(str(data.root / sample.target), **options)
        flat = ground_truth.reshape(-1, *ground_truth.shape[2:])
        pixels.append(flat[:: max(1, len(flat) // CONSTANT_PIXELS)])
    return task.best_constant(np.concatenate(pixels), data)


def _score(val: Any, field: str, evaluator: Any, constant: Any) -> dict[str, float]:
    """The metrics of ``constant`` at every pixel of ``val``."""
    metric = MMSEG_METRICS.build(dict(evaluator))
    for index in range(len(val)):
        sample = val.ground_truth(index)
        target = sample.get(f"gt_{field}").data
        prediction = torch.as_tensor(constant).reshape(-1, 1, 1).expand_as(target)
        maps = {f"gt_{field}": {"data": target}, f"pred_{field}": {"data": prediction}}
        metric.process(None, [{"image": sample.image, **maps}])
    return metric.compute_metrics(metric.results)


PREVIEW_IMAGES = 6


@dataclass
class Predicted:
    """One validation image, with ground truth and prediction (channels, H, W)."""

    name: str
    photo: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


def draw_preview(
    predicted: Callable[[int], Predicted], dataset: Any, kind: str, path: Path
) -> Path:
    """Write evenly spaced images of ``dataset`` (a ``DenseDataset`` in test mode) as a PNG, with
    ground truth and what is ``predicted``; and up to 48, the same among them, small, into
    a gallery beside it (``probes.pictures.write_gallery``)."""
    task, classes = DENSE_TASKS.find(kind), dataset.metainfo["classes"]
    gallery = spread_indices(len(dataset), GALLERY_IMAGES)
    large = {
        gallery[row]: predicted(gallery[row])
        for row in spread_indices(len(gallery), PREVIEW_IMAGES)
    }
    draw, legend = task.drawing(classes, [image.target for image in large.values()])

    if task.outcomes and legend is not None:
        colours = np.array(list(task.outcomes.values()), np.uint8)
        names = [f"prediction: {name}" for name in task.outcomes]
        legend = np.vstack([legend, class_legend(names, colours, width=legend.shape[1])])

    def panels(image: Predicted) -> dict[str, np.ndarray]:
        target = draw(image.target)
        prediction = task.outcome(draw, image.target, image.prediction)
        return {"image": image.photo, "truth": target, "prediction": prediction}

    small = (large.get(index) or predicted(index) for index in gallery)
    pictures = ((image.name, panels(image)) for image in small)
    write_gallery(path.parent, pictures, legend, flat=task.has_classes)
    return write_grid(
        path,
        ("image", "ground truth", "prediction"),
        [[*panels(image).values()] for image in large.values()],
        [image.name for image in large.values()],
        legend,
    )


def scored(scores: TaskScores, dataset: Any, index: int) -> Predicted:
    """An image of a gallery of ``dataset`` as it was scored."""
    info = dataset.get_data_info(index)
    # mmcv swaps channels for plain "color" only
    photo = mmcv.imread(info["img_path"], "color_ignore_orientation")[..., ::-1]
    prediction, target = (each.cpu().numpy() for each in scores.shown[info["image"]])
    return Predicted(info["image"], photo, target, prediction)
