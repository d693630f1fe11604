"""``python -m tests.simulation [REPORTS]``: write the table of ``docs/statistics.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.simulation.world import World, run

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
MARK = "<!-- table -->\n"
VALUES = json.loads(Path(__file__).with_name("worlds.json").read_text(encoding="utf-8"))
WORLDS = {  # and the share of the reports
    name: (World(**{key: value for key, value in values.items() if key != "share"}), share)
    for name, values in VALUES.items()
    for share in [values.get("share", 1)]
}
HEADS = (
    "reports",
    "headline or verdict false (%)",
    "headline right (%)",
    "tasks decided (%)",
    "covers: numbers",
    "differences",
    "mean gain",
)


def table(reports: int) -> str:
    """A row for each world, in Markdown."""
    lines = [f"| what is simulated | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for name, (world, share) in WORLDS.items():
        rates = run(world, max(20, int(reports * share)), np.random.default_rng(1))
        right = [f"{100 * x:.0f}" if world.effect else "" for x in (rates.right, rates.decided)]
        covers = [f"{100 * x:.1f}" for x in (rates.numbers, rates.differences, rates.gains)]
        row = [name, f"{rates.reports}", f"{100 * rates.false:.1f}", *right, *covers]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    rows = table(int(sys.argv[1]) if len(sys.argv) > 1 else 250)
    before, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(before + mark + rows, encoding="utf-8")
