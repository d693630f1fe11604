"""DINOv2's linear heads: the same samples and numbers wherever training resumes, and what each head
reads."""

from dataclasses import replace

import pytest
import torch

from probes.image_level.linear import RandomCrops
from probes.image_level.probe import LINEAR
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context

pytestmark = pytest.mark.integration

SMALL = {
    "random_crops": True,
    "blocks": (1, 2),
    "average_pool": (False, True),
    "standardise": False,
    "holdout": 0.25,
    "learning_rates": (0.001, 0.1, 3.0),
    "epochs": 3,
    "epoch_length": 4,
    "batch_size": 8,
    "size": 32,
}


@pytest.fixture
def root(tmp_path):
    return make.make_imagefolder(tmp_path / "images", 8, 3)


def crops_task(root, backbone=None, **changes):
    backbone = backbone or Colours(cnn=True)
    settings = {**SMALL, **changes}
    return context(LINEAR, DATASETS["imagefolder"], root, backbone=backbone, **settings)


def test_a_state_of_another_training_is_not_resumed(root, caplog):
    first = crops_task(root)
    expected = LINEAR.run(first)
    LINEAR.run(replace(crops_task(root), seed=5))
    caplog.clear()
    again = crops_task(root)
    assert LINEAR.run(again).metrics == expected.metrics
    assert again.log.metrics == first.log.metrics and "starting anew" in caplog.text


def test_crops_and_their_order_depend_on_the_seed(root):
    paths, task = sorted(root.rglob("*.JPEG")), crops_task(root)
    tasks = [replace(task, seed=seed) for seed in (0, 1)]
    one_image = [RandomCrops(each, paths[:1], torch.clone).load(0) for each in tasks]
    assert not torch.equal(*one_image)
    first, other = (RandomCrops(each, paths, torch.clone) for each in tasks)
    orders = [[crops.index(item) for item in range(len(paths))] for crops in (first, other)]
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(len(paths)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "needs blocks"),
        ({"standardise": True}, "standardise=false"),
        ({"random_crops": False}, "random_crops=true only"),
        ({"blocks": (3,)}, "has 2 blocks or feature maps to read, not 3"),
    ],
)
def test_settings_that_exclude_each_other(root, changes, message):
    with pytest.raises(ValueError, match=message):
        LINEAR.run(crops_task(root, **changes))
