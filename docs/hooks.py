"""What the documentation's build adds: a table from the registries, and the pages about the
project, which are files above this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKER = "<!-- table of tasks -->"
ROOT = Path(__file__).parents[1]
ABOUT = {
    "ARCHITECTURE.md": "about/architecture.md",
    "CONTRIBUTING.md": "about/contributing.md",
    "SECURITY.md": "about/security.md",
    "CHANGELOG.md": "about/changelog.md",
}
HEADER = ("kind", "probes", "datasets", "published protocols")


def tasks_table() -> str:
    """A Markdown table with a row for each kind of dataset: probes, datasets, protocols."""
    import benchmark.catalog  # noqa: F401 – registers every dataset, probe and protocol
    from probes.registry import DATASETS, PROBES, PROTOCOLS

    rows = [HEADER, ("---",) * len(HEADER)]
    for kind in dict.fromkeys(probe.kind for probe in PROBES.values()):
        probes = [probe.name for probe in PROBES.values() if probe.kind == kind]
        specs = [spec for spec in DATASETS.values() if spec.kind == kind]
        specs = [spec for spec in specs if not spec.name.startswith("mini-")]
        folders = [spec.name for spec in specs if spec.module.endswith(".webdataset")]
        datasets = ", ".join(f"`{spec.name}`" for spec in specs if spec.name not in folders)
        if folders:
            datasets += f"{', ' * bool(datasets)}webdataset folders ({len(folders)})"
        protocols = []
        for protocol in PROTOCOLS.values():
            names = [preset.probe.split("/") for preset in protocol.presets]
            covered = dict.fromkeys(probe for preset_kind, probe in names if preset_kind == kind)
            if covered:
                protocols.append(f"`{protocol.name}` ({', '.join(covered)})")
        names = ", ".join(f"`{name}`" for name in probes)
        rows.append((kind, names, datasets, ", ".join(protocols) or "–"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def on_files(files: Any, config: Any) -> None:
    """MkDocs' event: add the pages about the project."""
    from mkdocs.structure.files import File

    for name, page in ABOUT.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' event: fill in the table, and link to the pages about the project."""
    for name, page in ABOUT.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})")
    return markdown.replace(MARKER, tasks_table()) if MARKER in markdown else markdown
