"""The table at the end of a run: whole numbers wherever it is printed, and nothing said twice."""

from __future__ import annotations

from types import SimpleNamespace

from benchmark.execution.progress import console
from benchmark.records import Cell
from benchmark.results.table import merged_notes, show
from reports.metrics import Metric


def test_masks_have_a_row_of_their_own():
    metrics = {"bbox_mAP": Metric(), "bbox_mAP_50": Metric(), "segm_mAP": Metric(shown=True)}
    task = SimpleNamespace(
        name="coco/mask-rcnn",
        spec=SimpleNamespace(kind="detection"),
        probe=SimpleNamespace(metrics=metrics),
    )
    with console.capture() as output:
        show([task], [Cell("clip", task.name, 0, "done", dict.fromkeys(metrics, 1.0))])
    assert (
        "bbox_mAP ↑" in output.get()
        and "segm_mAP ↑" in output.get()
        and "mAP_50" not in output.get()
    )


def test_numbers_stay_whole_in_a_log_file_and_what_is_true_of_all_is_said_once(monkeypatch):
    monkeypatch.setattr(console, "_width", 40)
    spec = SimpleNamespace(kind="depth")
    task = SimpleNamespace(
        name="a-dataset-with-a-name/linear",
        spec=spec,
        probe=SimpleNamespace(metrics={"abs_rel": Metric(-1), "rmse": Metric(-1, shown=True)}),
    )
    cells = [
        Cell(
            name,
            task.name,
            seed,
            "done",
            {"abs_rel": 0.5 + 0.1 * seed, "rmse": 1.0},
            notes=["the same", f"{name} own"],
        )
        for name in ("clip", "clip-ft", "cliptex")
        for seed in (0, 1)
    ]
    with console.capture() as output:
        show([task], cells)
    lines = output.get().splitlines()
    assert any(line.count("0.550 ± 0.050") == 3 and task.name in line for line in lines)
    assert sum("the same" in line for line in lines) == 1
    assert sum("clip-ft own" in line for line in lines) == 1


def test_notes_that_differ_in_numbers_are_one_with_their_range():
    cells = [
        Cell("clip", "t", 0, "done", notes=["rate 0.1, top-1 of 3 (k2)", "odd"]),
        Cell("clip", "t", 1, "done", notes=["rate 1e-3, top-1 of 3 (k2)"]),
        Cell("mine", "t", 0, "done", notes=["rate 0.01, top-1 of 3 (k2)"]),
        Cell("mine", "t", 1, "failed"),
    ]
    assert merged_notes(cells) == [("", "rate 1e-3–0.1, top-1 of 3 (k2)"), (" · clip", "odd")]
