"""What can be reproduced: published numbers whose protocol is a preset here."""

from __future__ import annotations

from dataclasses import dataclass

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and protocol
from benchmark.plan import plan_task
from benchmark.records import PlannedTask
from benchmark.suites.registry import find_suite
from common.errors import UserError, nearest
from probes.protocols.base import PROTOCOLS, Preset
from reports.parts.published import PublishedNumber, published_numbers

SUSTAINED = 1e5  # GFLOP a second of one GPU, to estimate hours: a third of an A100's bf16 peak


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
        """The first name of the weights."""
        return self.number.backbones[0]

    @property
    def half_digit(self) -> float:
        """How far the published value may be from what its authors measured, by rounding."""
        decimals = len(str(self.number.value).partition(".")[2])
        return 0.5 * 10.0**-decimals

    def hours(self) -> float:
        """Of the backbone on one GPU, roughly: images × its operations for each. 0 if unknown."""
        return self._images() * self._gflops() / SUSTAINED / 3600

    def _gflops(self) -> float:
        settings = self.task.settings
        crop = getattr(settings, "crop", None) or (settings.size, settings.size)
        return self.number.gflops * crop[0] * crop[1] / 224**2

    def _images(self) -> float:
        settings, expected = self.task.settings, self.task.spec.expected
        train, val = (expected.get(split, 0) for split in ("train", "val"))
        if epoch_length := getattr(settings, "epoch_length", 0):
            return settings.epochs * epoch_length * settings.batch_size + val
        if epochs := getattr(settings, "epochs", 0):
            cached = getattr(settings, "cache", "features") != "none"
            return (1 if cached else epochs) * train + val
        iterations = getattr(settings, "max_iters", 0)
        return (iterations * settings.batch_size if iterations else train) + val


def protocol_names() -> list[str]:
    """Protocols other than the suite's own."""
    return sorted(set(PROTOCOLS.load_entry_points()) - {"own"})


def find_targets(protocol: str | None = None, backbone: str | None = None) -> list[Target]:
    """The numbers of a protocol and a backbone; without either, of all.

    Raises:
        UserError: an unknown protocol, or one without a number of this backbone.
    """
    if protocol is not None and protocol not in protocol_names():
        raise UserError(f"no protocol {protocol!r}; {nearest(protocol, protocol_names())}")
    targets = []
    for number in published_numbers():
        if number.preset in ("", "own") or protocol not in (None, number.preset):
            continue
        if backbone is not None and backbone not in number.backbones:
            continue
        planned = plan_preset(number.preset, number.task)
        preset = PROTOCOLS[number.preset].preset(planned.spec, planned.probe)
        if preset is not None:
            targets.append(Target(number, preset, planned))
    if not targets:
        names = {number.backbones[0] for number in published_numbers() if number.preset == protocol}
        of_backbone = f" for {backbone}" if backbone else ""
        hint = f"it has them for {', '.join(sorted(names))}" if names else "see reproduce --list"
        raise UserError(f"protocol {protocol} has no published number{of_backbone}; {hint}")
    return targets


def plan_preset(protocol: str, task: str, **changes: str) -> PlannedTask:
    """A task with a preset's settings."""
    return plan_task(find_suite("own"), task, {"protocol": protocol, **changes})
