"""The main job: backbones × tasks × seeds, every number in MLflow, a table at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.traceback import Traceback

import backbones
import benchmark.catalog  # noqa: F401 – registers every dataset, probe and suite
from backbones import Backbone, UserError
from backbones.cliptex.protocols import Silent
from backbones.cliptex.recipes import SUBSETS
from backbones.files import content_key, write_json
from backbones.overrides import parse_pairs
from benchmark.evaluation.cell import Cell, finished_cell
from benchmark.evaluation.groups import families, run_family
from benchmark.evaluation.plan import PlannedTask, plan_tasks, split_names
from benchmark.execution.progress import Bar, console
from benchmark.side_by_side import Job, share_of, side_by_side
from benchmark.suites.registry import Provision, Suite, Trained, find_suite
from probes.base import Context, NonFiniteLoss
from probes.datasets.base import PreparedDataset, Split
from probes.datasets.check import place, prepare
from reports.store import hide_password
from reports.tracking import Tracker, environment, may_live


@dataclass(frozen=True)
class Options:
    """What the user asked for; see ``python -m benchmark run --help``."""

    backbones: Sequence[str] = ()
    suite: str = "mini"
    tasks: Sequence[str] = ()
    weights: Path | None = None
    seed: int = 0
    seeds: int = 1
    changes: Sequence[str] = ()
    data_root: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    force: bool = False
    alone: bool = False
    device: str = "auto"
    workers: int = 2
    jobs: int = 1
    json: Path | None = None
    tracking_uri: str | None = None
    experiment: str | None = None

    @property
    def device_name(self) -> str:
        """The device, with ``auto`` resolved."""
        return str(choose_device(self.device))


@dataclass
class Outcome:
    """What a run ended with: its cells, and where they are in MLflow."""

    suite: Suite
    tasks: list[PlannedTask]
    cells: list[Cell]
    run_ids: dict[tuple[str, int], str]
    tracker: Tracker

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status == "failed"]


def run(options: Options) -> Outcome:
    """Run the suite's tasks on each backbone and seed; finished cells are reused.

    Raises:
        UserError: the request cannot be fulfilled; nothing was half-written.
        TrackingError: the MLflow store cannot be used.
        KeyboardInterrupt: interrupted; finished cells stay, the run under way is KILLED, the same command goes on.
    """
    suite = find_suite(options.suite)
    names = chosen(suite, options)
    if options.weights is not None and len(names) != 1:
        raise UserError(f"--weights belongs to one backbone, but {len(names)} are named; run them one by one")
    for name in names:
        backbones.find(name.removeprefix("random/"))
    changes = parse_pairs(options.changes)
    tasks = plan_tasks(suite, split_names(options.tasks), changes)
    choose_device(options.device)
    seeds = range(options.seed, options.seed + options.seeds)
    if options.json:
        must_be_writable(options.json)

    tracker = Tracker(options.experiment or suite.name, options.tracking_uri)
    for name in tracker.close_vanished():
        console.print(f"closed the run {name!r}: its process had vanished", style="yellow", markup=False)

    with Bar() as bar:
        made = suite.provide(options, names, seeds, tracker, bar) if suite.provide else Provision()
        data = prepare_data(tasks, {**made.data, **options.data}, options, bar)
        for name in names[1:]:  # weights that cannot be had are said now, not when the first backbone's hours are over
            if (name, options.seed) not in made.left:
                backbones.create(**backbone_config(name, options.seed, made, options))
        probing = {}
        for seed in seeds:
            for name in names:
                facts = {"train_run": made.runs.get((name, seed), ""), "costs": made.costs.get((name, seed), {})}
                probing[name, seed] = Job(
                    probe_backbone,
                    {"options": options, "config": backbone_config(name, seed, made, options), "seed": seed, "facts": facts,
                     "placed": {**made.data, **options.data}},
                )  # fmt: skip
        done = _probe_all(tracker, probing, made.left, tasks, data, options, bar)
    cells = [cell for key in probing for cell in done[key][0]]
    run_ids = {key: done[key][1] for key in probing}
    outcome = Outcome(suite, tasks, cells, run_ids, tracker)
    if options.json:
        write_json(options.json, as_json(outcome))
    return outcome


def _probe_all(
    tracker: Tracker,
    probing: Mapping[tuple[str, int], Job],
    training: Mapping[tuple[str, int], Job],
    tasks: Sequence[PlannedTask],
    data: Mapping[str, PreparedDataset],
    options: Options,
    bar: Bar,
) -> dict[tuple[str, int], tuple[list[Cell], str]]:
    """Every backbone and seed: those with work left side by side, each as soon as its weights are trained; those that are
    finished are looked up here."""
    jobs, trained = list(training.values()), list(training)
    left = []
    # those of all, not of what is left: an interrupted run that is started again ends with the same numbers
    threads = share_of(len(probing), options.jobs)
    for key, job in probing.items():
        if key in training:
            jobs.append(replace(job, after=trained.index(key), result_as="trained", threads=threads))
        elif options.force or not _finished(tracker, job, tasks, data, key[1]):
            jobs.append(replace(job, threads=threads))
        else:
            continue
        left.append(key)
    results = side_by_side(jobs, bar, device=options.device_name, most=options.jobs)
    done = dict(zip(left, results[len(trained) :], strict=True))
    for key, job in probing.items():
        if key not in done:
            done[key] = job.function(**job.arguments, bar=bar)
    return done


def _finished(
    tracker: Tracker, job: Job, tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset], seed: int
) -> bool:
    """Whether every cell of the job is there."""
    backbone = backbones.create(**job.arguments["config"])
    needed = [task for task in tasks if backbone.has_text or not task.probe.needs_text]
    return all(finished_cell(tracker, backbone, task, data[task.name], seed) for task in needed)


def probe_backbone(
    *,
    options: Options,
    config: Mapping[str, Any],
    seed: int,
    facts: Mapping[str, Any],
    placed: Mapping[str, Path],
    bar: Bar,
    trained: Trained | None = None,
) -> tuple[list[Cell], str]:
    """All tasks of one backbone and one seed, perhaps in a process of its own; its cells, and the id of their parent run.

    Args:
        facts: ``train_run``, the MLflow id of the run that made the weights, and ``costs`` of making them; ``trained`` adds
            to them when the weights were made just now.
    """
    if trained is not None:
        facts = {"train_run": trained.run, "costs": {**trained.cost, **facts["costs"]}}
    suite, changes, device = find_suite(options.suite), parse_pairs(options.changes), choose_device(options.device)
    tasks = plan_tasks(suite, split_names(options.tasks), changes)
    tracker = Tracker(options.experiment or suite.name, options.tracking_uri)
    data = prepare_data(tasks, placed, options, bar)
    backbone = backbones.create(**config).to(device)
    return _run_backbone(tracker, suite, backbone, config, tasks, data, seed, changes, facts, options, device, bar)


def chosen(suite: Suite, options: Options) -> list[str]:
    """Names of the backbones to run: a single one brings the baselines that its suite has for it (not with ``--alone`` or
    ``--weights``), and may be the name of a group."""
    names = split_names(options.backbones) or list(suite.default_backbones)
    if len(names) != 1 or names[0] not in suite.groups:
        return names
    members = list(suite.groups[names[0]])
    plain = names[0] in members and (options.alone or options.weights is not None)
    return names if plain else members


def configs(options: Options) -> list[str]:
    """The resolved config of each task on each backbone, as text, without running anything (``run --dump-config``).

    Raises:
        UserError: as ``run`` does.
    """
    suite = find_suite(options.suite)
    names = chosen(suite, options)
    tasks = plan_tasks(suite, split_names(options.tasks), parse_pairs(options.changes))
    texts = []
    with Bar() as bar:
        made = suite.provide(options, names, [options.seed], None, bar) if suite.provide else Provision()
        side_by_side(list(made.left.values()), bar, device=options.device_name, most=options.jobs)
        data = prepare_data(tasks, {**made.data, **options.data}, options, bar)
    for name in names:
        config = backbone_config(name, options.seed, made, options)
        backbone = backbones.create(**config)
        for task in tasks:
            context = Context(
                backbone=backbone, backbone_config=config, data=data[task.name], settings=task.settings,
                seed=options.seed, device=choose_device(options.device), work_dir=Path("work_dirs") / task.name,
                log=Silent(), progress=Silent(), workers=options.workers,
            )  # fmt: skip
            text = task.probe.config(context)
            comment = "//" if text.lstrip().startswith("{") else "#"
            texts.append(f"{comment} {name} · {task.name}\n{text}")
    return texts


def backbone_config(name: str, seed: int, made: Provision, options: Options) -> Mapping[str, Any]:
    """Keyword arguments of ``backbones.create``: the user's ``--weights`` come before what the suite made."""
    if options.weights is None and (name, seed) in made.backbones:
        return made.backbones[name, seed]
    weights = str(options.weights) if options.weights is not None else None
    return {"name": name, "weights": weights, "seed": seed}


def prepare_data(
    tasks: Sequence[PlannedTask], placed: Mapping[str, Path], options: Options, bar: Bar
) -> dict[str, PreparedDataset]:
    """Task name → its dataset, found and checked before hours of work start (each dataset and set of splits once)."""
    roots = {task.spec.name: place(task.spec, options.data_root, placed) for task in tasks}
    prepared: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in tasks:
        key = (task.spec.name, task.probe.splits)
        if key not in prepared:
            prepared[key] = prepare(
                task.spec, roots[task.spec.name], splits=task.probe.splits,
                partial=options.partial, workers=options.workers, progress=bar,
            )  # fmt: skip
    return {task.name: prepared[task.spec.name, task.probe.splits] for task in tasks}


def _run_backbone(
    tracker: Tracker,
    suite: Suite,
    backbone: Backbone,
    config: Mapping[str, Any],
    tasks: Sequence[PlannedTask],
    data: Mapping[str, PreparedDataset],
    seed: int,
    changes: Mapping[str, str],
    facts: Mapping[str, Any],
    options: Options,
    device: torch.device,
    bar: Bar,
) -> tuple[list[Cell], str]:
    """All tasks of one backbone and one seed under one parent run; returns the cells and the parent's id."""
    cells: dict[str, Cell] = {}
    left: list[PlannedTask] = []
    for task in tasks:
        if task.probe.needs_text and not backbone.has_text:
            cells[task.name] = Cell(backbone.name, task.name, seed, "not applicable", reason="no text tower")
        elif not options.force and (old := finished_cell(tracker, backbone, task, data[task.name], seed)):
            cells[task.name] = old
        else:
            left.append(task)
    run_key = content_key(
        {"suite": suite.name, "seed": seed, "backbone": backbone.identity(), "name": backbone.name, "set": changes}
    )
    protocols = {
        f"protocol.{task.name.replace('/', '.')}": content_key(task.protocol(data[task.name])) for task in tasks
    }
    earlier = None if options.force else _earlier(tracker, run_key, protocols)
    reused = [cell for cell in cells.values() if cell.status == "reused"]
    if reused:
        told = f"{len(reused)} of {len(tasks)} tasks were finished before and are not run again (--force does)"
        console.print(f"{escape(backbone.name)} · seed {seed}: {told}", style="dim")
    if not left and earlier is not None and earlier.info.status == "FINISHED":
        return [cells[task.name] for task in tasks], earlier.info.run_id

    tags = {
        "backbone": backbone.name,
        "architecture": backbone.architecture,
        "suite": suite.name,
        "seed": str(seed),
        "weights.sha256": backbone.weights.sha256,
        "weights.source": backbone.weights.source,
        "weights.licence": backbone.weights.licence,
        "run.key": run_key,
        "train.run": facts["train_run"],
        "experts": ",".join(SUBSETS.get(backbone.name, ())),
        **protocols,
    }
    env = environment()
    if env["git.commit"]:
        tags["git.commit"] = env["git.commit"]
        tags["mlflow.source.git.commit"] = env["git.commit"].partition("+")[0]
    tags["mlflow.source.name"] = "python -m benchmark run"
    params = {"backbone": backbone.name, "suite": suite.name, "seed": seed, "device": str(device), **changes}
    title = f"{backbone.name} · {suite.name} · seed {seed}"
    resume = earlier.info.run_id if earlier is not None else None
    with tracker.run(title, tags=tags, params=params, resume=resume) as parent:
        parent.log_json(
            {
                "backbone": {**backbone.identity(), "name": backbone.name, "source": backbone.weights.source,
                             "licence": backbone.weights.licence, "config": {k: str(v) for k, v in config.items()}},
                "suite": suite.name, "seed": seed, "set": dict(changes),
                "tasks": {task.name: task.protocol(data[task.name]) for task in tasks},
                "environment": env,
            },
            "run.json",
        )  # fmt: skip
        parent.log_metrics({f"cost/{name}": value for name, value in facts["costs"].items()})
        for used in {(d.spec.name, d.fingerprint): d for d in data.values()}.values():
            parent.log_dataset(used.spec.name, used.fingerprint, "probing", source=str(used.root.resolve()))

        def ended(task: PlannedTask, cell: Cell | Exception) -> None:
            if isinstance(cell, Exception):
                # What the user must mend (also a full disk or a lost tracking server) ends the run; a task that broke is a hole.
                if getattr(cell, "exit_code", None) == 2 or isinstance(cell, OSError):
                    raise cell
                reason = f"{type(cell).__name__}: {cell}".splitlines()[0]
                if not isinstance(cell, NonFiniteLoss):  # that one's reason says it all
                    console.print(Traceback.from_exception(type(cell), cell, cell.__traceback__, max_frames=8))
                cell = Cell(backbone.name, task.name, seed, "failed", reason=reason)
            cells[task.name] = cell
            main = next(iter(task.probe.metrics))
            if cell.status == "done":
                console.print(f"  {escape(backbone.name)} · seed {seed} · {task.name}: {main} {_number(cell.metrics.get(main))}"
                              f"  [dim]{cell.seconds:.0f} s[/dim]")  # fmt: skip

        number = 0
        for family in families(left, backbone, config, data, seed, device):
            first, number = number + 1, number + len(family)
            about = f"{family[0].name} ({number}/{len(left)})" if len(family) == 1 else f"{first}–{number}/{len(left)}"
            bar.prefix = f"{backbone.name} · seed {seed} · {about} · "
            run_family(
                family, tracker, parent, backbone, config, data, seed,
                device=device, workers=options.workers, bar=bar, ended=ended,
            )  # fmt: skip
            bar.prefix = ""
        ordered = [cells[task.name] for task in tasks]
        parent.log_metrics({f"{cell.task}/{name}": value for cell in ordered for name, value in cell.metrics.items()})
        parent.set_tags({f"reused.{c.task.replace('/', '.')}": c.run_id for c in ordered if c.status == "reused"})
        parent.describe(_note(backbone, ordered, tasks))
        parent.flush()
        broken = [cell for cell in ordered if cell.status == "failed"]
        if broken:
            parent.fail("; ".join(f"{cell.task}: {cell.reason}" for cell in broken))
    return ordered, parent.id


def _earlier(tracker: Tracker, run_key: str, protocols: Mapping[str, str]) -> Any | None:
    """The newest parent run to go on with: none that another process is writing, nor one with numbers of another protocol
    (other data, say) for the same task."""
    for run in tracker.search(f"tags.`run.key` = '{run_key}'"):
        agrees = all(run.data.tags.get(tag, protocol) == protocol for tag, protocol in protocols.items())
        if agrees and not (run.info.status == "RUNNING" and may_live(run)):
            return run
    return None


def must_be_writable(path: Path, option: str = "--json") -> None:
    """Raises ``UserError`` when the file could not be written when the work is done."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: cannot write there ({error.strerror or error}); name another file") from None


def _note(backbone: Backbone, cells: Sequence[Cell], tasks: Sequence[PlannedTask]) -> str:
    """The parent run's description in the MLflow UI: its results as a table."""
    lines = [
        f"`{backbone.name}` ({backbone.architecture}), weights {backbone.weights.source}",
        "",
        "| task | result |",
        "| --- | --- |",
    ]
    for cell, task in zip(cells, tasks, strict=True):
        main = next(iter(task.probe.metrics))
        text = f"{main} {_number(cell.metrics.get(main))}" if cell.metrics else f"– ({cell.status}: {cell.reason})"
        lines.append(f"| {cell.task} | {text} |")
    return "\n".join(lines)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The contract of ``run --json``: with several seeds ``backbones`` holds means, and ``by_seed`` each seed's values."""
    seeds = list(dict.fromkeys(cell.seed for cell in outcome.cells))
    names = list(dict.fromkeys(cell.backbone for cell in outcome.cells))
    by_seed: dict[str, dict] = {str(seed): {name: {} for name in names} for seed in seeds}
    for cell in outcome.cells:
        if cell.metrics:
            by_seed[str(cell.seed)][cell.backbone][cell.task] = {
                k: float(v) for k, v in cell.metrics.items() if np.isfinite(v)
            }
    means: dict[str, dict] = {name: {} for name in names}
    for name in names:
        for task in dict.fromkeys(cell.task for cell in outcome.cells):
            rows = [by_seed[str(seed)][name].get(task) for seed in seeds]
            if all(rows):
                shared = [m for m in rows[0] if all(m in row for row in rows)]
                means[name][task] = {m: float(np.mean([row[m] for row in rows])) for m in shared}
    value: dict[str, Any] = {
        "suite": outcome.suite.name,
        "seed": seeds[0] if seeds else None,
        "backbones": means,
        "mlflow": {
            "tracking_uri": hide_password(outcome.tracker.uri),
            "experiment": outcome.tracker.experiment,
            "run_ids": {name: outcome.run_ids[name, seeds[0]] for name in names},
        },
    }
    if len(seeds) > 1:
        value["seeds"] = seeds
        value["by_seed"] = by_seed
        value["mlflow"]["run_ids_by_seed"] = {
            str(seed): {name: outcome.run_ids[name, seed] for name in names} for seed in seeds
        }
    if holes := [hole for cell in outcome.cells if (hole := _hole(cell, outcome.tasks))]:
        value["holes"] = holes
    return value


def _hole(cell: Cell, tasks: Sequence[PlannedTask]) -> dict[str, Any] | None:
    """What of a cell has no value, and why; None for a whole one."""
    wanted = next(task.probe.metrics for task in tasks if task.name == cell.task)
    missing = [name for name in wanted if not np.isfinite(cell.metrics.get(name, np.nan))]
    if not missing:
        return None
    ran = cell.status in ("done", "reused")
    return {
        "backbone": cell.backbone,
        "task": cell.task,
        "seed": cell.seed,
        "metrics": missing,
        "status": "no value" if ran else cell.status,
        "reason": "undefined on this data" if ran else cell.reason,
    }


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU. Raises ``UserError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here ({str(error).splitlines()[0]}); use cpu, cuda or auto") from None
    return device


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else (f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}")
