"""Heads of a group where one fails, or the memory of the device ends: each fails for its own sake,
and leaves the memory to the others."""

import weakref

import pytest
import torch
from mmseg.models.decode_heads import PSPHead

from cliptex_common.errors import NonFiniteLoss, OutOfMemory
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


LARGE, SMALL = ("segmentation", "pspnet"), ("segmentation", "linear")


@pytest.fixture
def alive(monkeypatch):
    """Which heads have a model, at each batch of a training."""
    models, alive = [], []
    prepare, create = GroupDataset.batches, HeadTrainer.__init__

    def recorded(trainer, *args):
        create(trainer, *args)
        models.append(weakref.ref(trainer.model))

    def batches(dataset, preprocessor, batch, is_training):
        if is_training:
            alive.append([model() is not None for model in models])
        return prepare(dataset, preprocessor, batch, is_training)

    monkeypatch.setattr(HeadTrainer, "__init__", recorded)
    monkeypatch.setattr(GroupDataset, "batches", batches)
    return alive


def test_the_largest_head_leaves_where_a_batch_does_not_fit(tmp_path, data, monkeypatch, alive):
    large, small = LARGE, SMALL
    alone = PROBES["/".join(small)].run(groups.task(tmp_path / "alone", data, *small))
    alive.clear()
    prepare = GroupDataset.batches

    def batches(dataset, preprocessor, batch, is_training):
        prepared = prepare(dataset, preprocessor, batch, is_training)
        if is_training and len(alive) == 3:  # after two steps
            raise torch.OutOfMemoryError("does not fit")
        return prepared

    monkeypatch.setattr(GroupDataset, "batches", batches)
    contexts = {key: groups.task(tmp_path / "group", data, *key) for key in (large, small)}
    outcomes = groups.together(contexts)
    assert isinstance(outcomes[large], OutOfMemory) and "lower batch_size" in str(outcomes[large])
    assert isinstance(outcomes[small], TaskResult)
    assert outcomes[small].metrics == alone.metrics
    in_group = [each[1:] for each in alive]
    assert in_group[2:] == [[True, True]] + [[False, True]] * 4, "the batch is prepared again"


@pytest.mark.parametrize("reason", ["it diverges", "a bug"])
def test_a_head_that_failed_leaves_the_memory(tmp_path, data, monkeypatch, alive, reason):
    tensors = []

    def mistake(self, inputs):
        doubled = 2 * inputs[0]
        tensors.append(weakref.ref(doubled))
        raise ZeroDivisionError(reason)

    if reason == "a bug":
        monkeypatch.setattr(PSPHead, "forward", mistake)
    rates = {LARGE: 1e30, SMALL: 0.01}
    contexts = {key: groups.task(tmp_path, data, *key, lr=rates[key]) for key in rates}
    outcomes = groups.together(contexts)
    assert isinstance(outcomes[LARGE], NonFiniteLoss | ZeroDivisionError)
    assert isinstance(outcomes[SMALL], TaskResult)
    assert alive[-1] == [False, True] and not any(tensor() is not None for tensor in tensors)
