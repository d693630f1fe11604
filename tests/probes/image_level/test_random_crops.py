"""DINOv2's linear heads: the same samples and numbers wherever training resumes, and what each head
reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probes.catalog  # noqa: F401
from probes.image_level.linear import RandomCrops, create_heads
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


def test_end_to_end(root):
    task = crops_task(root)
    result = LINEAR.run(task)
    assert result.metrics["top1"] > 60  # four colours
    assert "best of 12 on 8 held-out training images" in result.notes[0]
    assert "DINOv2 itself chooses the head on val" in result.notes[1]
    names = {name for _, metrics in task.log.metrics for name in metrics}
    curves = {"select/top1/blocks_2_avgpool_lr_3", "select/top1/blocks_1_lr_0.001"}
    assert {"train/loss", *curves} <= names
    assert task.cost.metrics()["train_seconds"] > 0


def test_a_state_of_another_training_is_not_resumed(root, caplog):
    first = crops_task(root)
    expected = LINEAR.run(first)
    LINEAR.run(replace(crops_task(root), seed=5))
    caplog.clear()
    again = crops_task(root)
    assert LINEAR.run(again).metrics == expected.metrics
    assert again.log.metrics == first.log.metrics and "starting anew" in caplog.text


def test_crops_depend_on_the_seed_and_their_number_alone(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    task = crops_task(root)
    first, second = (RandomCrops(task, paths, torch.clone) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops = [first.load(item) for item in range(2 * len(paths))]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert all(torch.equal(second.load(item), crops[item]) for item in reversed(range(len(crops))))
    for epoch in range(2):
        order = [first.index(epoch * len(paths) + position) for position in range(len(paths))]
        assert sorted(order) == list(range(len(paths)))
    other = RandomCrops(replace(task, seed=2), paths, torch.clone)
    assert not torch.equal(other.load(0), crops[0])


def test_a_head_starts_the_same_alone_and_among_others(root):
    among = create_heads(crops_task(root))
    alone = create_heads(crops_task(root, blocks=(2,), average_pool=(True,), learning_rates=(0.1,)))
    assert {heads.name: heads.columns for heads in among} == {
        "blocks_1_": slice(3, 6),
        "blocks_1_avgpool_": slice(3, 9),
        "blocks_2_": slice(0, 6),
        "blocks_2_avgpool_": slice(0, 9),
    }
    assert torch.equal(among[3].weights[1], alone[0].weights[0])
    assert 0.005 < among[3].weights[0].std() < 0.02


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
