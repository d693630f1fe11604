"""Heads of a group where the memory of the device ends: each fails for its own sake."""

from __future__ import annotations

import weakref

import pytest
import torch

from cliptex_common.errors import OutOfMemory
from probes.base import TaskResult
from probes.registry import PROBES
from probes.train.loop import HeadTrainer
from probes.train.sampling import GroupDataset
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import TinyBackbone
from tests.probes.train import test_together as groups

pytestmark = pytest.mark.integration


@pytest.fixture
def data(tmp_path):
    datasets = {"segmentation": tiny_dense.make(tmp_path / "data", "segmentation", train=5, val=3)}
    return {**datasets, "backbone": TinyBackbone("tiny-cnn", 3, (4, 8, 16, 32))}


def test_the_largest_head_leaves_where_a_batch_does_not_fit(tmp_path, data, monkeypatch):
    large, small = ("segmentation", "pspnet"), ("segmentation", "linear")
    alone = PROBES["/".join(small)].run(groups.task(tmp_path / "alone", data, *small))
    models, alive = [], []
    prepare, create = GroupDataset.batches, HeadTrainer.__init__

    def recorded(trainer, *args):
        create(trainer, *args)
        models.append(weakref.ref(trainer.model))

    def batches(dataset, preprocessor, batch, is_training):
        if is_training:
            alive.append([model() is not None for model in models])
            if len(alive) == 3:  # after two steps
                raise torch.OutOfMemoryError("does not fit")
        return prepare(dataset, preprocessor, batch, is_training)

    monkeypatch.setattr(HeadTrainer, "__init__", recorded)
    monkeypatch.setattr(GroupDataset, "batches", batches)
    contexts = {key: groups.task(tmp_path / "group", data, *key) for key in (large, small)}
    outcomes = groups.together(contexts)
    assert isinstance(outcomes[large], OutOfMemory) and "lower batch_size" in str(outcomes[large])
    assert isinstance(outcomes[small], TaskResult)
    assert outcomes[small].metrics == alone.metrics
    assert alive[2:] == [[True, True]] + [[False, True]] * 4, "the batch is prepared again"
