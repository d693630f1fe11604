"""The attentive probe reads the patches, not only their mean, and ends the same wherever it
resumes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from probes.image_level.probe import ATTENTIVE, LINEAR
from probes.predictor import load_predictor
from probes.registry import DATASETS
from tests.probes.whole_images import Colours, context

pytestmark = pytest.mark.integration

SMALL = {
    "learning_rates": (0.00001, 0.02),
    "epochs": 12,
    "batch_size": 16,
    "size": 32,
    "holdout": 0.25,
}


@pytest.fixture
def root(tmp_path):
    """Classes differ by whether a red and a green patch come together, or two of both in one: their
    means agree."""
    rng = np.random.default_rng(0)
    colours = {"mixed": ([200, 200, 0], [0, 0, 0]), "pure": ([200, 0, 0], [0, 200, 0])}
    for split, count in (("train", 12), ("val", 6)):
        for name, pair in colours.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pattern = rng.permutation(16).reshape(4, 4, 1) % 2
                cells = np.where(pattern, *np.array(pair)).astype(np.uint8)
                Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(folder / f"{index}.png")
    return tmp_path


def task_of(root, probe=ATTENTIVE, **settings):
    return context(probe, DATASETS["imagefolder"], root, backbone=Colours(cnn=True), **settings)


def test_it_reads_what_a_mean_does_not(root):
    task = task_of(root, **SMALL)
    result = ATTENTIVE.run(task)
    linear = LINEAR.run(task_of(root, LINEAR, size=32, epochs=5))
    assert linear.metrics["top1"] < 80  # on the means
    assert result.metrics["top1"] == 100.0
    note = result.notes[0]
    assert "learning rate 0.02: best of 2 on 6 held-out training images (top1 100)" in note
    curves = {name for _, metrics in task.log.metrics for name in metrics}
    assert {"train/loss", "select/top1/lr_0.02"} <= curves
    assert task.cost.metrics()["encode_images_per_second"] > 0


def test_a_head_with_a_query_predicts_again(root, tmp_path):
    changes = {"pool": "query", "weight_decays": (0.0, 0.01), "decay_biases": False, "warmup": 0.1}
    task = task_of(root, **SMALL, **changes)
    result = ATTENTIVE.run(task)
    path = tmp_path / "head.safetensors"
    result.head.write(path)
    predict = load_predictor(path, task.backbone)
    samples = task.data.samples["val"]
    logits = np.stack([predict(root / sample.image) for sample in samples])
    hits = logits.argmax(1) == [sample.target for sample in samples]
    assert 100 * hits.mean() == pytest.approx(result.metrics["top1"])


def test_advice_where_no_image_is_left_to_choose_on(root):
    for path in root.glob("train/*/[1-9]*.png"):
        path.unlink()
    with pytest.raises(UserError, match="add images, or use linear"):
        ATTENTIVE.run(task_of(root, **SMALL))
