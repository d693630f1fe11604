"""The best constant prediction, and the note for a probe that does not beat it."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope

import probes.dense.config  # noqa: F401  registers what configs name
from cliptex_common.images import read_depth, read_normals
from probes.dense.dataset import DenseDataset
from probes.dense.group import best_constant, constant_note
from probes.dense.normals import NormalSettings
from probes.dense.tasks import DENSE_TASKS
from tests.probes import tiny_dense

EVALUATORS = {
    "segmentation": {"type": "TaskScores", "task": "segmentation"},
    "depth": {"type": "TaskScores", "task": "depth", "min_depth": 1e-3},
    "normals": {"type": "TaskScores", "task": "normals"},
}


def test_no_other_constant_does_better_on_the_training_truth(tmp_path):
    data = tiny_dense.make(tmp_path / "depth", "depth")
    depth = np.concatenate(
        [read_depth(str(data.root / s.target), 1e-3).ravel() for s in data.samples["train"]]
    )
    depth = depth[depth > 0]
    best = np.mean(np.abs(best_constant(data) - depth) / depth)
    assert all(
        best <= np.mean(np.abs(constant - depth) / depth) + 1e-9
        for constant in np.linspace(0.5, 6, 200)
    )

    data = tiny_dense.make(tmp_path / "normals", "normals")
    normals = np.concatenate(
        [read_normals(str(data.root / s.target)).reshape(-1, 3) for s in data.samples["train"]]
    )
    mean, random = best_constant(data), np.random.default_rng(0).normal(size=(200, 3))
    assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-5)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert (normals @ mean).mean() >= (normals @ random.T).mean(axis=0).max()


@pytest.mark.parametrize("kind", EVALUATORS)
def test_a_probe_that_is_no_better_gets_a_note(tmp_path, kind):
    data = tiny_dense.make(tmp_path, kind)
    main, metric = next(iter(DENSE_TASKS[kind].metrics.items()))
    areas = np.array([[30, 60, 10], [20, 70, 10]])
    scored = scored_dataset(data)

    metrics = {}

    def note(score):
        metrics[main] = score
        return constant_note(data, None, metrics, {"label": areas}, *scored)

    assert note(metric.direction * 1e6) == note(float("nan")) == []
    (line,) = note(-metric.direction * 1e6)
    assert line.startswith(f"does not beat the best constant prediction: {main}")
    if kind == "segmentation":
        label = int(best_constant(data))
        assert f"{tiny_dense.CLASSES[label]!r} everywhere" in line
        assert note(100 * areas[:, label].sum() / 200 / 3 + 1e-3) == []
        assert note(100 * areas[:, label].sum() / 200 / 3 - 1e-3) != []
        assert metrics["floor_mIoU"] == pytest.approx(100 * areas[:, label].sum() / 200 / 3)


def test_a_constant_is_scored_where_the_probe_is(tmp_path):
    data = tiny_dense.make(tmp_path / "normals/data/normals", "normals")  # only the last is NYU's
    for path in data.root.rglob("truth/**/*.png"):
        depth = np.zeros(cv2.imread(str(path)).shape[:2], np.uint16)
        depth[:8, :8] = 1000  # mm
        stored = Path(str(path).replace("/data/normals/", "/data/annotations/"))
        stored.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(stored), depth)
    lines = [
        constant_note(data, settings, {"normal_mean": 1e6}, {}, *scored_dataset(data, settings))
        for settings in (NormalSettings(), NormalSettings(mask="depth"))
    ]
    assert lines[0] != lines[1]


def scored_dataset(data, settings=None):
    settings = settings or DENSE_TASKS[data.spec.kind].settings()
    _, pipeline = tiny_dense.pipelines(data, settings, (64, 64))
    with DefaultScope.overwrite_default_scope("mmseg"):
        val = DenseDataset(data.spec.name, str(data.root), "val", pipeline, test_mode=True)
    loader = {"dataset": {"pipeline": pipeline}}
    return SimpleNamespace(val_evaluator=EVALUATORS[data.spec.kind], val_dataloader=loader), val
