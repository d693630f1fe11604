"""What can be reproduced: published numbers whose protocol is a preset here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import benchmark.suites.catalog  # noqa: F401 – registers every dataset, probe and protocol
from benchmark.planning.tasks import choose_suite, plan_task
from benchmark.probing.records import PlannedTask
from cliptex_common.errors import UserError, suggest
from probes.protocols.base import PROTOCOLS, Preset, find_preset
from reports.published.table import PublishedNumber, published_numbers


@dataclass(frozen=True)
class Target:
    """A published number and the task that gives ours.

    Attributes:
        preset: of the protocol for the task.
        task: with the preset's settings.
    """

    number: PublishedNumber
    preset: Preset
    task: PlannedTask

    @property
    def backbone(self) -> str:
        """The name of the weights that loads them as the source does, else the first."""
        names = self.number.backbones
        return next((name for name in names if name.startswith(self.number.loader)), names[0])

    @property
    def half_digit(self) -> float:
        """How far the published value may be from what its authors measured, by rounding."""
        return 0.5 * 10.0**-self.number.digits


def protocol_names() -> list[str]:
    """Protocols other than the suite's own."""
    return sorted(set(PROTOCOLS.load_entry_points()) - {"own"})


def find_targets(
    protocols: Sequence[str] = (), backbones: Sequence[str] = (), tasks: Sequence[str] = ()
) -> list[Target]:
    """The published numbers of protocols, of backbones, and on tasks; without them, of all.

    Raises:
        UserError: an unknown protocol or backbone, or there is no such number.
    """
    names = protocol_names()
    for protocol in protocols:
        if protocol not in names:
            raise UserError(f"no protocol {protocol!r}; {suggest(protocol, names)}")
    reproducible = [
        number for number in published_numbers() if number.backbones and number.preset in names
    ]
    models = {name for number in reproducible for name in number.backbones}
    for name in backbones:
        if name not in models:
            hint = suggest(name, (*names, *models))
            raise UserError(f"no protocol or backbone with published numbers {name!r}; {hint}")
    numbers = [number for number in reproducible if number.preset in (protocols or names)]
    of_protocols = ", ".join(protocols)
    if not numbers:
        raise UserError(
            f"no number is published by {of_protocols} for a backbone here; try --quick"
        )
    selected: dict[str, list[PublishedNumber]] = {}  # of each preset, whose tasks run together
    for number in numbers:
        has_backbone = set(number.backbones).intersection(backbones or models)
        if has_backbone and (not tasks or number.task in tasks):
            selected.setdefault(number.preset, []).append(number)
    targets = []
    for name, of_preset in selected.items():
        for number, task in zip(
            of_preset, plan_preset(name, [number.task for number in of_preset]), strict=True
        ):
            targets.append(Target(number, find_preset(name, task.spec, task.probe), task))
    if not targets:
        firsts = dict.fromkeys(number.backbones[0] for number in numbers)
        raise UserError(
            f"{of_protocols} has no published number for this backbone and task; it has some for"
            f" {', '.join(firsts)}"
        )
    return targets


def plan_preset(protocol: str, tasks: Sequence[str]) -> list[PlannedTask]:
    """Tasks with a preset's settings, and for the rest those of the suite that runs all of them."""
    suite = choose_suite(tasks)
    return [plan_task(suite, task, {"protocol": protocol}) for task in tasks]
