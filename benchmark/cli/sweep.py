"""``sweep``: search λs (and other recipe settings) with Optuna, every trial an MLflow run."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from benchmark.cli.options import (
    COUNT,
    NAMES,
    PAIRS,
    add,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    gave_json,
    name,
    names,
    number,
    placed,
)
from benchmark.cli.parser import add_command, add_commands, with_examples

if TYPE_CHECKING:
    from benchmark.sweep.bench import SweepOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sweep``. Those of ``launch`` that are not given have the defaults of
    ``SweepOptions``."""
    with_examples(parser, "launch", "best --study cc3m-b16 --out best.json")
    commands = add_commands(parser, "what")
    launch = add_command(
        commands,
        "launch",
        "start a sweep or go on with it, then sum it up",
        "--search grid --lambdas clip,seg --values 0.1,1,10 --executor slurm --executor-arg"
        " partition=gpu",
        "--search tpe --range 0.01,100 --trials 40 --vary lr=1e-5:1e-3 --objective dense,zero-shot",
    )
    add(launch, "--config", "--dry-run")
    _add_study(launch, "name of the study (default: SUITE-SEARCH)")
    more = launch.add_argument
    several: dict[str, Any] = {**NAMES, "default": None}
    add(launch, "--suite", help="tasks to choose λs by; see `list suites` (default: sweep)")
    add(launch, "--task")
    more(
        "--search",
        choices=("linear", "grid", "tpe", "random", "cmaes"),
        help=(
            "linear: one λ at a time, the others at 1, "
            "as the paper did (default); grid: every combination; or a sampler"
        ),
    )
    more(
        "--lambdas",
        **several,
        metavar="NAME[,NAME]",
        help="which λs are varied (default: all four)",
    )
    more(
        "--values",
        type=_numbers,
        metavar="A,B,C",
        help="what linear and grid search try (default: 0.1,1,10)",
    )
    more(
        "--range",
        type=_numbers,
        dest="between",
        metavar="LOW,HIGH",
        help="samplers' range, log scale (default: 0.01,100)",
    )
    more(
        "--vary",
        **PAIRS | {"metavar": "KEY=A,B|LOW:HIGH"},
        help=(
            "also vary a recipe setting: lr=1e-4,1e-3, epochs=1:4, 'experts=seg|seg,depth'"
            " (repeatable)"
        ),
    )
    more(
        "--trials",
        type=number(1, 100_000),
        metavar="N",
        help="trials of a sampler; may grow later (default: 40)",
    )
    more(
        "--objective",
        **several,
        metavar="NAME[,NAME]",
        help=(
            "dense: interquartile mean of relative gains over clip-ft on dense tasks (default; gain"
            " where there is none); zero-shot, gain: of those, of all; TASK/METRIC. Several: Pareto"
        ),
    )
    more(
        "--zero-shot-loss",
        type=number(0, kind=float),
        metavar="PERCENT",
        help=(
            "a trial that loses more than that in zero-shot, against clip-ft, is not chosen, where"
            " zero-shot is no objective (default: 5)"
        ),
    )
    more("--prune", metavar="METRIC", help="stop bad trials by successive halving on val/i2t_R@1 …")
    more(
        "--confirm",
        type=number(0, COUNT),
        metavar="SEEDS",
        help=(
            "fresh seeds on which winner and base cell are run again and "
            "compared; no winner is clear without (default: 3)"
        ),
    )
    add(launch, "--seed", "--init", "--pairs")
    add(launch, "--labels", type=str)
    add(launch, "--recipe", default=None)
    add(launch, "--set", help="change a setting of the recipe, for all trials (repeatable)")
    more(
        "--set-task",
        **PAIRS,
        dest="task_overrides",
        help="change a setting of the tasks (repeatable)",
    )
    add(
        launch,
        "--out",
        metavar="FILE.json",
        help="recipe file of the best trial (default: STUDY-best.json)",
    )
    add_data(launch, scored=True)
    add_execution(launch)
    add_tracking(launch, shown="sweep, or sweep-SUITE")

    known = "which study (default: the only one there)"
    asked = {
        "status": "cells that are done, running, failed and left, and the time left",
        "best": "the best λs, and a recipe file that `train --recipe` takes",
        "show": "every trial, and the best λ of each task",
    }
    for command, about in asked.items():
        sub = add_command(
            commands, command, about, "--json", "--study cc3m-b16 --storage postgresql://HOST/DB"
        )
        _add_study(sub, known)
        if command == "best":
            add(sub, "--out", metavar="FILE.json", help="write the recipe there")
        add(sub, "--json")


def _add_study(parser: argparse.ArgumentParser, about: str) -> None:
    kinds = (
        "sqlite:///FILE.db, postgresql://… or journal:///FILE.log (default: sqlite:///sweeps.db"
        " here)"
    )
    parser.add_argument("--study", type=name, metavar="NAME", help=about)
    parser.add_argument("--storage", metavar="URL", help=kinds)


def main(options: argparse.Namespace) -> int:
    """One of launch, status, best, show."""
    if options.what == "launch":
        return _launch(options)
    from benchmark.sweep import table
    from common.files import write_json
    from sweeps.study import load_sweep

    sweep = load_sweep(options.study, options.storage)
    if options.what == "status":
        if not gave_json(options, table.state(sweep)):
            table.show_state(sweep)
    elif options.what == "show":
        if not gave_json(options, table.trials(sweep)):
            table.show_trials(sweep)
            table.say(table.summary_text(sweep))
    else:
        best = table.best(sweep)
        if not gave_json(options, best):
            table.show_best(sweep)
        if options.out:
            write_json(options.out, best["recipe"])
            file = shlex.quote(str(options.out))
            if options.json != "-":
                table.say(
                    f"train it: python -m benchmark train --recipe {file} --init … --pairs …"
                    " --labels … --out …"
                )
    return 0


def _launch(options: argparse.Namespace) -> int:
    from benchmark.sweep import launch as launching
    from benchmark.sweep import table
    from common.secrets import hide_secrets
    from reports.attach import say_report
    from reports.mlflow.client import using
    from reports.report import Request
    from sweeps.storage import storage_url
    from sweeps.summary import best_trial

    told = _sweep_options(options)
    if options.dry_run:
        launching.preview(told)
        return 0
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
            given = " ".join(
                f"{flag} {shlex.quote(value) if value else '…'}" for flag, value in inputs.items()
            )
            table.say(
                f"train the best λs: python -m benchmark train {given} --out best.safetensors"
            )
        request = Request(
            experiments=[tracker.experiment], study=sweep.name, tracking_uri=tracker.uri
        )
        table.say(say_report(request, [sweep.metadata["mlflow"]["run"]])[0])
    flag = f" --tracking-uri {hide_secrets(uri)}" if options.tracking_uri else ""
    table.say(
        f"every trial is in MLflow, experiment {tracker.experiment}: python -m benchmark ui{flag}"
    )
    storage = hide_secrets(storage_url(options.storage))
    show = (
        f"python -m benchmark sweep show --study {shlex.quote(sweep.name)} --storage"
        f" {shlex.quote(storage)}"
    )
    table.say(f"every trial: {show}   or: optuna-dashboard {storage.removeprefix('journal:///')}")
    return code


def _sweep_options(options: argparse.Namespace) -> SweepOptions:
    """What was given, the rest as ``SweepOptions`` has it. Raises ``UserError`` for a setting of
    another form."""
    from benchmark.sweep.bench import SweepOptions
    from common.settings import field_names, parse_pairs

    given = {name: value for name, value in vars(options).items() if value is not None}
    given |= {
        "data": placed(options.data),
        "vary": parse_pairs(options.vary),
        "executor": executor_spec(options),
    }
    return SweepOptions(
        **{name: value for name, value in given.items() if name in field_names(SweepOptions)}
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, names(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: give numbers separated by commas, such as 0.1,1,10"
        ) from None
