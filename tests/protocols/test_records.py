"""Every preset against what its source's own code computed, field by field."""

from __future__ import annotations

import pytest

import probes.catalog  # noqa: F401  registers every protocol
from probes.registry import PROTOCOLS, Protocol
from tests.protocols.fields import (
    OTHERS,
    READ,
    RECORDS,
    differing_fields,
    module,
    read_record,
)

RECORDED = [PROTOCOLS[path.stem] for path in sorted(RECORDS.glob("*.json"))]


def test_every_protocol_has_a_record() -> None:
    assert {protocol.name for protocol in RECORDED} == set(PROTOCOLS) - {"own"}


@pytest.mark.parametrize("protocol", RECORDED, ids=lambda protocol: protocol.name)
def test_a_preset_gives_what_its_source_gives_or_lists_the_difference(protocol: Protocol) -> None:
    record, code = read_record(protocol.name), module(protocol.name)
    assert record["commit"] == protocol.commit
    fields = record["fields"]
    assert set(fields) == {preset.probe for preset in protocol.presets}
    differing = differing_fields(fields, code.suite(), getattr(code, "TOLERANCE", {}))
    named = {
        name
        for differences in protocol.differs.values()
        for name in ", ".join(differences).split(", ")
    }
    read = READ.get(protocol.name, set())
    assert read <= named
    for probe, names in differing.items():
        listed = {
            field
            for subject, differences in protocol.differs.items()
            if probe.startswith(subject)
            for field in ", ".join(differences).split(", ")
            if field in fields[probe] or (subject and field not in read)
        }
        assert set(names) == listed, probe
    assert all(all(differences) for differences in protocol.differs.values())


@pytest.mark.parametrize("name", OTHERS)
def test_an_expert_or_a_metric_gives_what_its_authors_code_gives(name: str) -> None:
    record, code = read_record(name), module(name)
    assert record["commit"] == code.COMMIT
    differing = differing_fields(record["fields"], code.suite(), code.TOLERANCE)
    for network, fields in differing.items():
        assert set(fields) == set(code.DIFFERS), network
