"""``list``: names with a line about each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmark.cli.options import add, output_json
from benchmark.cli.parser import with_examples

Rows = list[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``list``."""
    with_examples(parser, "backbones dino", "tasks --limit 10 --json tasks.json")
    parser.add_argument("what", choices=[*LISTS], metavar="what", help=", ".join(LISTS))
    parser.add_argument(
        "filter", nargs="?", default="", metavar="WORD", help="only lines with this word"
    )
    add(parser, "--limit", "--json")


def main(options: argparse.Namespace) -> int:
    """Print names and descriptions."""
    from benchmark.execution.progress import console

    word = options.filter.lower()
    rows = [row for row in LISTS[options.what]() if word in " ".join(row).lower()]
    rows = rows[: options.limit]
    if not output_json(options, [{"name": name, "about": about} for name, about in rows]):
        width = max((len(name) for name, _ in rows), default=0)
        for name, about in rows:
            console.print(f"{name:<{width}}  {about}")
    return 0


def backbones() -> Rows:
    """Named backbones, then families of names."""
    import backbones
    from backbones.registry import FAMILIES

    entries = [(name, backbones.find(name)) for name in backbones.names()]
    rows = [(name, f"{entry.about} [{entry.licence}]") for name, entry in entries]
    rows += [(family.pattern, family.about) for family in FAMILIES.values()]
    return [*rows, ("random/NAME", "any of these, randomly initialised from the seed")]


# importing benchmark.catalog registers all datasets, probes, protocols and suites


def tasks() -> Rows:
    """Kind, main metric and suites of each task."""
    import benchmark.catalog  # noqa: F401
    from benchmark.suites.registry import SUITES
    from probes.registry import tasks

    suites = SUITES.load_entry_points().values()
    rows = []
    for task, (spec, probe) in tasks().items():
        members = ", ".join(suite.name for suite in suites if task in suite.tasks)
        suffix = f" [{members}]" if members else ""
        rows.append((task, f"{spec.kind}, {next(iter(probe.metrics))}{suffix}"))
    return rows


def suites() -> Rows:
    """Named lists of tasks."""
    import benchmark.catalog  # noqa: F401
    from benchmark.suites.registry import SUITES

    suites = SUITES.load_entry_points().values()
    return [(suite.name, f"{suite.about} [{len(suite.tasks)} tasks]") for suite in suites]


def datasets() -> Rows:
    """Datasets that can be read; ``data check`` shows which are present."""
    import benchmark.catalog  # noqa: F401
    from probes.registry import DATASETS

    specs = DATASETS.load_entry_points().values()
    return [(spec.name, f"{spec.kind}: {spec.about}") for spec in specs]


def probes() -> Rows:
    """What is trained on, or computed from, a frozen backbone."""
    import benchmark.catalog  # noqa: F401
    from probes.registry import PROBES

    probes = PROBES.load_entry_points().values()
    return [(probe.name, f"for {probe.kind}: {', '.join(probe.metrics)}") for probe in probes]


def protocols() -> Rows:
    """The source of each protocol, the settings it fixes, and its differences from the source."""
    import benchmark.catalog  # noqa: F401
    from probes.protocols.base import PROTOCOLS

    rows = []
    for protocol in PROTOCOLS.load_entry_points().values():
        rows.append((protocol.name, protocol.source))
        for preset in protocol.presets:
            settings = {**preset.settings, **preset.data}
            text = " ".join(f"{key}={_plain(value)}" for key, value in settings.items())
            datasets = f" ({', '.join(preset.datasets)})" if preset.datasets else ""
            rows.append((f"{protocol.name} {preset.probe}{datasets}", text))
        rows += [(f"{protocol.name}, not here", text) for text in protocol.differs]
    return rows


def recipes() -> Rows:
    """How weights are trained, and the λ of each loss."""
    from backbones.cliptex.training.recipes import find_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = find_recipe(name)
        weights = [f"λ {loss} {recipe.weight(loss):g}" for loss in ("clip", *recipe.tasks)]
        rows.append((name, f"{recipe.epochs:g} epochs, lr {recipe.lr:g}; {', '.join(weights)}"))
    return rows


def experts() -> Rows:
    """Models that write pseudo-labels."""
    import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
    from backbones.cliptex.experts.registry import EXPERTS

    return sorted(EXPERTS.descriptions().items())


def executors() -> Rows:
    """Where units of work can run."""
    from benchmark.execution import EXECUTORS

    return list(EXECUTORS.descriptions().items())


LISTS: dict[str, Callable[[], Rows]] = {
    "backbones": backbones,
    "tasks": tasks,
    "suites": suites,
    "datasets": datasets,
    "probes": probes,
    "protocols": protocols,
    "recipes": recipes,
    "experts": experts,
    "executors": executors,
}


def _plain(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
