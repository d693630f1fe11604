"""``reproduce``: run a published protocol and compare with the published number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from benchmark.cli.parser import ConfigOptions, Positionals
from benchmark.options import DataOptions, ExecutionOptions, RunOptions, TrackingOptions
from cliptex_common.errors import UserError
from cliptex_common.settings import Names, Seed, options_dataclass

if TYPE_CHECKING:
    from benchmark.reproduce.compare import Comparison
    from benchmark.reproduce.targets import Target


@options_dataclass
class Reproduce(ConfigOptions, DataOptions, ExecutionOptions, TrackingOptions):
    """Run a published protocol and compare with the published number.

    examples:
      python -m benchmark reproduce --list
      python -m benchmark reproduce dinov3 --backbone dinov3-b16 --task ade20k/linear
        --data-root DIR
      python -m benchmark reproduce --quick --data-root DIR
    """

    protocols: Positionals[Sequence[str]] = ()
    """names as in `list protocols`; all of them for --list and --quick"""
    backbone: str | None = None
    """whose published numbers to reproduce; with --quick any (default: a small random ViT)"""
    tasks: Names = ()
    """only these tasks"""
    list: bool = False
    """print what can be reproduced: published value, hours on one GPU, what to bring"""
    quick: bool = False
    """run each preset for a few iterations on what data there are, to see that all is in place"""
    seed: Seed = 0
    """random seed"""
    seeds: PositiveInt = 1
    """number of seeds, starting at --seed; from two on the tolerance includes their noise"""

    def main(self) -> int:
        """List, try, or run and compare; 0 unless a run failed."""
        from benchmark.reproduce.targets import find_targets
        from reports.mlflow.client import using

        if self.quick:
            with using(self.tracking_uri):
                return _try(self.protocols, self.run_options)
        if not self.list and not (self.protocols and self.backbone):
            raise UserError(
                "name a protocol and --backbone; `reproduce --list` shows what can be reproduced"
            )
        targets = find_targets(self.protocols, self.backbone, self.tasks)
        if self.list:
            _print_targets(targets)
            return 0
        with using(self.tracking_uri) as uri:
            codes = [
                _compare([each for each in targets if each.number.preset == name], options, uri)
                for name, options in ((name, self.run_options) for name in self.protocols)
            ]
        return max(codes)

    @property
    def run_options(self) -> RunOptions:
        """The options of the run."""
        return RunOptions(
            backbones=[self.backbone] if self.backbone else [],
            data_root=self.data_root,
            data=self.data,
            partial=self.partial,
            limit=self.limit,
            executor=self.executor,
            executor_arg=self.executor_arg,
            jobs=self.jobs,
            num_workers=self.num_workers,
            device=self.device,
            seed=self.seed,
            seeds=self.seeds,
            only=True,
            experiment="reproduce-quick" if self.quick else "reproduce",
        )


COMMAND = Reproduce


def _print_targets(targets: list[Target]) -> None:
    from benchmark.execution.progress import console

    rows = [("protocol", "backbone", "task", "published", "GPU hours", "bring")]
    for target in targets:
        number, spec = target.number, target.task.spec
        images = {**spec.expected, **target.preset.images}
        counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
        hours = target.hours()
        rows.append(
            (
                number.preset,
                target.backbone,
                number.task,
                f"{number.metric} {number.value:g}",
                f"{max(hours, 0.1):.1f}" if hours else "?",
                f"{spec.name}: {counts}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(line, markup=False, soft_wrap=True)


def _try(protocols: Sequence[str], options: RunOptions) -> int:
    from benchmark.execution.progress import console
    from benchmark.reproduce.quick import quick

    results = list(quick(protocols, options))
    for result in results:
        outcome = result.reason or "in place"
        console.print(
            f"{result.protocol:<12} {result.task:<26} {result.seconds:6.1f} s  {outcome}",
            markup=False,
        )
    return 1 if any(result.reason for result in results) else 0


def _compare(targets: list[Target], options: RunOptions, uri: str) -> int:
    from benchmark.cli.run import write_report
    from benchmark.execution.progress import console
    from benchmark.reproduce.compare import compare
    from benchmark.run import run
    from reports.mlflow.query import Store

    names = dict.fromkeys(target.task.name for target in targets)
    options = replace(options, tasks=list(names), overrides={"protocol": targets[0].number.preset})
    result = run(options)
    line, report = write_report(result)
    if report is None or report.analysis is None:
        console.print(line)
        return 1
    for comparison in compare(targets, options, report.analysis, Store(uri)):
        _print(comparison)
    console.print(line)
    return 1 if result.failed else 0


def _print(comparison: Comparison) -> None:
    from benchmark.execution.progress import console

    number = comparison.target.number
    console.print(
        f"{number.task} {number.metric}: ours {comparison.ours:.4g}, theirs {number.value:g},"
        f" difference {comparison.difference:+.3g}, tolerance {comparison.tolerance:.2g}"
        f" → {comparison.verdict}",
        markup=False,
    )
    for name, text in comparison.causes.items():
        console.print(f"  {name}: {text}", markup=False)
    if comparison.verdict == "differs" and not comparison.causes:
        console.print("  none of the known causes fits", markup=False)
    if comparison.unknown:
        console.print(f"  not judged: {comparison.unknown}", style="dim", markup=False)
