"""``run --dry-run`` and ``run --dump-config``: what a run would do. Nothing is created."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

import backbones
from backbones import Backbone, UserError
from backbones.cliptex.protocols import Silent
from benchmark.execution.device import choose_device
from benchmark.execution.progress import console
from benchmark.options import RunOptions
from benchmark.plan import RunPlan, make_plan, print_notes
from benchmark.probing.data import (
    check_fit,
    check_trained,
    declared_data,
    prepare_data,
    split_into_units,
)
from benchmark.probing.submit import unit_name
from benchmark.records import BackboneInfo, PlannedTask
from benchmark.run import known_cells
from benchmark.stages.graph import Stage, find_results
from benchmark.suites.registry import BackboneSource
from probes.base import Context
from probes.datasets.base import PreparedDataset
from probes.datasets.check import NotChecked
from probes.datasets.share import with_share
from probes.layers import at_layers
from reports.mlflow.run import Tracker


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone, for the first seed.

    Raises:
        UserError: as ``run`` does, or data or weights of the suite do not exist yet.
    """
    plan, spec = make_plan(replace(options, seeds=1)), options.executor_spec
    _, data, sources = _look_up(plan, cached_only=False)
    missing = "do not exist yet, and --dump-config creates nothing; start the run once"
    if data is None:
        raise UserError(f"the data of suite {plan.suite.name!r} {missing}")
    texts = []
    for (name, seed), source in sources.items():
        if source is None:
            raise UserError(f"the weights of {name!r} {missing}")
        backbone = backbones.create(**source.create_arguments)
        for task in plan.tasks:
            device = choose_device(spec.device)
            workers = 2 if spec.num_workers is None else spec.num_workers
            context = _context(source, backbone, data, task, seed, device, workers)
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    sys.stdout.write("\n".join(texts) + "\n")


def dry_run(options: RunOptions) -> None:
    """Print what the suite makes first, which units are to do, and how many cells are done."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    plan = make_plan(options)
    print_notes(plan.notes)
    created = plan.artifacts()
    check_trained(plan.tasks, options, created)
    tracker = Tracker.existing(plan.experiment)
    stages, data, sources = _look_up(plan, cached_only=True)
    for stage in stages:
        _print_pending(stage.title)
    declared = declared_data(plan.tasks, options, created.data)
    units = [[task] for task in plan.tasks] if data is None else split_into_units(plan.tasks, data)
    counts = Counter({"done": 0, "to do": 0})
    for (name, seed), source in sources.items():
        backbone = _load(source)
        cells = {}
        if source and backbone:
            info = BackboneInfo.of(backbone, source.create_arguments)
            check_fit(plan.tasks, data or declared, info)
            cells = known_cells(plan, tracker, data, info, seed)
        for cell in cells.values():
            counts["done" if cell.status == "cached" else cell.status] += 1
            if cell.reason:
                _print(f"  {cell.status} · {name} · seed {seed} · {cell.task}: {cell.reason}")
        for tasks in units:
            pending = [task for task in tasks if task.name not in cells]
            counts["to do"] += len(pending)
            if pending:
                _print_pending(unit_name(name, seed, pending))
    totals = ", ".join(f"{count} {state}" for state, count in counts.items())
    sizes = f"{len(plan.backbones)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds"
    _print(f"{sizes}: {totals}")


def _look_up(
    plan: RunPlan, cached_only: bool
) -> tuple[
    list[Stage],
    Mapping[str, PreparedDataset] | None,
    dict[tuple[str, int], BackboneSource | None],
]:
    """Which inputs of a plan exist.

    Returns:
        the suite's stages that are to do; the datasets, None while the suite has not created them
        or, with ``cached_only``, if one was never checked; and for each backbone and seed how to
        create it, None while the suite has not trained it.
    """
    artifacts = plan.artifacts()
    results = find_results([*artifacts.data_stages, *artifacts.backbones.values()])
    data = None
    if all(results[stage] is not None for stage in artifacts.data_stages):
        options = plan.options.with_folders(artifacts.data)
        with suppress(NotChecked):
            data = prepare_data(plan.tasks, options, 0, cached_only, plan.suite.images)
    sources: dict[tuple[str, int], BackboneSource | None] = {}
    for seed in plan.seeds:
        for name in plan.backbones:
            stage = artifacts.backbones.get((name, seed))
            sources[name, seed] = (
                results[stage] if stage else BackboneSource(plan.backbone_arguments(name, seed))
            )
    return [stage for stage, result in results.items() if result is None], data, sources


def _load(source: BackboneSource | None) -> Backbone | None:
    """A backbone; None if its weights are not on this disk."""
    if source is None:
        return None
    try:
        return backbones.create(**source.create_arguments)
    except UserError as error:
        _print(f"  note · {source.create_arguments['name']}: {error}")
        return None


def _context(
    source: BackboneSource,
    backbone: Backbone,
    data: Mapping[str, PreparedDataset],
    task: PlannedTask,
    seed: int,
    device: torch.device,
    num_workers: int,
) -> Context:
    """The context of a task's probe, without a folder."""
    context = Context(
        backbone=backbone,
        backbone_config=source.create_arguments,
        data=with_share(data[task.name], task.train_share, seed),
        settings=task.settings,
        seed=seed,
        device=device,
        work_dir=Path("work_dirs") / task.name,
        log=Silent(),
        progress=Silent(),
        num_workers=num_workers,
    )
    return at_layers(context, task.encoded_layers)


def _print_pending(title: str) -> None:
    """Print a line for a unit of work, or a stage of several, that is to do."""
    _print(f"  to do · {title}")


def _print(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
