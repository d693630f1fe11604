"""``sweep``: search λs and other recipe settings with Optuna; every trial is an MLflow run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli.options import (
    NAMES,
    PAIRS,
    add,
    add_data,
    add_execution,
    add_tracking,
    executor_spec,
    names,
    number,
    output_json,
    parse_folders,
)
from benchmark.cli.parser import add_command, add_commands, with_examples

if TYPE_CHECKING:
    from benchmark.sweep.bench import SweepOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sweep``; the defaults of ``launch`` are those of ``SweepOptions``."""
    with_examples(parser, "launch", "best --study cc3m-b16 --out best.json")
    commands = add_commands(parser, "what")
    launch = add_command(
        commands,
        "launch",
        "start or resume a sweep, then summarise it",
        "--search grid --lambdas clip,seg --values 0.1,1,10 --executor slurm --executor-arg"
        " partition=gpu",
        "--search tpe --range 0.01,100 --trials 40 --vary lr=1e-5:1e-3 --objective dense,zero-shot",
    )
    add(launch, "--config", "--dry-run")
    _add_study(launch, "name of the study (default: SUITE-SEARCH)")
    add(launch, "--suite", help="tasks to choose λs by; see `list suites` (default: sweep)")
    add(launch, "--task")
    several = {**NAMES, "default": None, "metavar": "NAME[,NAME]"}
    launch.add_argument(
        "--search",
        choices=("linear", "grid", "tpe", "random", "cmaes"),
        help="linear: one λ at a time, the others at 1, as in the paper (default); "
        "grid: every combination; or a sampler",
    )
    launch.add_argument("--lambdas", **several, help="which λs are varied (default: all four)")
    launch.add_argument(
        "--values",
        type=_numbers,
        metavar="A,B,C",
        help="values of linear and grid search (default: 0.1,1,10)",
    )
    launch.add_argument(
        "--range",
        type=_numbers,
        dest="between",
        metavar="LOW,HIGH",
        help="range of samplers, on a log scale (default: 0.01,100)",
    )
    launch.add_argument(
        "--vary",
        **{**PAIRS, "metavar": "KEY=A,B|LOW:HIGH"},
        help="also vary a recipe setting: lr=1e-4,1e-3, epochs=1:4, 'experts=seg|seg,depth'"
        " (repeatable)",
    )
    launch.add_argument(
        "--trials",
        type=number(1),
        metavar="N",
        help="trials of a sampler; may be raised later (default: 40)",
    )
    launch.add_argument(
        "--objective",
        **several,
        help="dense: interquartile mean of relative gains over clip-ft on dense tasks (default, or"
        " gain if there are none); zero-shot, gain: of those, of all; TASK/METRIC. Several: Pareto",
    )
    launch.add_argument(
        "--zero-shot-loss",
        type=number(0, kind=float),
        metavar="PERCENT",
        help="largest loss in zero-shot against clip-ft of a chosen trial, unless zero-shot is an"
        " objective (default: 5)",
    )
    launch.add_argument(
        "--prune",
        metavar="METRIC",
        help="stop bad trials by successive halving on a metric, such as val/i2t_R@1",
    )
    launch.add_argument(
        "--confirm",
        type=number(0),
        metavar="SEEDS",
        help="fresh seeds that compare the winner with the base cell; 0: no test (default: 3)",
    )
    add(launch, "--seed", "--init", "--pairs")
    add(launch, "--labels", type=str)
    add(launch, "--recipe", default=None)
    add(launch, "--set", help="change a setting of the recipe, for all trials (repeatable)")
    launch.add_argument(
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
    add_tracking(launch, default="sweep, or sweep-SUITE")

    for command, about in {
        "status": "show how many cells are done, running, failed and pending, and the time left",
        "best": "show the best λs, and write a recipe file for `train --recipe`",
        "show": "show every trial, and the best λ of each task",
    }.items():
        examples = "--json", "--study cc3m-b16 --storage postgresql://HOST/DB"
        subparser = add_command(commands, command, about, *examples)
        _add_study(subparser, "name of the study (default: the only one)")
        if command == "best":
            add(subparser, "--out", metavar="FILE.json", help="the recipe file")
        add(subparser, "--json")


def _add_study(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--study", metavar="NAME", help=about)
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE.db, postgresql://… or journal:///FILE.log (default:"
        " sqlite:///sweeps.db here)",
    )


def main(options: argparse.Namespace) -> int:
    """Run one of launch, status, best, show."""
    if options.what == "launch":
        return _launch(options)
    from benchmark.sweep import table
    from common.files import write_json
    from sweeps.study import load_sweep

    sweep = load_sweep(options.study, options.storage)
    values, show = {
        "status": (table.state, table.show_state),
        "best": (table.best, table.show_best),
        "show": (table.trials, table.show_trials),
    }[options.what]
    result: Any = values(sweep)
    printed_json = output_json(options, result)
    if not printed_json:
        show(sweep)
    if options.what == "best" and options.out:
        write_json(options.out, result["recipe"])
        if not printed_json:
            _print_training(options.out)
    return 0


def _print_training(recipe: Path) -> None:
    from benchmark.sweep.table import print_line

    arguments = f"--recipe {shlex.quote(str(recipe))} --init … --pairs … --labels … --out …"
    print_line(f"train the best λs: python -m benchmark train {arguments}")


def _launch(options: argparse.Namespace) -> int:
    from benchmark.sweep import launch as launching
    from benchmark.sweep import table
    from common.secrets import hide_secrets
    from reports.attach import report_line
    from reports.mlflow.client import using
    from reports.report import Request
    from sweeps.storage import storage_url
    from sweeps.summary import best_trial

    settings = _sweep_options(options)
    if options.dry_run:
        launching.preview(settings)
        return 0
    with using(options.tracking_uri) as uri:
        sweep, tracker = launching.launch(settings)
        table.print_line(table.summary_text(sweep))
        code = table.show_state(sweep)
        if best_trial(sweep):
            _print_training(settings.recipe_file)
        experiments = [tracker.experiment]
        request = Request(experiments=experiments, study=sweep.name, tracking_uri=tracker.uri)
        table.print_line(report_line(request, [sweep.metadata["mlflow"]["run"]])[0])
    flag = f" --tracking-uri {hide_secrets(uri)}" if options.tracking_uri else ""
    table.print_line(f"MLflow: experiment {tracker.experiment}, python -m benchmark ui{flag}")
    storage = hide_secrets(storage_url(options.storage))
    arguments = f"--study {shlex.quote(sweep.name)} --storage {shlex.quote(storage)}"
    table.print_line(f"every trial: python -m benchmark sweep show {arguments}")
    return code


def _sweep_options(options: argparse.Namespace) -> SweepOptions:
    """The options, the rest as the defaults of ``SweepOptions``."""
    from benchmark.sweep.bench import SweepOptions
    from common.settings import field_names, parse_pairs

    values = {name: value for name, value in vars(options).items() if value is not None}
    values["data"] = parse_folders(options.data)
    values["vary"] = parse_pairs(options.vary)
    values["executor"] = executor_spec(options)
    return SweepOptions(**{name: values[name] for name in field_names(SweepOptions) & set(values)})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, names(text)))
    except ValueError:
        message = f"{text}: give numbers separated by commas, such as 0.1,1,10"
        raise argparse.ArgumentTypeError(message) from None
