"""Dense tasks on the same photographs, trained and scored together: which ones go together, and
what comes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.files import content_key
from probes.base import Context, Probe, TaskResult
from probes.dense.config import dense_config
from probes.dense.constant import constant_note
from probes.dense.lr_grid import Choice, choose, with_rate
from probes.dense.preview import draw_preview, predict
from probes.dense.settings import KEPT
from probes.features.feature_dataset import features_key
from probes.predictor import mmlab_head
from probes.runner.training import Member, train_together


def group_key(probe: Probe, context: Context) -> str:
    """The same for tasks that one pass can train: of one seed and of one backbone's kept features,
    or of crops of the same photographs that one encoder takes. Ground truth, head, optimizer,
    schedule and length may differ."""
    config, settings = dense_config(probe, context), context.settings
    shared: list[Any] = ["dense", context.seed, settings.batch_size, context.data.train_indices]
    if settings.cache in KEPT:
        return content_key([*shared, features_key(config, context)])
    encoder = [
        config.model.backbone.to_dict(),
        config.model.data_preprocessor.to_dict(),
        context.backbone.identity(),
    ]
    train, val = (config[name].dataset.to_dict() for name in ("train_dataloader", "val_dataloader"))
    if any("cat_max_ratio" in part for part in train["pipeline"]):  # crops follow from the labels
        return content_key([*shared, encoder, train, val])
    images = {
        split: [sample.image for sample in each] for split, each in context.data.samples.items()
    }
    geometry = [
        {name: value for name, value in part.items() if name not in ("kind", "ground_truth")}
        for part in (*train["pipeline"], *val["pipeline"])
        if part["type"]
        not in ("LoadGroundTruth", "FlipNormals")  # which only concern the ground truth
    ]
    return content_key([*shared, encoder, str(context.data.root.resolve()), images, geometry])


def run_group(tasks: Sequence[tuple[Probe, Context]]) -> list[TaskResult | Exception]:
    """Train the heads of tasks with one ``group_key`` in one pass and score ``val``, at the
    resolution of its labels, in another; in the order of the tasks, what came of each or what it
    broke with. Rates of an ``lr_grid`` are chosen before.

    Raises:
        what broke for all: an image that cannot be read, say.
    """
    results: dict[int, Any] = {}
    configs: dict[int, Any] = {}
    contexts = {place: context for place, (_, context) in enumerate(tasks)}
    for place, (probe, context) in enumerate(tasks):
        try:
            configs[place] = dense_config(probe, context)
        except Exception as error:
            results[place] = error
    description = " + ".join(
        f"{contexts[place].data.spec.name}/{tasks[place][0].name}" for place in configs
    )
    grids = [place for place in configs if contexts[place].settings.lr_grid]
    choices: dict[int, Choice] = {}
    if grids:
        chosen = choose([tasks[place] for place in grids], f"{description}: learning rates")
        for place, choice in zip(grids, chosen, strict=True):
            if isinstance(choice, Exception):
                results[place] = choice
                del configs[place]
                continue
            choices[place], contexts[place] = choice, with_rate(contexts[place], choice.rate)
            configs[place] = dense_config(tasks[place][0], contexts[place])
    heads = {place: (config, contexts[place]) for place, config in configs.items()}
    places = list(heads)

    def finish(place: int, trained: Member) -> TaskResult:
        task = places[place]
        return _result(tasks[task][0], contexts[task], trained, choices.get(task))

    found = (
        train_together(list(heads.values()), description=description, finish=finish)
        if heads
        else []
    )
    results.update(zip(places, found, strict=True))
    return [results[place] for place in range(len(tasks))]


def _result(probe: Probe, context: Context, trained: Member, choice: Choice | None) -> TaskResult:
    (scores,) = trained.evaluator.metrics
    scored, expected = (
        list(scores.per_image["image"]),
        [sample.image for sample in context.data.samples["val"]],
    )
    if scored != expected:
        raise RuntimeError(
            f"{len(scored)} images were scored, not the {len(expected)} of the split in their order"
        )
    beaten = constant_note(
        context.data, trained.config.val_evaluator, trained.metrics, scores.per_image
    )
    context.cost.add(trained.cost)
    if choice:
        context.cost.add(choice.cost)
    return TaskResult(
        metrics=trained.metrics,
        per_image=scores.per_image,
        preview=draw_preview(
            lambda index: predict(trained.model, trained.val_item(index), probe.kind),
            trained.val_dataset,
            probe.kind,
            context.work_dir / "preview.png",
        ),
        head=mmlab_head(trained.model, trained.config, context),
        notes=[*scores.notes, *beaten, *(choice.notes if choice else []), *trained.notes],
    )
