"""What pages say of the code is true of it. (`make docs` checks links between pages, and that each
is in the navigation.)"""

from __future__ import annotations

import ast
import re

import pytest
import yaml

import benchmark.catalog  # noqa: F401 – registers every probe
from probes.registry import PROBES, PROTOCOLS
from tests.docs.shown_files import FILE, PAGES, ROOT, with_files

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [
        target.partition("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in target
    ]
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert targets or name != "README.md"


def test_pages_show_files_as_they_are():
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    assert sum(bool(FILE.search(text)) for text in pages.values()) > 10
    different = [page for page, text in pages.items() if with_files(text) != text]
    assert different == [], "python -m tests.docs.shown_files writes them again"


def test_pictures_in_html_are_there():
    """Which ``make docs`` does not look at."""
    pictures = [
        (page, name)
        for page in PAGES
        for name in re.findall(r'src="([^"]+)"', page.read_text(encoding="utf-8"))
    ]
    assert (
        pictures
        and [(page, name) for page, name in pictures if not (page.parent / name).is_file()] == []
    )


def test_the_built_pages_can_be_searched_from_disk():
    """By the index as a script, and a worker of our own, not one of another host."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {"search", "offline"} <= {name for name in config["plugins"] if isinstance(name, str)}
    (worker,) = config["extra"]["polyfills"]
    assert "iframe-worker" in worker and "window.Worker" in (DOCS / worker).read_text("utf-8")


def test_every_metric_and_probe_is_in_the_methodology():
    text = (DOCS / "methodology.md").read_text(encoding="utf-8")
    metrics = {name for probe in PROBES.values() for name in probe.metrics}
    metrics |= {name for probe in PROBES.values() for name in getattr(probe, "other_metrics", ())}
    assert sorted(name for name in metrics if f"`{name}`" not in text) == []
    pages = text + (DOCS / "choose.md").read_text(encoding="utf-8")
    assert (
        sorted(
            name
            for name in (*PROTOCOLS, *{p.name for p in PROBES.values()})
            if f"`{name}`" not in pages
        )
        == []
    )


def written() -> str:
    """All text constants of the source, what is filled into them left out."""
    texts = []
    for package in ("benchmark", "backbones", "probes", "sweeps", "reports", "cliptex_common"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append(
                        "…".join(p.value for p in node.values if isinstance(p, ast.Constant))
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_messages_in_troubleshooting_are_those_of_the_code():
    messages = re.findall(
        r"^`(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M
    )
    source = written()
    parts = {part for message in messages for part in message.split("…") if len(part) > 3}
    assert len(messages) > 25 and len(parts) > 40
    assert sorted(part for part in parts if part not in source) == []
