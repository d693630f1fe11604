"""``python -m benchmark.published read --source DIR``: read published numbers again from a checkout
of their source."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmark.parser import Parser, add_command, read_options
from benchmark.progress import console
from cliptex_common.errors import UserError
from cliptex_common.settings import Folder, options_dataclass


@options_dataclass
class ReadPublished:
    """Replace the numbers of one source by those of a checkout of it, and print what has changed.

    examples:
      python -m benchmark.published read --source ../open_clip
    """

    source: Folder
    """a checkout of open_clip, timm (pytorch-image-models) or CLIP_benchmark"""

    def main(self) -> int:
        """Print each change."""
        from reports.published.table import read_source

        changes = read_source(self.source)
        for line in changes.lines[:50]:
            console.print(line)
        if len(changes.lines) > 50:
            console.print(f"… and {len(changes.lines) - 50} more")
        names = ", ".join(changes.keys)
        commit = changes.commit[:7] or "an unknown commit (no clone; sources.csv keeps the old one)"
        console.print(
            f"{changes.rows} numbers of {names} at {commit}: {len(changes.lines)} changes"
        )
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, which is for maintainers and so none of ``benchmark.commands``; returns the
    exit code."""
    parser = Parser(prog="python -m benchmark.published", description=__doc__)
    add_command(parser, {"read": ReadPublished})
    try:
        return read_options(vars(parser.parse_args(argv))).main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
