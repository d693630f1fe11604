"""``run --dry-run`` and ``run --dump-config``: what a run would do. Nothing is created."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import backbones
from backbones import UserError
from benchmark.execution.device import choose_device
from benchmark.execution.progress import console
from benchmark.planning.options import RunOptions
from benchmark.planning.plan import RunPlan, make_plan
from benchmark.probing.cell import find_cells, missing_cells
from benchmark.probing.data import RunInputs, split_into_units
from benchmark.probing.submit import unit_name
from benchmark.probing.unit import describe_backbone
from benchmark.suites.registry import BackboneSource, NotMade
from cliptex_common.progress import Silent
from probes.checks.check import NotChecked
from probes.datasets.base import PreparedDataset
from reports.cell import Cell
from reports.mlflow.run import Tracker


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone, for the first seed.

    Raises:
        UserError: as ``run`` does, or data or weights of the suite do not exist yet.
    """
    plan = _make_plan(replace(options, seeds=1))
    texts = asyncio.run(_configs(plan))
    sys.stdout.write("\n".join(texts) + "\n")


def _make_plan(options: RunOptions) -> RunPlan:
    """The plan of a run. Where the run would ask a worker for its precision, it is bf16 here."""
    plan = make_plan(options)
    return replace(plan, tasks=[task.with_precision("bf16") for task in plan.tasks])


async def _configs(plan: RunPlan) -> list[str]:
    options, inputs = plan.options, RunInputs(plan, None)
    device = choose_device(options.device)
    data = await _existing(f"the data of suite {plan.suite.name!r}", inputs.data(0))
    texts = []
    for name, seed in plan.rows:
        source = await _existing(f"the weights of {name!r}", inputs.backbone(name, seed))
        backbone = backbones.create(**source.create_arguments)
        for task in plan.tasks:
            context = task.context(
                data[task.name],
                seed,
                backbone=backbone,
                backbone_config=source.create_arguments,
                device=device,
                work_dir=Path("work_dirs") / task.name,
                log=Silent(),
                num_workers=2 if options.num_workers is None else options.num_workers,
            )
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    return texts


async def _existing(subject: str, work: Awaitable[Any]) -> Any:
    """The result of ``work``; raises ``UserError`` if it has to be made first."""
    try:
        return await work
    except NotMade:
        raise UserError(
            f"{subject} do not exist yet, and --dump-config creates nothing; start the run once"
        ) from None


def dry_run(options: RunOptions) -> None:
    """Print what has to be made first, and which units are done and which are to do."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
    plan = _make_plan(options)
    for note in plan.notes:
        console.print(note, style="dim")
    asyncio.run(_print_units(plan))


async def _print_units(plan: RunPlan) -> None:
    inputs, missing = RunInputs(plan, None), dict[str, None]()  # titles, in the order of the work

    async def look_up(work: Awaitable[Any]) -> Any:
        try:
            return await work
        except NotMade as error:
            missing.update(dict.fromkeys(error.titles))
            return None

    data = None
    with suppress(NotChecked):
        data = await look_up(inputs.data(0, cached_only=True))
    sources = {row: await look_up(inputs.backbone(*row)) for row in plan.rows}
    for title in missing:
        console.print(f"  to do · {title}")
    if data is None:
        console.print(
            "  note · tasks on the same images become one unit, known once the data are made and"
            " checked"
        )
    units = split_into_units(plan.tasks, data) if data else [[task] for task in plan.tasks]
    counts = Counter({"done": 0, "to do": 0})
    for (name, seed), source in sources.items():
        cells = _cells(plan, inputs, data, name, seed, source)
        states = {task.name: "to do" for task in plan.tasks}
        for cell in cells.values():
            states[cell.task] = "done" if cell.status == "cached" else cell.status
            if cell.reason:
                console.print(
                    f"  {cell.status} · {name} · seed {seed} · {cell.task}: {cell.reason}"
                )
        counts.update(states.values())
        for state, tasks in product(("done", "to do"), units):
            if part := [task for task in tasks if states[task.name] == state]:
                console.print(f"  {state} · {unit_name(name, seed, part)}")
    totals = ", ".join(f"{count} {state}" for state, count in counts.items())
    sizes = f"{len(plan.backbones)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds"
    console.print(f"{sizes}: {totals}")


def _cells(
    plan: RunPlan,
    inputs: RunInputs,
    data: dict[str, PreparedDataset] | None,
    name: str,
    seed: int,
    source: BackboneSource | None,
) -> dict[str, Cell]:
    """Task → cell, of the tasks of a backbone and seed that are finished or do not apply."""
    try:
        backbone = inputs.planned_backbone(name)
        info = describe_backbone(source.create_arguments) if source else None
    except UserError as error:  # its weights are not on this disk
        console.print(f"  note · {name}: {error}")
        return {}
    cells = {}
    tracker = Tracker.existing(plan.experiment)
    if data and info and tracker and not plan.options.force:
        conditions = {task.name: task.conditions(data[task.name]) for task in plan.tasks}
        cells = find_cells(tracker, info, plan.tasks, conditions, seed)
    return cells | missing_cells(name, seed, inputs.inapplicable_tasks(backbone), "not applicable")
