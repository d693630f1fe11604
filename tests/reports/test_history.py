"""Whatever ran in whatever order: each number that is shown is the mean of the seeds it names, all
of the same weights or of one recipe, computed again from stored per-image scores."""

from __future__ import annotations

import random
from contextlib import chdir
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from benchmark import compare
from benchmark.api import COLUMNS, Results
from benchmark.progress import console
from benchmark.result import RunResult, as_json, show, write_report
from benchmark.suites import Suite
from benchmark.tasks import plan_tasks
from reports.leaderboard import build_leaderboard
from reports.records import PER_IMAGE, Cell
from reports.report import ReportRequest, build_report
from reports.sharing import export_results, load_files
from reports.store import Store
from reports.tracking import Tracker
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASK, METRIC = "nyu-depth/linear", "abs_rel"
FILES = ("a" * 64, "b" * 64, "")  # sha256 of files; the last are trained, of each seed its own
SUITE = Suite("paper", "", {TASK: {}})


@dataclass
class Lab:
    """A store, and what was measured there.

    Attributes:
        origin: of its trainings.
        newest: (name, file, seed) → the id of the parent run that has its numbers.
    """

    tracker: Tracker
    origin: str = ""
    newest: dict[tuple[str, str, int], str] = field(default_factory=dict)

    @classmethod
    def at(cls, folder, origin: str = "") -> Lab:
        folder.mkdir()
        return cls(Tracker("paper", f"sqlite:///{folder}/mlflow.db"), origin)

    def run(self, dice: random.Random, name: str, file: str, seeds, force: bool) -> RunResult:
        """A command; what is finished is not measured again unless forced."""
        rows = [(name, file, seed) for seed in seeds]
        for row in rows:
            if force or row not in self.newest:
                qualities = {TASK: dice.uniform(0.3, 0.8)}
                settings = {"sha": file, "weights": self.origin, "images": 24}
                self.newest[row] = write_run(self.tracker, name, row[2], qualities, **settings)
        cells = [cell for row in rows for cell in self.cells(self.newest[row])]
        run_ids = {(name, row[2]): self.newest[row] for row in rows}
        return RunResult(SUITE, plan_tasks(SUITE, [], {}), cells, run_ids, self.tracker)

    def cells(self, parent: str) -> list[Cell]:
        records = self.tracker.search(f"tags.`mlflow.parentRunId` = '{parent}'")
        return [record for record in records if isinstance(record, Cell)]


def mean_of_images(store: Store, cells: list[Cell]) -> float:
    """The mean over one cell a seed, of the same weights or of the trainings of one origin."""
    assert len({cell.seed for cell in cells}) == len(cells)
    trainings = [
        {sha256(f"{cell.backbone[0]} {cell.seed}{origin}".encode()).hexdigest() for cell in cells}
        for origin in ("", "else")
    ]
    shas = {cell.weights for cell in cells}
    assert len(shas) == 1 or shas in trainings
    return float(np.mean([store.arrays(cell, PER_IMAGE)[METRIC].mean() for cell in cells]))


def check_report(report, store: Store) -> None:
    numbers = report.numbers()
    for (name, column), cells in report.analysis.selection.cells.items():
        number = numbers[name, column.title, METRIC]
        assert number.value == pytest.approx(mean_of_images(store, cells))
        assert number.seeds == len(cells)
        assert set(number.runs) == {cell.run_id for cell in cells if not cell.source}


def check_command(result: RunResult, store: Store) -> None:
    """Terminal, page and JSON have the command's own seeds."""
    (name,), seeds = result.backbones, result.seeds
    report = write_report(result)[1]
    assert report.analysis.selection.seeds == {name: seeds}
    check_report(report, store)
    number = report.numbers()[name, TASK, METRIC]
    assert as_json(result)["backbones"][name][TASK][METRIC] == pytest.approx(number.value)
    with console.capture() as output:
        show(result, report)
    title = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    assert title in output.get() and number.text in output.get()


def results_of(result: RunResult) -> Results:
    """What ``evaluate`` makes of it."""
    rows = [
        {**vars(cell), "metric": METRIC, "value": cell.metrics[METRIC], "run": cell.run_id}
        for cell in result.cells
    ]
    run_ids = tuple(result.run_ids.values())
    return Results(pd.DataFrame(rows)[COLUMNS], result.tracker.uri, "paper", run_ids)


@pytest.mark.parametrize(
    ("number", "commands"),
    [(0, 5), *(pytest.param(n, 9, marks=pytest.mark.slow) for n in range(1, 12))],
)
def test_every_number_is_the_mean_of_the_seeds_that_it_names(number, commands, tmp_path):
    dice = random.Random(number)
    here, there = Lab.at(tmp_path / "here"), Lab.at(tmp_path / "there", dice.choice(["", "else"]))
    with chdir(tmp_path):
        results = []
        for _ in range(commands):
            lab, name, file = (
                dice.choice([here, here, there]),
                dice.choice("ab"),
                dice.choice(FILES),
            )
            first = dice.randrange(2)
            seeds = range(first, first + dice.randint(1, 3))
            results.append(lab.run(dice, name, file, seeds, dice.random() < 0.3))
        own = [result for result in results if result.tracker is here.tracker]
        store = Store(here.tracker.uri)
        check_command(own[-1], store)

        shared = []
        for lab in (here, there):
            if lab.newest:
                path = tmp_path / f"{len(shared)}.zip"
                written = export_results(Store(lab.tracker.uri), ["paper"], path)
                assert written.cells == len(lab.newest) and not written.notes
                shared.append(str(path))
        report = build_report(ReportRequest(["paper"], tracking_uri=store.uri, shared=shared[1:]))
        check_report(report, store)
        shown = {run for number in report.numbers().values() for run in number.runs}
        newest = [cell.run_id for parent in here.newest.values() for cell in here.cells(parent)]
        assert shown == set(newest)

        cells = {cell.run_id: cell for result in results for cell in result.cells}
        by_value = {cell.metrics[METRIC]: cell for cell in cells.values()}
        for file in shared:
            board = build_leaderboard(load_files([file])).analysis
            for (name, column), ranked in board.selection.cells.items():
                pool = [by_value[cell.metrics[METRIC]] for cell in ranked]
                assert [cell.seed for cell in pool] == [cell.seed for cell in ranked]
                value = board.estimates[name, column, METRIC].value
                assert value == pytest.approx(mean_of_images(store, pool))

        comparison = compare(*map(results_of, own))
        means = comparison.table().loc[TASK, METRIC]
        for name, frame in comparison.frame.groupby("backbone"):
            pool = [cells[run] for run in frame.run]
            assert means[name] == pytest.approx(mean_of_images(store, pool))
