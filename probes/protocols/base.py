"""What a protocol is: settings by the name of who published them, so that a number can be compared
with theirs.

``protocol`` is a setting of every probe. Its preset comes over the defaults and the suite's
settings, and gives way to what the user sets (``--set``), which is then said. Another package adds
one by the entry point group ``cliptex_benchmark.protocols``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError
from common.registry import Registry, instance_of
from probes.base import Probe
from probes.datasets.base import DatasetSpec
from probes.registry import tasks


@dataclass(frozen=True)
class Preset:
    """What a protocol fixes for one probe.

    Attributes:
        probe: its name in ``probes.registry.PROBES`` (``segmentation/linear``).
        settings: setting → value. What is not here is the suite's or the probe's own.
        datasets: those that the source has it for; empty for every dataset of the kind.
        data: what the source's copy of the dataset is, of ``DatasetSpec.extra``, where copies
            differ.
    """

    probe: str
    settings: Mapping[str, Any]
    datasets: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A published protocol.

    Attributes:
        name: as ``--set protocol=NAME`` takes it.
        source: paper, repository and files that it was read from.
        presets: for each probe that it has; of several for one probe that which names the dataset
            counts.
        differs: what the source does otherwise than this suite, a phrase each.
    """

    name: str
    source: str
    presets: tuple[Preset, ...] = ()
    differs: tuple[str, ...] = ()

    def preset(self, spec: DatasetSpec, probe: Probe) -> Preset | None:
        """What it fixes for a task, or None."""
        fitting = [
            preset
            for preset in self.presets
            if preset.probe == f"{probe.kind}/{probe.name}"
            and (not preset.datasets or spec.name in preset.datasets)
        ]
        return next(
            (preset for preset in fitting if preset.datasets), fitting[0] if fitting else None
        )


PROTOCOLS: Registry[Protocol] = Registry("protocol", "protocols", instance_of(Protocol))


def register_protocol(protocol: Protocol) -> Protocol:
    """Add a protocol. Raises ``ValueError`` when its name is taken."""
    return PROTOCOLS.register(protocol.name, protocol)


OWN = register_protocol(
    Protocol("own", "this suite's own settings: the probe's defaults and what the suite changes")
)


def find_preset(name: str, spec: DatasetSpec, probe: Probe) -> Preset:
    """What the protocol called ``name`` fixes for a task; ``own`` fixes nothing.

    Raises:
        UserError: there is no such protocol, or it has nothing for the task (names the tasks that
            it has).
    """
    protocol = PROTOCOLS.find(name)
    if protocol is OWN:
        return Preset(f"{probe.kind}/{probe.name}", {})
    if preset := protocol.preset(spec, probe):
        return preset
    known = [task for task, (other, each) in tasks().items() if protocol.preset(other, each)]
    raise UserError(
        f"protocol {name} does not apply to {spec.name}/{probe.name}; it does to"
        f" {', '.join(sorted(known))}"
    )


def changed(preset: Preset, settings: Any, spec: DatasetSpec) -> list[str]:
    """``max_iters=100 instead of 40000`` for each setting, and each fact of the dataset, that is
    not the preset's."""
    used = {key: (getattr(settings, key), value) for key, value in preset.settings.items()}
    used |= {key: (spec.extra.get(key, "none"), value) for key, value in preset.data.items()}
    return [
        f"{key}={given} instead of {value}"
        for key, (given, value) in used.items()
        if given != value
    ]
