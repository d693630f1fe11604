"""Dense tasks on the same photographs, trained and scored together: which ones go together, and
what comes of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from common.files import content_key, write_json
from probes.base import Context, Probe, TaskResult
from probes.dense.config import dense_config
from probes.dense.constant import constant_note
from probes.dense.lr_grid import Choice, added, choose, with_rate
from probes.dense.preview import draw_preview, predict
from probes.dense.settings import KEPT
from probes.features.kept import features_key
from probes.features.worth import keeping_pays
from probes.predictor import mmlab_head
from probes.runner.training import Member, train_together


def group_key(probe: Probe, context: Context) -> str:
    """The same for tasks that one pass can train: of one seed and of one backbone's kept features,
    or of crops of the same photographs that one encoder takes. Ground truth, head, optimizer,
    schedule and length may differ."""
    config, settings = dense_config(probe, context), context.settings
    shared: list[Any] = ["dense", context.seed, settings.batch_size, context.data.places]
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
        {name: value for name, value in part.items() if name not in ("kind", "truth")}
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
    tasks, said = decided(tasks)
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
        result = _result(tasks[task][0], contexts[task], trained, choices.get(task))
        result.notes += said
        return result

    found = (
        train_together(list(heads.values()), description=description, finish=finish)
        if heads
        else []
    )
    results.update(zip(places, found, strict=True))
    return [results[place] for place in range(len(tasks))]


def decided(
    tasks: Sequence[tuple[Probe, Context]],
) -> tuple[Sequence[tuple[Probe, Context]], list[str]]:
    """The tasks of a group with ``cache=auto`` as what it comes to, for all alike, and what to say
    of it. Training that goes on stays with what was decided when it began."""
    undecided = [(probe, context) for probe, context in tasks if context.settings.undecided]
    if not undecided:
        return tasks, []
    probe, context = undecided[0]
    files = [c.work_dir / "cache.json" for _, c in undecided]
    begun = [file for file in files if file.is_file()]
    if begun:
        keep, why = json.loads(begun[0].read_text(encoding="utf-8"))
    else:
        config = dense_config(probe, with_setting(context, cache="fp16"))
        drawn = max(
            c.settings.batch_size * dense_config(p, c).train_cfg.max_iters for p, c in undecided
        )
        keep, why = keeping_pays(config, context, drawn)
    for file in files:  # whoever of them goes on, with whomever
        write_json(file, [keep, why])
    said = [f"cache=auto: features are {'kept' if keep else 'encoded each time'}: {why}"]
    if not keep:
        return tasks, said
    return [
        (probe, with_setting(c, cache="fp16") if c.settings.undecided else c) for probe, c in tasks
    ], said


def with_setting(context: Context, **changes: Any) -> Context:
    """The context with changed settings."""
    return replace(context, settings=replace(context.settings, **changes))


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
    metrics = {name: trained.metrics[name] for name in probe.metrics}
    beaten = constant_note(
        probe, context.data, trained.config.val_evaluator, metrics, scores.per_image
    )
    return TaskResult(
        metrics=metrics,
        per_image=scores.per_image,
        preview=draw_preview(
            partial(predict, trained.model, trained.val_dataset, probe.kind),
            trained.val_dataset,
            probe.kind,
            context.work_dir / "preview.png",
        ),
        head=mmlab_head(trained.model, trained.config, context),
        config=probe.config(context),
        cost=added([choice.cost, trained.cost]) if choice else trained.cost,
        notes=[*scores.notes, *beaten, *(choice.notes if choice else []), *trained.notes],
    )
