"""The table at the end of a run: whole numbers wherever it is printed, and nothing said twice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from benchmark.progress import console
from benchmark.result import RunResult, _cell, note_lines, show
from benchmark.suites import Suite
from reports.records import Cell, Metric
from reports.tables import Number


def shown(task: str, metrics: dict[str, Metric], cells: list[Cell]) -> str:
    """What is printed of a run with one task."""
    probe = SimpleNamespace(metrics=metrics)
    planned = SimpleNamespace(name=task, probe=probe, main_metric=next(iter(metrics)))
    with console.capture() as output:
        show(RunResult(Suite("own", "", {}), [planned], cells, {}, None))
    return output.get()


def test_masks_have_a_row_of_their_own():
    metrics = {"bbox_mAP": Metric(), "bbox_mAP_50": Metric(), "segm_mAP": Metric(shown=True)}
    values = dict.fromkeys(metrics, 1.0)
    cell = Cell(backbone="clip", task="coco/mask-rcnn", seed=0, metrics=values)
    output = shown("coco/mask-rcnn", metrics, [cell])
    assert "bbox_mAP ↑" in output and "segm_mAP ↑" in output and "mAP_50" not in output
    boxes = cell.model_copy(update={"metrics": {"bbox_mAP": 1.0}})
    assert "segm_mAP" not in shown("coco/mask-rcnn", metrics, [boxes])


def test_numbers_stay_whole_in_a_log_file(monkeypatch):
    monkeypatch.setattr(console, "_width", 40)
    task = "a-dataset-with-a-name/linear"
    cells = [
        Cell(
            backbone=name,
            task=task,
            seed=seed,
            metrics={"abs_rel": 0.5 + 0.1 * seed, "rmse": 1.0},
        )
        for name in ("clip", "clip-ft", "cliptex")
        for seed in (0, 1)
    ]
    output = shown(task, {"abs_rel": Metric(-1), "rmse": Metric(-1, shown=True)}, cells)
    lines = output.splitlines()
    assert any(line.count("0.550") == 3 and task in line for line in lines)


def test_a_missing_number_names_its_seed():
    cells = [
        Cell(backbone="clip", task="a/linear", seed=0, status="failed"),
        Cell(backbone="clip", task="a/linear", seed=1, metrics={"mIoU": 1.0}),
    ]
    assert "failed with seed 0" in shown("a/linear", {"mIoU": Metric()}, cells)
    number = Number("clip", "a/linear", "", "mIoU", 1, 1.0, verdict="win", of_these_weights=True)
    assert str(_cell(replace(number, seeds=1), 2)) == "1.0 △ (1 seed)", "as the page has it"


def test_of_notes_that_differ_in_numbers_the_first_is_shown():
    notes = [
        ("clip", 0, ["rate 0.1, top-1 of 3 (k2)", "odd"]),
        ("clip", 1, ["rate 1e-3, top-1 of 3 (k2)"]),
        ("mine", 0, ["rate 0.01, top-1 of 3 (k2)"]),
        ("mine", 1, []),
    ]
    cells = [Cell(backbone=n, task="t", seed=seed, notes=lines) for n, seed, lines in notes]
    assert note_lines(cells) == [
        " · clip · seed 0: rate 0.1, top-1 of 3 (k2) (and 2 more like it)",
        " · clip · seed 0: odd",
    ]
