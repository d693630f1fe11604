"""``knn``: val has no say in the number of neighbours. (Golden records prove its votes.)"""

import pytest

import probes.catalog  # noqa: F401
from cliptex_common.errors import UserError
from probes.image_level.probe import KNN
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context, with_wrong_labels


def test_the_number_of_neighbours_is_chosen_on_train(tmp_path):
    root = make.make_imagefolder(tmp_path, 6, 3)
    task = context(KNN, DATASETS["imagefolder"], root, neighbours=(1, 3, 100))
    result = KNN.run(task)
    assert result.metrics["top1"] == 100.0 and (result.per_image["rank"] == 0).all()
    assert "best of 3 on 4 held-out training images (top1 100)" in result.notes[0]
    relabelled = KNN.run(with_wrong_labels(task))
    assert relabelled.notes == result.notes and relabelled.metrics["top1"] == 0


def test_one_image_a_class_leaves_none_to_choose_on(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 2)
    with pytest.raises(UserError, match="set neighbours=10"):
        KNN.run(context(KNN, DATASETS["imagefolder"], root))
    fixed = context(KNN, DATASETS["imagefolder"], root, neighbours=(1,))
    assert KNN.run(fixed).metrics["top1"] == 100
