"""The blocks of code in README and the documentation."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from tests.docs.shown_files import FILE, PAGES, ROOT

FOR_OTHER_SUITES = "docs/guide/bridges.md"  # its Python and YAML, see test_bridges
SEPARATOR, END = "\x1f", "\x1e"
RECORDER = """
PATH=nowhere
command_not_found_handle() { local IFS=$'\\x1f'; printf '%s\\x1e' "$where$IFS$*"; }
for builtin in source cd; do eval "$builtin() { :; }"; done
export where; export -f command_not_found_handle
"""


@dataclass(frozen=True)
class Block:
    """``text`` in ``language`` ('' of an indented one), from ``line`` of ``page`` on; a block that
    shows a file has it as ``file``."""

    page: str
    line: int
    language: str
    text: str
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(*languages: str) -> list[Block]:
    """Those in these languages, or all; in the order of the pages."""
    matches = []
    for path in PAGES:
        page, file = path.relative_to(ROOT).as_posix(), None
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
            if match := FILE.match(token.content):
                file = ROOT / match["path"]
            elif token.type in ("fence", "code_block") and token.map:
                if not languages or token.info in languages:
                    line = token.map[0] + 1
                    matches.append(Block(page, line, token.info, token.content, file))
            elif token.type == "html_block":
                file = None
    return matches


def commands(page: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of each command in a page's shell blocks, as bash passes them to a program.

    Bash runs the blocks in ``folder``, one after the other, and finds no program.
    """
    (folder / ".ci").mkdir()
    (folder / ".ci/wheel").write_text('command_not_found_handle .ci/wheel "$@"')
    (folder / ".ci/wheel").chmod(0o755)
    script = [RECORDER]
    for block in blocks("sh"):
        if block.page == page:
            script += [f"where={block}", block.text]
    output = subprocess.run(
        ["bash", "-eu"],
        input="\n".join(script),
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for command in output.split(END)[:-1]:
        where, *words = command.split(SEPARATOR)
        yield where, words
