"""``sweep``: search λs (and other recipe settings) with Optuna, every trial an MLflow run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli.options import (
    COUNT,
    REPEATED,
    SEED,
    add_data,
    add_execution,
    add_tracking,
    comma_separated,
    executor_spec,
    name,
    number,
    placed,
)

if TYPE_CHECKING:
    from benchmark.evaluation.sweep.bench import SweepOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sweep``. Those of ``launch`` that are not given have the defaults of ``SweepOptions``."""
    commands = parser.add_subparsers(dest="what", required=True)
    launch = commands.add_parser("launch", help="start a sweep or go on with it, then sum it up")
    _add_study(launch, "name of the study (default: SUITE-SEARCH)")
    add = launch.add_argument
    several: dict[str, Any] = {"action": "extend", "type": comma_separated}
    # fmt: off
    add("--suite", help="tasks to choose λs by (default: sweep); see `list suites`")
    add("--task", **several, metavar="TASK[,TASK]", help="only these of the suite's tasks")
    add("--search", choices=("linear", "grid", "tpe", "random", "cmaes"), help="linear: one λ at a time, the others at 1, "
        "as the paper did (default); grid: every combination; or a sampler")
    add("--lambdas", **several, metavar="NAMES", help="which λs are varied (default: all four)")
    add("--values", type=_numbers, metavar="A,B,C", help="what linear and grid search try (default: 0.1,1,10)")
    add("--range", type=_numbers, dest="between", metavar="LOW,HIGH", help="samplers' range, log scale (default: 0.01,100)")
    add("--vary", **REPEATED, metavar="KEY=A,B|LOW:HIGH",
        help="also vary a recipe setting: lr=1e-4,1e-3, epochs=1:4, 'experts=seg|seg,depth' (repeatable)")
    add("--trials", type=number(1, 100_000), metavar="N", help="trials of a sampler; may grow later (default: 40)")
    add("--objective", **several, metavar="NAME", help="dense: interquartile mean of relative gains over clip-ft on dense tasks "
        "(default; gain where there is none); zero-shot, gain: on those, on all; or TASK/METRIC. Repeated: a Pareto front")
    add("--zero-shot-loss", type=number(0, kind=float), metavar="PERCENT", help="a trial that loses more than that in zero-shot, "
        "against clip-ft, is not chosen, where zero-shot is no objective (default: 5)")
    add("--prune", metavar="METRIC", help="stop bad trials by successive halving on val/i2t_R@1 …")
    add("--confirm", type=number(0, COUNT), metavar="SEEDS", help="fresh seeds on which winner and base cell are run again and "
        "compared; no winner is clear without (default: 3)")
    add("--seed", type=number(0, SEED), help="of training and probing (default: 0)")
    add("--set", **REPEATED, dest="overrides", metavar="KEY=VALUE", help="a recipe setting that all trials share")
    add("--set-task", **REPEATED, dest="task_overrides", metavar="KEY=VALUE", help="change a setting of the tasks")
    add("--recipe", metavar="NAME|FILE", help="whose settings (but the λs) all trials share")
    add("--out", type=Path, metavar="FILE.json", help="recipe file of the best trial (default: STUDY-best.json)")
    add("--partial", action="store_true", help="probe on datasets that are not whole")
    add("--experiment", type=name, help="MLflow experiment (default: sweep, or sweep-SUITE)")
    add("--init", metavar="WEIGHTS", help="initial weights, as for `train` (suites of real data)")
    add("--pairs", metavar="SHARDS|CSV", help="image-caption pairs (suites of real data)")
    add("--labels", metavar="DIR", help="their pseudo-labels (suites of real data)")
    # fmt: on
    for add_options in (add_data, add_execution, add_tracking):
        add_options(launch)

    known = "which study (default: the only one there)"
    _add_study(commands.add_parser("status", help="done, running, failed, left, and time left"), known)
    _add_study(commands.add_parser("show", help="every trial, and best λ per task"), known)
    best = commands.add_parser("best", help="the best λs, and a recipe file that `train --recipe` takes")
    _add_study(best, known)
    best.add_argument("--out", type=Path, metavar="FILE.json", help="write the recipe there")


def _add_study(parser: argparse.ArgumentParser, about: str) -> None:
    kinds = "sqlite:///FILE.db, postgresql://… or journal:///FILE.log (default: sqlite:///sweeps.db here)"
    parser.add_argument("--study", type=name, metavar="NAME", help=about)
    parser.add_argument("--storage", metavar="URL", help=kinds)


def main(options: argparse.Namespace) -> int:
    """One of launch, status, best, show."""
    if options.what == "launch":
        return _launch(options)
    from backbones.utils.files import write_json
    from benchmark.evaluation.sweep import table
    from sweeps.study import load_sweep
    from sweeps.summary import best_recipe, best_trial

    sweep = load_sweep(options.study, options.storage)
    if options.what == "status":
        table.show_state(sweep)
    elif options.what == "show":
        table.show_trials(sweep)
        table.say(table.summary_text(sweep))
    else:
        table.show_best(sweep)
        if options.out and (best := best_trial(sweep)):
            write_json(options.out, best_recipe(sweep, best))
            file = shlex.quote(str(options.out))
            table.say(f"train it: python -m benchmark train --recipe {file} --init … --pairs … --labels … --out …")
    return 0


def _launch(options: argparse.Namespace) -> int:
    from benchmark.evaluation.sweep import launch as launching
    from benchmark.evaluation.sweep import table
    from reports.attach import say_report
    from reports.mlflow.client import using
    from reports.report import Request
    from reports.secrets import hide_secrets
    from sweeps.storage import storage_url
    from sweeps.summary import best_trial

    told = _sweep_options(options)
    with using(options.tracking_uri) as uri:
        sweep, tracker = launching.launch(told)
        table.say(table.summary_text(sweep))
        code = table.show_state(sweep)
        if best_trial(sweep):
            inputs = {
                "--recipe": str(told.recipe_file),
                "--init": told.init,
                "--pairs": told.pairs,
                "--labels": told.labels,
            }
            given = " ".join(f"{flag} {shlex.quote(value) if value else '…'}" for flag, value in inputs.items())
            table.say(f"train the best λs: python -m benchmark train {given} --out best.safetensors")
        request = Request(experiments=[tracker.experiment], study=sweep.name, tracking_uri=tracker.uri)
        table.say(say_report(request, [sweep.metadata["mlflow"]["run"]])[0])
    flag = f" --tracking-uri {hide_secrets(uri)}" if options.tracking_uri else ""
    table.say(f"every trial is in MLflow, experiment {tracker.experiment}: python -m benchmark ui{flag}")
    storage = hide_secrets(storage_url(options.storage))
    show = f"python -m benchmark sweep show --study {shlex.quote(sweep.name)} --storage {shlex.quote(storage)}"
    table.say(f"every trial: {show}   or: optuna-dashboard {storage.removeprefix('journal:///')}")
    return code


def _sweep_options(options: argparse.Namespace) -> SweepOptions:
    """What was given, the rest as ``SweepOptions`` has it. Raises ``UserError`` for a setting of another form."""
    from backbones.utils.overrides import fields_of, parse_pairs
    from benchmark.evaluation.sweep.bench import SweepOptions

    given = {name: value for name, value in vars(options).items() if value is not None}
    given |= {"data": placed(options.data), "vary": parse_pairs(options.vary), "executor": executor_spec(options)}
    return SweepOptions(**{name: value for name, value in given.items() if name in fields_of(SweepOptions)})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, comma_separated(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers separated by commas, such as 0.1,1,10") from None
