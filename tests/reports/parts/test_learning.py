"""Curves of label efficiency: which columns are one task's, where they stand, and that a task
counts once in means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.analysis import analyse
from reports.mlflow.query import Store
from reports.parts.learning import learning_curves
from reports.selection import select
from tests.reports.synthetic import stored_run


def test_a_curve_for_each_task_with_variants(store):
    runs = []
    tasks = {
        "voc/linear:0.01": {"train_share": "0.01"},
        "voc/linear": {},
        "voc/linear:0.1": {"train_share": "0.1"},
        "pets/few-shot:1": {"shots": "1"},
        "pets/few-shot": {"shots": "10"},
        "ade20k/linear": {},
    }
    for backbone, quality in (("clip", 50.0), ("mine", 60.0)):
        for task, params in tasks.items():
            run = stored_run(len(runs), backbone, task, 0, quality + len(params), protocol=task)
            runs.append(replace(run, params={**run.params, **params}))
    analysis = analyse(Store(store.uri), select(runs, ["x"]))
    shots, share = sorted(learning_curves(analysis), key=lambda figure: figure.title)
    assert (share.title, shots.title) == ("voc/linear", "pets/few-shot")
    assert [line["x"] for line in share.spec["data"]] == [[0.01, 0.1, 1.0]] * 2
    assert share.spec["layout"]["xaxis"]["ticktext"] == ["1 %", "10 %", "100 %"]
    assert [line["x"] for line in shots.spec["data"]] == [[1.0, 10.0]] * 2
    assert (
        "training images of each class" in shots.caption
        and "clip: 51.00 (no interval) at 1 %" in share.alt
    )
    assert len(analysis.tasks("mine")) == 3
    # the gains of ade20k and of the means of the other two, not of six columns
    columns = analysis.gains["mine"].columns
    gains = {c.task: analysis.task_gains["mine", c].value for c in columns}
    of_task = [
        sum(v := [g for t, g in gains.items() if t.startswith(base)]) / len(v)
        for base in ("voc", "pets", "ade20k")
    ]
    assert analysis.gains["mine"].mean.value == pytest.approx(sum(of_task) / 3)
