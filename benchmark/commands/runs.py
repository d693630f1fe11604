"""Commands that probe: ``run``, ``watch``, ``reproduce``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.executor import ExecutionOptions
from benchmark.options import (
    DataOptions,
    DryRunOptions,
    RunOptions,
    TaskNames,
    TrackingOptions,
    WatchOptions,
    run_options,
)
from benchmark.parser import ConfigOptions, Positionals
from cliptex_common.errors import UserError
from cliptex_common.settings import Seed, SeedCount, options_dataclass

if TYPE_CHECKING:
    from benchmark.reproduce import Target


@options_dataclass
class Reproduce(ConfigOptions, DataOptions, ExecutionOptions, DryRunOptions, TrackingOptions):
    """Run a published protocol and compare with the published number.

    examples:
      python -m benchmark reproduce --list
      python -m benchmark reproduce dinov3 --backbone dinov3-b16 --task ade20k/linear
        --data-root DIR
      python -m benchmark reproduce --quick --data-root DIR
    """

    protocols: Positionals[Sequence[str]] = ()
    """names as in `list protocols`, with --list also of backbones; all for --list and --quick"""
    backbone: str | None = None
    """whose published numbers to reproduce; with --quick any (default: a small random ViT)"""
    weights: Path | None = None
    """checkpoint of the backbone, where its name brings none"""
    tasks: TaskNames = ()
    """only these tasks"""
    list: bool = False
    """print what can be reproduced: published value, what to bring"""
    quick: bool = False
    """run each preset for a few iterations on what data there are, to see that all is in place"""
    seed: Seed = 0
    """random seed"""
    seeds: SeedCount = 1
    """number of seeds, starting at --seed; from two on the tolerance includes their noise"""

    def main(self) -> int:
        """List, try, or run and compare; 0 unless a run failed."""
        from benchmark.progress import console
        from benchmark.reproduce import NoNumbers, find_targets, protocol_names
        from benchmark.run import dry_run
        from reports.store import using

        if self.weights and not self.backbone:
            raise UserError("--weights are those of a --backbone; name it")
        if self.quick and self.dry_run:
            raise UserError("--quick has no dry run; leave out --dry-run")
        if self.quick:
            with using(self.tracking_uri):
                return _print_quick_runs(self.protocols, self._run_options("reproduce-quick"))
        if not self.list and not (self.protocols and self.backbone):
            raise UserError(
                "name a protocol and --backbone; `reproduce --list` shows what can be reproduced"
            )
        protocols, backbones = self.protocols, [self.backbone] if self.backbone else []
        if self.list:
            protocols = [name for name in self.protocols if name in protocol_names()]
            backbones += [name for name in self.protocols if name not in protocols]
            try:
                _print_targets(find_targets(protocols, backbones, self.tasks))
            except NoNumbers as error:
                console.print(str(error))
            return 0
        targets = find_targets(protocols, backbones, self.tasks)
        options = self._run_options("reproduce")
        with using(self.tracking_uri) as uri:
            codes = []
            for name in dict.fromkeys(target.number.preset for target in targets):
                of_protocol = [each for each in targets if each.number.preset == name]
                names = dict.fromkeys(target.task.name for target in of_protocol)
                options = replace(options, tasks=list(names), overrides={"protocol": name})
                if self.dry_run:
                    dry_run(options)
                else:
                    codes.append(_compare(of_protocol, options, uri))
            return max(codes, default=0)

    def _run_options(self, experiment: str) -> RunOptions:
        names = self.backbone or ()
        return run_options(
            self, backbones=names, tasks=self.tasks, only=True, experiment=experiment
        )


REPRODUCE_COMMAND = Reproduce


def _print_targets(targets: list[Target]) -> None:
    from benchmark.commands.looking import print_table

    rows = [("protocol", "backbone", "task", "published", "bring")]
    for target in targets:
        number, spec = target.number, target.task.spec
        images = {**spec.expected, **target.preset.images}
        counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
        published = f"{number.metric} {number.value:g}"
        bring = f"{spec.name}: {counts}"
        rows.append((number.preset, target.backbone, number.task, published, bring))
    print_table(rows)


def _print_quick_runs(protocols: Sequence[str], options: RunOptions) -> int:
    """Run each preset for a few iterations and print a line for each; 1 if one failed."""
    from benchmark.progress import console
    from benchmark.reproduce import quick

    failed = False
    for protocol, cell in quick(protocols, options):
        failed = failed or bool(cell.reason)
        line = f"{protocol:<12} {cell.task:<26} {cell.seconds:6.1f} s"
        console.print(f"{line}  {cell.reason or 'in place'}")
    return 1 if failed else 0


def _compare(targets: list[Target], options: RunOptions, uri: str) -> int:
    """Run the targets of one protocol, and print each verdict and the causes of a difference."""
    from benchmark.progress import console
    from benchmark.reproduce import judge_targets
    from benchmark.result import write_report
    from benchmark.run import run
    from reports.store import Store

    result = run(options)
    line, report = write_report(result)
    if report is None or report.analysis is None:
        console.print(line)
        return 1
    for judged in judge_targets(targets, options, report.analysis, Store(uri)):
        number = judged.target.number
        console.print(
            f"{number.task} {number.metric}: ours {judged.ours:.4g}, theirs {number.value:g},"
            f" difference {judged.difference:+.3g}, tolerance {judged.tolerance:.2g}"
            f" → {judged.verdict}"
        )
        for name, text in judged.causes.items():
            console.print(f"  {name}: {text}")
        if judged.verdict == "differs" and not judged.causes:
            console.print("  none of the known causes fits")
    console.print(line)
    return 1 if result.failed else 0


# group → usual options
RUN_GROUPS = {
    "what": "backbones architecture suite tasks weights seeds",
    "data": "data_root data partial",
    "settings": "overrides config",
    "machine": "device jobs executor",
    "record": "experiment tracking_uri name tags",
    "output": "dry_run report json",
}


@options_dataclass
class RunTasks(ConfigOptions, RunOptions, DryRunOptions, TrackingOptions):
    """Probe backbones on a suite's tasks and log the results to MLflow.

    examples:
      python -m benchmark run --backbone cliptex --seeds 3
      python -m benchmark run --backbone clip,dinov2-b14 --suite paper --task voc/linear
        --data-root DIR --json out.json
    """

    help_groups = RUN_GROUPS
    json: Path | None = None
    """write all metrics to this file"""
    dump_config: bool = False
    """print each task's resolved config (MMEngine) instead of running"""
    report: bool = False
    """make the report's page, also of one backbone, which is compared with none"""
    no_report: bool = False
    """make no report's page"""

    def main(self) -> int:
        """Run, print the table and where the results are."""
        from benchmark.progress import console
        from benchmark.result import as_json, check_writable, show_with_report
        from benchmark.run import dry_run, dump_config, refuse_inapplicable, run
        from cliptex_common.errors import hide_secrets
        from cliptex_common.files import write_json
        from reports.store import using

        if "RANK" in os.environ:
            raise UserError(
                "run does not run under torchrun; to train one task on several GPUs give --jobs 1"
                " and --set accumulate=N"
            )
        if self.report and self.no_report:
            raise UserError("--report and --no-report contradict each other; leave one out")
        if self.json and (self.dry_run or self.dump_config):
            raise UserError("--json needs a run; leave out --dry-run and --dump-config")
        with using(self.tracking_uri) as uri:
            if self.dump_config:
                dump_config(self)
                return 0
            if self.dry_run:
                dry_run(self)
                return 0
            if self.json:
                check_writable(self.json)
            result = run(self)
            if self.json:
                write_json(self.json, as_json(result))
            flag = f" --tracking-uri {hide_secrets(uri)}" if self.tracking_uri else ""
            page = False if self.no_report else self.report or None
            line = show_with_report(result, page, flag)
        # the table that was just printed has the reasons
        refuse_inapplicable(cell.status for cell in result.cells)
        experiment = result.tracker.experiment
        console.print(f"all results: MLflow experiment {experiment}, python -m benchmark ui{flag}")
        if self.json:
            console.print(f"metrics: {self.json}")
        if line:
            console.print(line)
        return 1 if result.failed else 0


RUN_COMMAND = RunTasks


@options_dataclass
class Watch(ConfigOptions, WatchOptions, TrackingOptions):
    """Probe the checkpoints of a folder while a training writes them.

    examples:
      python -m benchmark watch --backbone cliptex --dir weights.steps/ --data-root DIR
      python -m benchmark watch --backbone open_clip/ViT-B-16 --dir checkpoints/ --suite paper
        --task voc/linear --data-root DIR --once
    """

    def main(self) -> int:
        """Print each checkpoint's table."""
        from benchmark.in_loop import watch
        from benchmark.result import show
        from reports.store import using

        with using(self.tracking_uri):
            return 1 if watch(self, show) else 0


WATCH_COMMAND = Watch
