"""``list``: names, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmark.cli.options import add, gave_json
from benchmark.cli.parser import with_examples

COLUMNS = ("family", "probes", "datasets", "published protocols")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``list``."""
    with_examples(parser, "backbones dino", "tasks --limit 10 --json tasks.json")
    parser.add_argument(
        "what",
        choices=[*THINGS, "table"],
        metavar="what",
        help=f"{', '.join(THINGS)}, or table (as in README)",
    )
    parser.add_argument(
        "filter", nargs="?", default="", metavar="WORD", help="only lines that contain this"
    )
    add(parser, "--limit", help="only the first N")
    add(parser, "--json")


def main(options: argparse.Namespace) -> int:
    """Print name and one-line description."""
    from benchmark.execution.progress import console

    if options.what == "table":
        found = families()
        if not gave_json(options, [dict(zip(COLUMNS, row, strict=True)) for row in found]):
            lines = [COLUMNS, ["---"] * len(COLUMNS), *found]
            console.print(
                "\n".join(f"| {' | '.join(line)} |" for line in lines), markup=False, soft_wrap=True
            )
        return 0
    word = options.filter.lower()
    rows = [
        (name, about) for name, about in THINGS[options.what]() if word in f"{name} {about}".lower()
    ]
    rows = rows[: options.limit]
    if not gave_json(options, [{"name": name, "about": about} for name, about in rows]):
        width = max((len(name) for name, _ in rows), default=0)
        for name, about in rows:
            console.print(f"{name:<{width}}  {about}", markup=False)
    return 0


Rows = list[
    tuple[str, str]
]  # importing benchmark.catalog registers every dataset, probe, protocol and suite


def backbones() -> Rows:
    """The named ones, and what stands for many."""
    import backbones
    from backbones.registry import FAMILIES

    named = [
        (name, f"{e.about} [{e.licence}]")
        for name in backbones.names()
        for e in [backbones.find(name)]
    ]
    families = [(family.pattern, family.about) for family in FAMILIES.values()]
    return [*named, *families, ("random/NAME", "any of these, randomly initialised from the seed")]


def tasks() -> Rows:
    """Each with its kind, main metric and suites."""
    import benchmark.catalog  # noqa: F401
    from benchmark.suites.registry import SUITES
    from probes.registry import tasks

    suites = SUITES.load_entry_points().values()
    inside = {task: [suite.name for suite in suites if task in suite.tasks] for task in tasks()}
    return [
        (
            task,
            f"{spec.kind}, {next(iter(probe.metrics))}"
            + f" [{', '.join(inside[task])}]" * bool(inside[task]),
        )
        for task, (spec, probe) in tasks().items()
    ]


def suites() -> Rows:
    """Named lists of tasks."""
    import benchmark.catalog  # noqa: F401
    from benchmark.suites.registry import SUITES

    return [
        (one.name, f"{one.about} [{len(one.tasks)} tasks]")
        for one in SUITES.load_entry_points().values()
    ]


def datasets() -> Rows:
    """What the suite can read; ``data check`` says which are there."""
    import benchmark.catalog  # noqa: F401
    from probes.registry import DATASETS

    return [
        (spec.name, f"{spec.kind}: {spec.about}") for spec in DATASETS.load_entry_points().values()
    ]


def probes() -> Rows:
    """What is trained on a frozen backbone, or computed of it."""
    import benchmark.catalog  # noqa: F401
    from probes.registry import PROBES

    return [
        (p.name, f"for {p.kind}: {', '.join(p.metrics)}")
        for p in PROBES.load_entry_points().values()
    ]


def protocols() -> Rows:
    """Each with its source, and under it what it fixes for each probe and what its source does
    otherwise."""
    import benchmark.catalog  # noqa: F401
    from probes.protocols.base import PROTOCOLS

    rows = []
    for protocol in PROTOCOLS.load_entry_points().values():
        rows.append((protocol.name, protocol.source))
        for preset in protocol.presets:
            fixed = " ".join(
                f"{key}={_plain(value)}"
                for key, value in {**preset.settings, **preset.data}.items()
            )
            where = f" ({', '.join(preset.datasets)})" if preset.datasets else ""
            rows.append((f"{protocol.name} {preset.probe}{where}", fixed))
        rows += [(f"{protocol.name}, not here", each) for each in protocol.differs]
    return rows


def recipes() -> Rows:
    """How weights are trained, and the λ of each loss."""
    from backbones.cliptex.training.recipes import find_recipe, recipe_names

    found = [(name, find_recipe(name)) for name in recipe_names()]
    return [
        (
            name,
            f"{r.epochs:g} epochs, lr {r.lr:g}; "
            + ", ".join(f"λ {each} {r.weight(each):g}" for each in ("clip", *r.tasks)),
        )
        for name, r in found
    ]


def experts() -> Rows:
    """Models that write pseudo-labels."""
    import probes.experts  # noqa: F401 – makes the expert known that needs MMDetection
    from backbones.cliptex.experts.registry import EXPERTS

    return sorted(EXPERTS.descriptions().items())


def executors() -> Rows:
    """Who can run units of work."""
    from benchmark.execution import EXECUTORS

    return list(EXECUTORS.descriptions().items())


THINGS: dict[str, Callable[[], Rows]] = {
    "backbones": backbones,
    "tasks": tasks,
    "suites": suites,
    "datasets": datasets,
    "data": datasets,
    "probes": probes,
    "protocols": protocols,
    "recipes": recipes,
    "experts": experts,
    "executors": executors,
}


def families() -> list[tuple[str, ...]]:
    """Rows of README's table: with what each family of tasks is probed, on which datasets, under
    which published protocols."""
    import benchmark.catalog  # noqa: F401
    from probes.protocols.base import PROTOCOLS
    from probes.registry import DATASETS, PROBES

    rows: list[tuple[str, ...]] = []
    specs = [spec for spec in DATASETS.values() if not spec.name.startswith("mini-")]
    for kind in dict.fromkeys(probe.kind for probe in PROBES.values()):
        probes = [f"`{probe.name}`" for probe in PROBES.values() if probe.kind == kind]
        shards = [
            spec.name for spec in specs if spec.kind == kind and spec.module.endswith(".webdataset")
        ]
        datasets = [
            f"`{spec.name}`" for spec in specs if spec.kind == kind and spec.name not in shards
        ]
        datasets += [f"webdataset folders ({len(shards)})"] if shards else []
        named = [
            f"`{protocol.name}`"
            f" ({', '.join(dict.fromkeys(preset.probe.partition('/')[2] for preset in mine))})"
            for protocol in PROTOCOLS.values()
            if (
                mine := [
                    preset for preset in protocol.presets if preset.probe.partition("/")[0] == kind
                ]
            )
        ]
        rows.append((kind, ", ".join(probes), ", ".join(datasets), ", ".join(named) or "–"))
    return rows


def _plain(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(_plain(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
