"""Probes of whole images choose on a held-out part of train; val has no say."""

import pytest

from cliptex_common.errors import UserError
from probes.image_level.probe import ATTENTIVE, KNN, LINEAR
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
