"""Probes of whole images choose on a held-out part of train; val has no say."""

from itertools import product

import numpy as np
import pytest

from cliptex_common.errors import UserError
from probes.image_level.probe import ATTENTIVE, KNN, LINEAR
from probes.predictor import load_predictor
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context, with_wrong_labels

pytestmark = pytest.mark.integration

GRID = {"epochs": 12, "batch_size": 16, "learning_rates": (1e-5, 0.02), "holdout": 0.25}


def task_of(root, probe, **settings):
    return context(probe, DATASETS["imagefolder"], root, backbone=Colours(cnn=True), **settings)


@pytest.mark.parametrize(
    ("probe", "settings", "note"),
    [
        (KNN, {"neighbours": (1, 3, 100)}, "best of 3 on 4 held-out training images (top1 100)"),
        (LINEAR, GRID, "best of 2 on 8 held-out training images (top1 100)"),
        (ATTENTIVE, GRID, "best of 2 on 8 held-out training images (top1 "),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_choice_follows_from_train_alone(tmp_path, probe, settings, note):
    task = task_of(make.make_imagefolder(tmp_path, 8, 3), probe, **settings)
    result = probe.run(task)
    assert note in result.notes[0]
    relabelled = with_wrong_labels(task)
    wrong = probe.run(relabelled)
    assert wrong.notes == result.notes and wrong.metrics["top1"] < result.metrics["top1"]
    assert relabelled.log.metrics[-1] == task.log.metrics[-1]


def test_one_image_a_class_leaves_none_to_choose_on(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 2)
    for probe, advice in ((KNN, "set neighbours=10"), (ATTENTIVE, "add images, or use linear")):
        with pytest.raises(UserError, match=advice):
            probe.run(task_of(root, probe))
    assert KNN.run(task_of(root, KNN, neighbours=(1,))).metrics["top1"] == 100


@pytest.mark.parametrize(("pool", "least"), [("latent", 80), ("query", 0)])
def test_the_attentive_probe_reads_what_a_mean_does_not(tmp_path, pool, least):
    """Classes differ by whether red and green come together in a patch; their means agree. The
    stored head predicts again."""
    rng = np.random.default_rng(0)
    colours = {"mixed": ([200, 200, 0], [0, 0, 0]), "pure": ([200, 0, 0], [0, 200, 0])}
    for split, name, index in product(("train", "val"), colours, range(12)):
        pattern = rng.permutation(16).reshape(4, 4, 1) % 2
        cells = np.where(pattern, *np.array(colours[name])).astype(np.uint8)
        make.save(tmp_path / f"{split}/{name}/{index}.png", cells.repeat(8, 0).repeat(8, 1))
    task = task_of(tmp_path, ATTENTIVE, size=32, pool=pool, **GRID)
    result = ATTENTIVE.run(task)
    assert result.metrics["top1"] > least
    result.head.write(tmp_path / "head.safetensors")
    predict = load_predictor(tmp_path / "head.safetensors", task.backbone)
    val = task.data.samples["val"]
    hits = [predict(tmp_path / each.image).argmax() == each.target for each in val]
    assert 100 * np.mean(hits) == pytest.approx(result.metrics["top1"])
