"""Pages show files of this project as code blocks, so that they can be read on a code host, too.

``python -m tests.docs.shown_files`` (``make docs`` does it first) writes them again.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"<!-- file: (?P<path>[^#\s]+)(#(?P<section>.+))? -->")
SHOWN = re.compile(rf"({FILE.pattern})\n.*?(<!-- end of file -->)", re.DOTALL)


def with_files(page: str) -> str:
    """A page's text with the present text of the files, or of their sections, that it names."""
    return SHOWN.sub(
        lambda match: f"{match[1]}\n\n{_shown(**match.groupdict())}\n\n{match[5]}", page
    )


def _shown(path: str, section: str | None) -> str:
    text = (ROOT / path).read_text(encoding="utf-8").strip()
    if section:
        return text.split(f"\n## {section}\n")[1].split("\n## ")[0].strip()
    return f"```python\n{text}\n```"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_files(page.read_text(encoding="utf-8")), encoding="utf-8")
