"""The results that ship, against what the suite computes today."""

import json
from collections import defaultdict
from types import SimpleNamespace

from benchmark.options import RunOptions
from benchmark.plan import make_plan
from reports.shared.archive import PROTOCOL
from reports.shared.merge import find_files, shipped, unpack


def test_shipped_results_are_those_of_todays_protocols():
    assert shipped() == ["mini"]
    ((title, content),) = find_files("mini")
    results, _ = unpack(title, content)  # recomputes every metric
    tasks = [run for run in results.runs if run.parent]
    cells = defaultdict(set)
    for run in tasks:
        cells[run.tags["backbone"]].add((run.tags["task"], run.tags["seed"]))
    dense = {f"mini-{name}" for name in ("seg/linear", "det/mask-rcnn", "depth/linear")}
    assert {"random", "clip", "clip-ft", "cliptex"} <= set(cells)
    assert len(cells) >= 8
    for name, done in cells.items():
        assert done >= {(task, str(seed)) for task in dense for seed in range(5)}, name

    stored = {run.tags["task"]: results.json(f"{run.id}/{PROTOCOL}") for run in tasks}
    (precision,) = {conditions["settings"]["precision"] for conditions in stored.values()}
    options = RunOptions(
        backbones=("clip",), suite="mini", overrides={"precision": precision}, device="cpu"
    )
    planned = {task.name: task for task in make_plan(options).tasks}
    assert set(stored) == set(planned)
    for name, conditions in stored.items():
        dataset = conditions["dataset"]
        present = SimpleNamespace(spec=planned[name].spec, **dataset)
        today = json.loads(json.dumps(planned[name].conditions(present)))
        for each in (conditions, today):
            del each["libraries"]
        assert conditions == today, f"{name}: make the shipped file again, see docs/guide/share.md"
