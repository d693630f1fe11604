"""A command, its page and ``compare`` have the means of the seeds that they name, computed again
from stored per-image scores. (Any other history: test_labels.)"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmark import compare
from benchmark.api import COLUMNS, Results
from benchmark.progress import console
from benchmark.result import RunResult, as_json, show, write_report
from benchmark.suites import Suite
from benchmark.tasks import plan_tasks
from reports.records import PER_IMAGE, Cell
from reports.store import Store
from tests.reports.synthetic import write_run

pytestmark = pytest.mark.integration

TASK, METRIC = "nyu-depth/linear", "abs_rel"
SUITE = Suite("paper", "", {TASK: {}})


def command(tracker, quality: float, seeds, name: str = "a", sha: str = "a" * 64) -> RunResult:
    """What a command measured, which ran anew."""
    run_ids, cells = {}, list[Cell]()
    for seed in seeds:
        options = {"sha": sha, "images": 24}
        run_ids[name, seed] = write_run(tracker, name, seed, {TASK: quality}, **options)
        cells += [run for run in tracker.search(task=TASK) if run.parent == run_ids[name, seed]]
    return RunResult(SUITE, plan_tasks(SUITE, [], {}), cells, run_ids, tracker)


def results_of(result: RunResult) -> Results:
    """What ``evaluate`` makes of it."""
    rows = [
        {**vars(cell), "metric": METRIC, "value": cell.metrics[METRIC], "run": cell.run_id}
        for cell in result.cells
    ]
    run_ids = tuple(result.run_ids.values())
    return Results(pd.DataFrame(rows)[COLUMNS], result.tracker.uri, SUITE.name, run_ids)


@pytest.mark.parametrize("seeds", [(1, 2), (1,)])
def test_a_command_shows_its_own_seeds_and_compare_the_newest_of_each(tracker, seeds):
    older, other = command(tracker, 0.4, range(3)), command(tracker, 0.5, (1,), sha="b" * 64)
    result = command(tracker, 0.7, seeds)
    store = Store(tracker.uri)

    def mean_of_images(cells) -> float:
        return float(np.mean([store.arrays(cell, PER_IMAGE)[METRIC].mean() for cell in cells]))

    report = write_report(result)[1]
    number, mean = report.numbers()["a", TASK, METRIC], mean_of_images(result.cells)
    assert report.analysis.selection.seeds == {"a": [*seeds]} and number.seeds == len(seeds)
    assert set(number.runs) == {cell.run_id for cell in result.cells}
    assert number.value == pytest.approx(mean)
    assert as_json(result)["backbones"]["a"][TASK][METRIC] == pytest.approx(mean)
    with console.capture() as output:
        show(result, report)
    title = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    assert title in output.get() and number.text in output.get()

    means = compare(*map(results_of, (older, other, result))).table().loc[TASK, METRIC]
    newest = [*(cell for cell in older.cells if cell.seed not in seeds), *result.cells]
    expected = mean_of_images(newest), mean_of_images(other.cells)
    assert sorted(means) == pytest.approx(sorted(expected))
