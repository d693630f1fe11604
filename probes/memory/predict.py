"""The most memory that tasks take, phase by phase, before anything is computed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module

from cliptex_common.live_bytes import counting, fake_copy
from probes.base import Context, FeatureProbe, GroupedProbe, Probe
from probes.memory.plan import MemoryPlan, Phases

Task = tuple[Probe, Context]
Run = Callable[..., Phases]  # of the plans of tasks


@dataclass(frozen=True)
class Peak:
    """Most bytes of tasks that are trained together.

    Attributes:
        phase: in which ``device`` bytes are taken in the memory of the device.
        host: of large tensors that stay in the memory of the host.
    """

    device: int
    phase: str
    host: int


def predict(tasks: Sequence[Task], capacity: int | None) -> list[Peak]:
    """The peaks of tasks of one backbone and seed, those that are trained together as one.

    Probes of plug-ins, whose phases are not known, are left out.

    Args:
        tasks: with contexts whose device is planned for, and need not exist.
        capacity: bytes of the device; None for the memory of the host.
    Raises:
        UserError: a backbone lacks what a probe reads, or settings do not fit it.
    """
    logging.disable(logging.INFO)  # MMEngine names every parameter
    try:
        with warnings.catch_warnings(action="ignore"):  # of addresses, which fake tensors lack
            return [
                _predict(group, phases, capacity)
                for group in together(tasks)
                if (phases := phases_of(group[0][0]))
            ]
    finally:
        logging.disable(logging.NOTSET)


def _predict(group: Sequence[Task], phases: Run, capacity: int | None) -> Peak:
    """The peak of tasks that are trained together."""
    with counting(group[0][1].device) as counter:
        backbone = fake_copy(group[0][1].backbone)
        plans = [
            MemoryPlan(probe, replace(context, backbone=backbone), counter, capacity)
            for probe, context in group
        ]
        by_phase = {phase: counter.take_peak() for phase in phases(*plans)}
    worst = max(by_phase, key=by_phase.__getitem__)
    return Peak(by_phase[worst], worst, sum(plan.host for plan in plans))


def together(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks by ``GroupedProbe.group_key``."""
    lists: dict[str, list[Task]] = {}
    for number, (probe, context) in enumerate(tasks):
        key = probe.group_key(context) if isinstance(probe, GroupedProbe) else None
        lists.setdefault(key or str(number), []).append((probe, context))
    return list(lists.values())


def phases_of(probe: Probe) -> Run | None:
    """The function that runs the phases of tasks of a probe; None if it is a plug-in's.

    Those of ``probes.image_level.knn`` are ``probes.memory.image_level.knn``, and so on.
    """
    module = probe.module if isinstance(probe, FeatureProbe) else type(probe).__module__
    if not module.startswith("probes."):
        return None
    folder, name = module.split(".")[-2:]
    run: Run = getattr(import_module(f"probes.memory.{folder}"), name)
    return run
