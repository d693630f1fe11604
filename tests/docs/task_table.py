"""The README's table of task families, generated from the registries."""

from __future__ import annotations

import benchmark.catalog  # noqa: F401 – registers every dataset, probe and protocol
from probes.protocols.base import PROTOCOLS
from probes.registry import DATASETS, PROBES

COLUMNS = ("family", "probes", "datasets", "published protocols")


def task_table() -> str:
    """Markdown: the probes, datasets and published protocols of each family of tasks."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for kind in dict.fromkeys(probe.kind for probe in PROBES.values()):
        probes = [f"`{probe.name}`" for probe in PROBES.values() if probe.kind == kind]
        rows.append((kind, ", ".join(probes), _datasets(kind), _protocols(kind) or "–"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _datasets(kind: str) -> str:
    specs = [spec for spec in DATASETS.values() if spec.kind == kind]
    specs = [spec for spec in specs if not spec.name.startswith("mini-")]
    specs = [spec for spec in specs if not spec.module.startswith("tests.")]
    folders = [spec for spec in specs if spec.folder.startswith("wds_")]
    names = [f"`{spec.name}`" for spec in specs if spec not in folders]
    return ", ".join(names + [f"webdataset folders ({len(folders)})"] * bool(folders))


def _protocols(kind: str) -> str:
    texts = []
    for protocol in PROTOCOLS.values():
        probes = [preset.probe.partition("/") for preset in protocol.presets]
        names = dict.fromkeys(name for family, _, name in probes if family == kind)
        if names:
            texts.append(f"`{protocol.name}` ({', '.join(names)})")
    return ", ".join(texts)


if __name__ == "__main__":
    print(task_table(), end="")
