"""``run --dry-run`` and ``run --dump-config``: what a run would do, looked up without making
anything."""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import backbones
from backbones import UserError
from backbones.cliptex.protocols import Silent
from benchmark.cell import finished_cell
from benchmark.cost import choose_device, earlier_runs
from benchmark.data import prepare_data
from benchmark.execution import Bar, Executor, make_executor
from benchmark.execution.progress import console
from benchmark.groups import task_groups
from benchmark.run import RunOptions, RunPlan, make_plan
from benchmark.stages.estimate import duration
from benchmark.suites.registry import PreviewStage, SuitePreview
from probes.base import Context, missing_capability
from probes.datasets.base import PreparedDataset
from probes.datasets.check import NotChecked
from probes.features.budget import gigabytes
from reports.mlflow.client import tracking_uri
from reports.mlflow.run import Tracker

FEW = 10  # seeds, each of which is looked at


@contextmanager
def _looking(options: RunOptions) -> Iterator[tuple[RunPlan, Executor]]:
    """The plan, and an executor that runs nothing."""
    executor = make_executor(options.executor, Bar())
    try:
        yield make_plan(options), executor
    finally:
        executor.release()


def _there(plan: RunPlan, seeds: Sequence[int]) -> SuitePreview:
    """What of the suite's own things is there."""
    look = plan.suite.preview
    return look(plan.suite.name, plan.made_names, seeds) if look else SuitePreview()


def _alike(seeds: Sequence[int], tracker: Tracker | None) -> dict[int, int]:
    """Seed → how many seeds are as it is: of many, those that have no finished cell in MLflow are
    looked at once."""
    if len(seeds) <= FEW:
        return dict.fromkeys(seeds, 1)
    known = (
        tracker.search("attributes.status = 'FINISHED' and tags.`cell` != ''") if tracker else []
    )
    ran = {run.data.tags.get("seed") for run in known}
    fresh = [seed for seed in seeds if str(seed) not in ran]
    return {seed: 1 for seed in seeds if str(seed) in ran} | (
        {fresh[-1]: len(fresh)} if fresh else {}
    )


def _config(plan: RunPlan, there: SuitePreview, name: str, seed: int) -> Mapping[str, Any] | None:
    """Keyword arguments of ``backbones.create``; None while the suite has not made its weights."""
    return (
        there.backbones[name, seed] if (name, seed) in there.backbones else plan.config(name, seed)
    )


def _data(
    plan: RunPlan, there: SuitePreview, executor: Executor, known_only: bool
) -> Mapping[str, PreparedDataset] | None:
    """The datasets; None while they are not made, or, with ``known_only``, were never looked at."""
    if there.data is None:
        return None
    with suppress(NotChecked):
        return prepare_data(
            plan.tasks, plan.options.choice(there.data), executor.num_workers, known_only
        )
    return None


def dump_config(options: RunOptions) -> None:
    """Print the resolved config of each task on each backbone.

    Raises:
        UserError: as ``run`` does, or data or weights that the suite makes are not made yet.
    """
    texts = []
    with _looking(options) as (plan, executor):
        there = _there(plan, plan.seeds[:1])
        refused = "are not made yet, and --dump-config makes nothing; run it once"
        data = _data(plan, there, executor, known_only=False)
        if data is None:
            raise UserError(f"the data of suite {plan.suite.name!r} {refused}")
        for name in plan.names:
            config = _config(plan, there, name, options.seed)
            if config is None:
                raise UserError(f"the weights of {name!r} {refused}")
            backbone = backbones.create(**config)
            for task in plan.tasks:
                context = Context(
                    backbone=backbone,
                    backbone_config=config,
                    data=task.of(data[task.name], options.seed),
                    settings=task.settings,
                    seed=options.seed,
                    device=choose_device(executor.device),
                    work_dir=Path("work_dirs") / task.name,
                    log=Silent(),
                    progress=Silent(),
                    num_workers=executor.num_workers,
                )
                text = task.probe.config(context)
                comment = "//" if text.lstrip().startswith("{") else "#"
                texts.append(f"{comment} {name} · {task.name}\n{text}")
    sys.stdout.write("\n".join(texts) + "\n")


class _Line(NamedTuple):
    """Units that are left, on ``gpus`` GPUs each: what they will take all together, and whether all
    of that was measured."""

    name: str
    units: int
    gpus: int
    seconds: float
    size: float
    is_known: bool


def dry_run(options: RunOptions) -> None:
    """Print cells done and to do, the units of what is to do with their needs and places, and what
    that will cost."""
    os.environ["HF_HUB_OFFLINE"] = (
        "1"  # read when the hubs' library is imported: weights are looked up, not fetched
    )
    with _looking(options) as (plan, executor):
        for note in plan.notes:
            console.print(note, style="dim", markup=False)
        executor.check_store(tracking_uri())
        tracker = Tracker.existing(plan.experiment)
        seeds = _alike(plan.seeds, tracker)
        there = _there(plan, list(seeds))
        data = _data(plan, there, executor, known_only=True)
        measured = cache(partial(_measured, tracker, executor))

        def line(
            name: str,
            kind: str,
            parts: Sequence[tuple[float, float] | None],
            units: int = 1,
            seed: int | None = None,
        ) -> _Line:
            times = seeds.get(seed, 1) if seed is not None else 1
            name, units = (
                name + (f" and {times - 1} seeds like it" if times > 1 else ""),
                units * times,
            )
            asked, known = executor.needs(kind), [part for part in parts if part is not None]
            seconds, size = (times * sum(part[number] for part in known) for number in (0, 1))
            took = f"about {duration(seconds)}" if len(known) == len(parts) else "time unknown"
            where = executor.where(**asked)
            console.print(
                f"  to do · {name}: {units} unit{'s' * (units > 1)}, {where}, {took}", markup=False
            )
            return _Line(name, units, asked["gpus"], seconds, size, len(known) == len(parts))

        lines = [
            line(s.name, s.kind, [_stage(s, measured)], s.units, s.seed)
            for s in there.stages
            if not s.available
        ]
        counts: Counter[str] = Counter({"done": 0, "to do": 0})
        for name, seed in ((name, seed) for seed in seeds for name in plan.names):
            states = _states(
                plan,
                _config(plan, there, name, seed),
                data,
                None if options.force else tracker,
                seed,
            )
            for state in states.values():
                counts[state] += seeds[seed]
            left = [task for task in plan.tasks if states[task.name] == "to do"]
            for group in task_groups(left, data) if data is not None else [[task] for task in left]:
                title = f"{name} · seed {seed} · {' + '.join(task.name for task in group)}"
                parts = [measured(f"tags.task = '{task.name}'", "cost/seconds") for task in group]
                lines.append(line(title, "probe", parts, seed=seed))
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        sizes = f"{len(plan.names)} backbones × {len(plan.tasks)} tasks × {len(plan.seeds)} seeds"
        console.print(f"{sizes}: {told}", markup=False)
        _say_sums(lines, max(1, executor.slots))


def _states(
    plan: RunPlan,
    config: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    tracker: Tracker | None,
    seed: int,
) -> dict[str, str]:
    """Task → ``done``, ``to do`` or ``not applicable`` for a backbone."""
    states = dict.fromkeys((task.name for task in plan.tasks), "to do")
    if config is None:
        return states
    try:
        backbone = backbones.create(**config)
    except UserError as error:  # of a hub, and not fetched yet
        console.print(f"  note · {config['name']}: {error}", style="dim", markup=False)
        return states
    for task in plan.tasks:
        if missing_capability(task.probe, backbone):
            states[task.name] = "not applicable"
        elif (
            data is not None
            and tracker
            and finished_cell(tracker, backbone, task, data[task.name], seed)
        ):
            states[task.name] = "done"
    return states


def _stage(stage: PreviewStage, measured: Callable[[str, str], Any]) -> tuple[float, float] | None:
    """What a unit of a stage took in earlier runs."""
    what = stage.name.partition(" · ")[0].split()[-1]
    filters = {
        "train": (f"tags.stage = 'train' and tags.recipe = '{what}'", "cost/train_seconds"),
        "expert": (f"tags.stage = 'experts' and tags.expert = '{what}'", "cost/train_seconds"),
        "label": ("tags.stage = 'label'", "cost/label_seconds"),
    }
    return measured(*filters[stage.kind]) if stage.kind in filters else None


def _measured(
    tracker: Tracker | None, executor: Executor, filter_string: str, metric: str
) -> tuple[float, float] | None:
    """Median seconds and most bytes of earlier runs on this kind of device, None where there is
    none."""
    found = earlier_runs(tracker, executor, f"{filter_string} and attributes.status = 'FINISHED'")
    runs = [run for run in found if metric in run]
    if not runs:
        return None
    return statistics.median(run[metric] for run in runs), max(
        run.get("cost/disk_bytes", 0.0) for run in runs
    )


def _say_sums(lines: Sequence[_Line], at_once: int) -> None:
    if not lines:
        return console.print("nothing is left to do", markup=False)
    told = f"{sum(line.units for line in lines)} units to do"
    if seconds := sum(line.seconds for line in lines):
        on_gpus = sum(line.seconds * line.gpus for line in lines)
        size = gigabytes(sum(line.size for line in lines))
        told += f": about {duration(seconds / at_once)} with {at_once} at once, {size} on disk"
        told += f", {on_gpus / 3600:.1f} GPU-hours" if on_gpus else ""
    console.print(told, markup=False)
    if unknown := [line.name for line in lines if not line.is_known]:
        names = ", ".join(unknown[:4]) + (
            f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        )
        console.print(
            f"not counted, since no earlier run on this kind of device is in MLflow: {names}",
            markup=False,
        )
