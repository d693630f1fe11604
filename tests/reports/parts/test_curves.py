"""Learning curves: which columns are one task's, and that a task counts once in means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.parts.curves import learning_curves
from tests.reports.synthetic import stored_run

pytestmark = pytest.mark.integration

TASKS = {
    "voc/linear:0.01": {"train_share": "0.01"},
    "voc/linear": {},
    "voc/linear:0.1": {"train_share": "0.1"},
    "pets/few-shot:1": {"shots": "1"},
    "pets/few-shot": {"shots": "10"},
    "ade20k/linear": {},
}


def test_a_curve_for_each_task_with_variants(analysis_of):
    runs = []
    for backbone, quality in (("clip", 50.0), ("mine", 60.0)):
        for task, params in TASKS.items():
            run = stored_run(len(runs), backbone, task, 0, quality + len(params), protocol=task)
            runs.append(replace(run, params=params))
    analysis = analysis_of(runs)
    shots, share = sorted(learning_curves(analysis), key=lambda figure: figure.title)
    assert (share.title, shots.title) == ("voc/linear", "pets/few-shot")
    assert [line["x"] for line in share.spec["data"]] == [[0.01, 0.1, 1.0]] * 2
    assert share.spec["layout"]["xaxis"]["ticktext"] == ["1 %", "10 %", "100 %"]
    assert [line["x"] for line in shots.spec["data"]] == [[1.0, 10.0]] * 2
    assert "training images of each class" in shots.caption
    assert "clip: 51.00 (no interval) at 1 %" in share.alt
    assert len(analysis.tasks("mine")) == 3
    gain = analysis.gains["mine"]
    gains = {column.task: analysis.task_gains["mine", column].value for column in gain.columns}
    means = []
    for base in ("voc", "pets", "ade20k"):
        values = [value for task, value in gains.items() if task.startswith(base)]
        means.append(sum(values) / len(values))
    assert gain.mean.value == pytest.approx(sum(means) / 3)
