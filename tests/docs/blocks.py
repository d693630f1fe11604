"""The blocks of code in README and the documentation."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOR_OTHER_SUITES = "docs/guide/bridges.md"  # its Python and YAML, see test_bridges
SNIPPET = '--8<-- "'  # pymdownx.snippets: a line that stands for a file


@dataclass(frozen=True)
class Block:
    """``text`` in ``language`` ('' of an indented one), from ``line`` of ``page`` on."""

    page: str
    line: int
    language: str
    text: str

    @property
    def snippet(self) -> Path | None:
        """The file that it shows, where it is one."""
        return ROOT / self.text.split('"')[1] if self.text.startswith(SNIPPET) else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(*languages: str) -> list[Block]:
    """Those in these languages, or all; in the order of the pages."""
    matches = []
    for path in PAGES:
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if (
                token.type in ("fence", "code_block")
                and token.map
                and (not languages or token.info in languages)
            ):
                page = path.relative_to(ROOT).as_posix()
                matches.append(Block(page, token.map[0] + 1, token.info, token.content))
    return matches


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of each command in a page's shell blocks; variables that the page sets are
    filled in."""
    variables: dict[str, str] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines() if block.page == page else ():
            words = shlex.split(Template(line).safe_substitute(variables), comments=True)
            while words and words[0].partition("=")[0].isidentifier() and "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            if words:
                yield str(block), words
