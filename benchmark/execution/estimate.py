"""The time left of a run, from the seconds that its units took in an earlier run.

Each suite has a table, unit type → seconds. A run writes its own under ``$CLIPTEX_HOME``; before
the first, the table that ships with the package counts. A table may be of another machine: finished
units tell how much slower this one is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from cliptex_common.errors import UserError
from cliptex_common.files import home, read_json_object, write_json

LEAST_SHARE = 0.1  # of the work must be finished before an estimate is given
REPORT = "report"  # the type of what the main process does after the last unit
PER_RUN = ("render", "label", "backbone")  # kinds whose units are alike


def unit_type(kind: str, name: str) -> str:
    """What units of equal cost have in common: the kind, or the name without backbone and seed.

    ``clip · seed 1 · mini-seg/linear`` → ``mini-seg/linear``.
    """
    parts = [part for part in name.split(" · ") if not part.startswith("seed ")]
    return kind if kind in PER_RUN else parts[-1]


class Estimate:
    """Counts the units of a run by type, and their seconds.

    Attributes:
        table: unit type → usual seconds.
        expected: name → type of units that are announced and not yet submitted.
        submitted, finished: number of units by type.
        measured, seconds: number by type of finished units that did all of their work, and their
            seconds together.
        worked: seconds of all finished units.
    """

    def __init__(self) -> None:
        self.table: Mapping[str, float] = {}
        self.expected: dict[str, str] = {}
        self.submitted, self.finished = Counter[str](), Counter[str]()
        self.measured, self.seconds = Counter[str](), Counter[str]()
        self.worked = 0.0
        self.started = time.monotonic()

    @property
    def units(self) -> Counter[str]:
        """The run's units by type; some are submitted that were not announced."""
        # copies, because other threads add to them meanwhile
        return Counter(dict(self.submitted)) + Counter(list(self.expected.values()))

    def announce(self, kind: str, names: Iterable[str]) -> None:
        """Expect units of one kind."""
        self.expected.update({name: unit_type(kind, name) for name in names})

    def withdraw(self, names: Iterable[str]) -> None:
        """Expect these units no longer, unless they are submitted already."""
        for name in names:
            self.expected.pop(name, None)

    def add_submitted(self, name: str, type_: str) -> None:
        """Count a unit, announced or not."""
        self.withdraw([name])
        self.submitted[type_] += 1

    def add_done(self, type_: str, seconds: float, measures: bool = True) -> None:
        """Count a unit that has ended after ``seconds`` of work.

        Args:
            measures: whether ``seconds`` are what such a unit takes: it has not failed, and no part
                of its work was done before.
        """
        self.finished[type_] += 1
        self.worked += seconds
        if measures:
            self.measured[type_] += 1
            self.seconds[type_] += seconds  # type: ignore[assignment]

    def seconds_left(self, running: Iterable[tuple[str, float]]) -> float | None:
        """Seconds until the run ends, with its report; None while too little is known.

        The last unit may run alone: the end is not before it.

        Args:
            running: type of each running unit, and since how many seconds it runs.
        """
        units = self.units
        usual = {type_: self.table.get(type_, 0.0) for type_ in units}
        planned = sum(usual[type_] * self.measured[type_] for type_ in usual)
        if not planned:
            return None
        slowness = sum(self.seconds[type_] for type_ in usual if usual[type_]) / planned
        unfinished = units - Counter(dict(self.finished))
        remaining, done = [], self.worked
        for type_, seconds in running:
            done += seconds
            remaining.append(max(slowness * usual[type_] - seconds, 0.0))
            unfinished[type_] -= 1
        for type_, count in unfinished.items():
            remaining += [slowness * usual[type_]] * count
        if done < LEAST_SHARE * (done + sum(remaining)):
            return None
        at_once = done / (time.monotonic() - self.started)
        report = slowness * self.table.get(REPORT, 0.0)
        return max(sum(remaining) / at_once, *remaining, 0.0) + report

    def means(self) -> dict[str, float]:
        """Type → mean seconds of a measured unit."""
        return {type_: self.seconds[type_] / n for type_, n in self.measured.items()}


def save_seconds(suite: str, seconds: Mapping[str, float]) -> None:
    """Store what units of a run took, and its report, for the next run, if it can be written."""
    path = home() / "unit_seconds.json"
    tables = read_json_object(path)
    tables[suite] = {**load_seconds(suite), **{t: round(s, 1) for t, s in seconds.items()}}
    with suppress(OSError, UserError):
        write_json(path, tables)


def load_seconds(suite: str) -> Mapping[str, float]:
    """The table of a suite; empty if there is none."""
    shipped = Path(__file__).with_name("unit_seconds.json")
    return {
        **read_json_object(shipped).get(suite, {}),
        **read_json_object(home() / "unit_seconds.json").get(suite, {}),
    }
