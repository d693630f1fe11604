"""Records: what they write to MLflow's tags is what they are read from."""

from __future__ import annotations

import pytest

from reports.records import Cell, Metric, ParentRun, Record, read_record

CELL = Cell(
    run_id="r",
    parent="p",
    backbone="clip",
    task="voc/linear:size=448",
    seed=3,
    weights="sha",
    kind="segmentation",
    protocol="hash",
    key="cell",
    partial=True,
    preset="dinov3",
    declared={"mIoU": Metric(), "abs_rel": Metric(-1, "", 0.0, None, shown=True)},
    metrics={"mIoU": 41.5},
    params={"shots": "3"},
    costs={"seconds": 2.0},
)
PARENT = ParentRun(
    run_id="p",
    backbone="cliptex",
    seed=0,
    run_key="key",
    experts=("seg", "depth"),
    main_metrics=("voc/linear/mIoU",),
    protocols={"voc.linear": "hash"},
    reused={"voc.linear": "r"},
    costs={"train_seconds": 2.0},
)
TRIAL = Record(run_id="t", study="lambdas", tags={"study": "lambdas", "trial": "1"})


@pytest.mark.parametrize("record", [CELL, PARENT, TRIAL])
def test_a_record_is_read_from_what_it_wrote(record):
    tags = record.tags or record.to_tags()
    fields = {"run_id": record.run_id, "parent": record.parent}
    assert read_record(tags, record.params, record.all_metrics(), **fields) == record


def test_a_cell_has_the_metrics_that_it_declares_once_it_is_finished():
    logged = {"mIoU": 41.5, "train/loss": 0.1, "select/mIoU/lr_1": 40.0}
    tags, fields = CELL.to_tags(), {"run_id": "r", "parent": "p"}
    cell = read_record(tags, {"max_iters": "9"}, logged, **fields)
    assert (cell.metrics, cell.held_out, cell.params) == ({"mIoU": 41.5}, {"mIoU/lr_1": 40.0}, {})
    running = read_record(tags, {}, logged, status="still running", **fields)
    assert not running.metrics and running.failure == "still running"
    failed = read_record(tags, {}, logged, status="failed", reason="loss is nan", **fields)
    assert failed.failure == "failed: loss is nan"
