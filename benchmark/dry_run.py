"""``--dry-run`` and ``run --dump-config``: what a command would do. Nothing is created."""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import backbones
from backbones import UserError
from backbones.cliptex.data.dataset import training_size
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.labeller import finished_shard
from backbones.cliptex.labels.store import MANIFEST
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.states import States
from backbones.cliptex.training.train import find_trained
from benchmark.cell import finished_cell
from benchmark.cost import choose_device, device_kind
from benchmark.data import group_tasks, image_keys, prepare_data
from benchmark.execution import Bar, Executor, ExecutorSpec, make_executor
from benchmark.execution.progress import console
from benchmark.options import RunOptions
from benchmark.plan import RunPlan, make_plan
from benchmark.records import BackboneInfo
from benchmark.stages.labels import LabelRequest
from benchmark.stages.stage import USE_SERVER
from benchmark.stages.weights import TrainingInputs, open_labels
from benchmark.suites.registry import SuitePreview
from probes.base import Context, missing_capability
from probes.datasets.base import PreparedDataset
from probes.datasets.check import NotChecked
from probes.datasets.share import with_share
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Tracker


@contextmanager
def _idle_executor(spec: ExecutorSpec) -> Iterator[Executor]:
    """An executor that runs nothing; weights are looked up in local caches, not fetched."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    executor = make_executor(spec, Bar())
    try:
        executor.check_store(tracking_uri(), USE_SERVER)
        yield executor
    finally:
        executor.release()


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone.

    Raises:
        UserError: as ``run`` does, or data or weights of the suite do not exist yet.
    """
    plan = make_plan(options)
    seed = options.seed
    executor = make_executor(options.executor, Bar())
    try:
        available = _look_at_suite(plan)
        missing = "do not exist yet, and --dump-config creates nothing; start the run once"
        data = _data(plan, available, executor, known_only=False)
        if data is None:
            raise UserError(f"the data of suite {plan.suite.name!r} {missing}")
        texts = []
        for name in plan.names:
            config = _config(plan, available, name, seed)
            if config is None:
                raise UserError(f"the weights of {name!r} {missing}")
            backbone = backbones.create(**config)
            for task in plan.tasks:
                context = Context(
                    backbone=backbone,
                    backbone_config=config,
                    data=with_share(data[task.name], task.train_share, seed),
                    settings=task.settings,
                    seed=seed,
                    device=choose_device(executor.device),
                    work_dir=Path("work_dirs") / task.name,
                    log=Silent(),
                    progress=Silent(),
                    num_workers=executor.num_workers,
                )
                text = task.probe.config(context)
                comment = "//" if text.lstrip().startswith("{") else "#"
                texts.append(f"{comment} {name} · {task.name}\n{text}")
    finally:
        executor.release()
    sys.stdout.write("\n".join(texts) + "\n")


def dry_run(options: RunOptions) -> None:
    """Print which cells are done and which units are to do, with the median seconds of the same
    tasks in earlier runs on this kind of device."""
    with _idle_executor(options.executor) as executor:
        plan = make_plan(options)
        for note in plan.notes:
            _print(note)
        tracker = Tracker.existing(plan.experiment)
        available = _look_at_suite(plan)
        for stage in available.stages:
            if not stage.available:
                _print_pending(executor, stage.name, stage.kind, stage.units)
        data = _data(plan, available, executor, known_only=True)
        keys = {task.name: task.name for task in plan.tasks}
        if data is not None:
            keys = image_keys(plan.tasks, data)
        median_seconds = cache(lambda task: _median_seconds(tracker, executor, task))
        counts = Counter({"done": 0, "to do": 0})
        for seed in plan.seeds:
            for name in plan.names:
                config = _config(plan, available, name, seed)
                states = _states(plan, config, data, tracker, seed)
                counts.update(states.values())
                pending = [task for task in plan.tasks if states[task.name] == "to do"]
                for group in group_tasks(pending, keys):
                    names = [task.name for task in group]
                    title = f"{name} · seed {seed} · {' + '.join(names)}"
                    seconds = [median_seconds(task) for task in names]
                    _print_pending(executor, title, "probe", 1, seconds)
        totals = ", ".join(f"{count} {state}" for state, count in counts.items())
        sizes = f"{len(plan.names)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds"
        _print(f"{sizes}: {totals}")


def dry_run_labels(request: LabelRequest, spec: ExecutorSpec) -> None:
    """Print which shards are labelled and which are to do. Raises ``UserError`` as
    ``labels predict`` does."""
    with _idle_executor(spec) as executor:
        source, writer = request.open(executor.bar, keep=False)
        pending = [
            shard
            for shard in source.shards
            if finished_shard(writer, shard, _print, hashed=False) is None
        ]
        labelled = len(source.shards) - len(pending)
        images = sum(shard.count for shard in pending)
        _print(
            f"{len(source)} pairs in {len(source.shards)} shards: {labelled} labelled,"
            f" {len(pending)} to do ({images} pairs)"
        )
        if pending:
            _print_pending(executor, "label", "label", len(pending))
        elif not (writer.root / MANIFEST).is_file():
            _print(f"only {writer.root / MANIFEST} is to be written")


def dry_run_training(inputs: TrainingInputs, spec: ExecutorSpec) -> None:
    """Print whether a training is done, or how many steps are to do. Raises ``UserError`` as
    ``train`` does."""
    with _idle_executor(spec) as executor:
        recipe, pairs = inputs.recipe, open_pairs(inputs.pairs, executor.bar, keep=False)
        count, steps = training_size(recipe, pairs)
        labels = open_labels(inputs.labels) if recipe.tasks else None
        _print(
            f"{recipe.name}: {count} of {len(pairs)} pairs in {len(pairs.shards)} shards ×"
            f" {recipe.epochs:g} epochs = {steps} steps of {recipe.batch_size}"
        )
        device = choose_device(inputs.device)
        if find_trained(
            recipe, init=inputs.init, pairs=pairs, out=inputs.out, labels=labels, device=device
        ):
            return _print(f"{inputs.out} holds these weights: nothing is to do")
        saved = States(inputs.out.with_name(f"{inputs.out.name}.resume"), "").steps()
        if saved and saved[0] < steps:
            _print(f"it resumes from step {saved[0]} if that was saved by the same training")
        _print_pending(executor, f"train {recipe.name}", "train", 1)


def _look_at_suite(plan: RunPlan) -> SuitePreview:
    """What of the suite's own data and weights exists."""
    preview = plan.suite.preview
    if preview is None:
        return SuitePreview()
    return preview(plan.suite.name, plan.trainable_names, plan.seeds)


def _config(
    plan: RunPlan, available: SuitePreview, name: str, seed: int
) -> Mapping[str, Any] | None:
    """Arguments of ``backbones.create``; None while the suite has not trained its weights."""
    if (name, seed) in available.backbones:
        return available.backbones[name, seed]
    return plan.config(name, seed)


def _data(
    plan: RunPlan, available: SuitePreview, executor: Executor, known_only: bool
) -> Mapping[str, PreparedDataset] | None:
    """The datasets; None while the suite has not created them or, with ``known_only``, if one was
    never checked."""
    if available.data is None:
        return None
    options = plan.options.with_folders(available.data)
    with suppress(NotChecked):
        return prepare_data(plan.tasks, options, executor.num_workers, known_only)
    return None


def _states(
    plan: RunPlan,
    config: Mapping[str, Any] | None,
    data: Mapping[str, PreparedDataset] | None,
    tracker: Tracker | None,
    seed: int,
) -> dict[str, str]:
    """Task → ``done``, ``to do`` or ``not applicable`` for a backbone."""
    states = dict.fromkeys((task.name for task in plan.tasks), "to do")
    if config is None:
        return states
    try:
        backbone = BackboneInfo.of(backbones.create(**config))
    except UserError as error:  # weights of a hub that are not fetched yet
        _print(f"  note · {config['name']}: {error}")
        return states
    for task in plan.tasks:
        if missing_capability(task.probe, backbone):  # type: ignore[arg-type]
            states[task.name] = "not applicable"
        elif data is not None and tracker is not None and not plan.options.force:
            key = backbone.cell_key(task.protocol(data[task.name]), seed)
            if finished_cell(tracker, backbone.name, task.name, seed, key):
                states[task.name] = "done"
    return states


def _median_seconds(tracker: Tracker | None, executor: Executor, task: str) -> float | None:
    """Of finished cells of a task on this kind of device; None if there are none, or if the
    executor's GPUs are those of other machines."""
    try:
        device = choose_device(executor.device)
    except UserError:
        return None
    if tracker is None or (executor.has_gpus and device.type == "cpu"):
        return None
    runs = tracker.search(
        f"tags.task = '{task}' and attributes.status = 'FINISHED' and"
        f" tags.`device.kind` = '{device_kind(device)}'"
    )
    seconds = [run.data.metrics["cost/seconds"] for run in runs]
    return statistics.median(seconds) if seconds else None


def _print_pending(
    executor: Executor,
    title: str,
    kind: str,
    units: int,
    seconds: Sequence[float | None] = (),
) -> None:
    """Print a line for ``units`` units of work that are to do."""
    line = f"  to do · {title}: {units} unit{'s' * (units > 1)}"
    line += f", {executor.where(**executor.needs(kind))}"
    measured = [each for each in seconds if each is not None]
    if measured and len(measured) == len(seconds):
        line += f", about {duration(sum(measured))}"
    _print(line)


def duration(seconds: float) -> str:
    """``89 s``, ``2 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
