"""``list``: names with a line about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

import benchmark.suites.catalog  # noqa: F401 – registers datasets, probes, protocols and suites
from benchmark.cli.output import print_table
from benchmark.cli.parser import JsonOptions, Positional, Positionals
from benchmark.execution import EXECUTORS
from benchmark.planning.options import PluginOptions
from benchmark.suites.registry import SUITES
from cliptex_common.errors import UserError, suggest
from cliptex_common.settings import options_dataclass
from probes.protocols.base import PROTOCOLS
from probes.registry import DATASETS, PROBES
from probes.registry import tasks as registered_tasks

Rows = list[tuple[str, str]]


@options_dataclass
class ListNames(JsonOptions, PluginOptions):
    """List backbones, tasks, suites, datasets, probes, protocols, recipes, experts or executors.

    examples:
      python -m benchmark list backbones dino
      python -m benchmark list tasks --limit 10 --json tasks.json
    """

    what: Positional[str]
    """backbones, tasks, suites, datasets, probes, protocols, recipes, experts, executors"""
    words: Positionals[Sequence[str]] = ()
    """only lines with these words"""
    limit: PositiveInt | None = None
    """only the first so many"""

    def main(self) -> int:
        """Print names and descriptions."""
        if self.what not in LISTS:
            raise UserError(f"cannot list {self.what!r}; {suggest(self.what, LISTS)}")
        words = [word.lower() for word in self.words]
        rows = [
            row
            for row in LISTS[self.what]()
            if all(word in " ".join(row).lower() for word in words)
        ][: self.limit]
        if not self.output_json([{"name": name, "about": about} for name, about in rows]):
            print_table(rows or [("nothing; --plugin FILE.py adds what a plugin registers",)])
        return 0


COMMAND = ListNames


def _backbones() -> Rows:
    """Named backbones, then families of names."""
    import backbones.registry  # noqa: F401 – registers them
    from backbones.registry import FAMILIES, find, names

    entries = map(find, names())
    rows = [(entry.name, f"{entry.about} [{entry.licence}]") for entry in entries]
    rows += [(family.pattern, family.about) for family in FAMILIES.load_entry_points().values()]
    return [*rows, ("random/NAME", "any of these, randomly initialised from the seed")]


def _tasks() -> Rows:
    """Kind, main metric and suites of each task: those that list it, or else accept it."""
    suites = SUITES.load_entry_points().values()
    accepting: dict[str, list[str]] = {}  # dataset → suites that list tasks on it
    for suite in suites:
        for dataset in {task.partition("/")[0] for task in suite.tasks}:
            accepting.setdefault(dataset, []).append(suite.name)
    own = [suite.name for suite in suites if suite.any_dataset]
    rows = []
    for task, (spec, probe) in registered_tasks().items():
        members = [suite.name for suite in suites if task in suite.tasks]
        names = ", ".join(members or accepting.get(spec.name, own))
        rows.append((task, f"{spec.kind}, {next(iter(probe.metrics))} [{names}]"))
    return rows


def _suites() -> Rows:
    """Named lists of tasks."""
    suites = SUITES.load_entry_points().values()
    return [(suite.name, f"{suite.about} [{len(suite.tasks)} tasks]") for suite in suites]


def _datasets() -> Rows:
    """Datasets that can be read; ``data check`` shows which are present."""
    specs = DATASETS.load_entry_points().values()
    return [(spec.name, f"{spec.kind}: {spec.about}") for spec in specs]


def _probes() -> Rows:
    """What is trained on, or computed from, a frozen backbone."""
    probes = PROBES.load_entry_points().values()
    return [(probe.name, f"for {probe.kind}: {', '.join(probe.metrics)}") for probe in probes]


def _protocols() -> Rows:
    """The source of each protocol, the settings it fixes, and its differences from the source."""
    rows = []
    for protocol in PROTOCOLS.load_entry_points().values():
        commit = f", at {protocol.commit}" if protocol.commit else ""
        rows.append((protocol.name, f"{protocol.source}{commit} (version {protocol.version})"))
        for preset in protocol.presets:
            settings = {**preset.settings, **preset.data, **preset.required}
            text = " ".join(f"{key}={_plain(value)}" for key, value in settings.items())
            datasets = f" ({', '.join(preset.datasets)})" if preset.datasets else ""
            rows.append((f"{protocol.name} {preset.probe}{datasets}", text))
        for probe, differences in protocol.differs.items():
            subject = f"{protocol.name} {probe}".strip()
            rows += [(f"{subject}, not here", text) for text in differences.values()]
    return rows


def _recipes() -> Rows:
    """How weights are trained, and the λ of each loss."""
    from backbones.cliptex.recipes import find_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = find_recipe(name)
        weights = [f"λ {loss} {value:g}" for loss, value in recipe.loss_weights.items()]
        rows.append((name, f"{recipe.epochs:g} epochs, lr {recipe.lr:g}; {', '.join(weights)}"))
    return rows


def _experts() -> Rows:
    """Models that write pseudo-labels."""
    import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
    from backbones.cliptex.experts import EXPERTS

    return sorted(EXPERTS.descriptions().items())


def _executors() -> Rows:
    """Where units of work can run."""
    return list(EXECUTORS.descriptions().items())


LISTS = {
    "backbones": _backbones,
    "tasks": _tasks,
    "suites": _suites,
    "datasets": _datasets,
    "probes": _probes,
    "protocols": _protocols,
    "recipes": _recipes,
    "experts": _experts,
    "executors": _executors,
}


def _plain(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
