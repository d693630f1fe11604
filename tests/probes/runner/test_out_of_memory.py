"""Heads of a group where the memory of the device ends: each fails for its own sake."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cliptex_common.errors import OutOfMemory
from probes.base import Cost, TaskResult
from probes.registry import PROBES
from probes.runner import training
from probes.runner.group_data import GroupDataset
from probes.runner.member import Member
from tests.probes import tiny_dense
from tests.probes.runner import test_together as groups
from tests.probes.tiny_mmlab import TinyBackbone

pytestmark = pytest.mark.integration


class Head:
    """Scores the numbers of images; some do not fit, alone or together."""

    def __init__(self, too_large: int | None, most: int) -> None:
        self.too_large, self.most, self.scored = too_large, most, []
        self.index, self.error, self.cost = 0, None, Cost()

    def score(self, batch: dict[str, Any]) -> None:
        samples = batch["data_samples"]
        if len(samples) > self.most or self.too_large in samples:
            raise torch.OutOfMemoryError
        self.scored += samples

    def release(self) -> None: ...


def test_an_image_that_does_not_fit_fails_its_head_once():
    heads = [Head(too_large=0, most=4), Head(too_large=None, most=1)]
    dataset = SimpleNamespace(batches=lambda preprocessor, data, training: [data])
    data = {"inputs": torch.zeros(3, 3, 2, 2).unbind(), "data_samples": [0, 1, 2]}
    training._score(heads, dataset, nn.Identity(), data)
    failed, halved = heads
    assert isinstance(failed.error, OutOfMemory) and failed.scored == []
    assert halved.error is None and halved.scored == [0, 1, 2]


@pytest.fixture
def data(tmp_path):
    datasets = {"segmentation": tiny_dense.make(tmp_path / "data", "segmentation", train=5, val=3)}
    return {**datasets, "backbone": TinyBackbone("tiny-cnn", 3, (4, 8, 16, 32))}


def test_the_largest_head_leaves_where_a_batch_does_not_fit(tmp_path, data, monkeypatch):
    large, small = ("segmentation", "pspnet"), ("segmentation", "linear")
    alone = PROBES["/".join(small)].run(groups.task(tmp_path / "alone", data, *small))
    models, alive = [], []
    prepare, create = GroupDataset.batches, Member.__init__

    def recorded(member, *args):
        create(member, *args)
        models.append(weakref.ref(member.model))

    def batches(dataset, preprocessor, batch, is_training):
        if is_training:
            alive.append([model() is not None for model in models])
            if len(alive) == 3:  # after two steps
                raise torch.OutOfMemoryError("does not fit")
        return prepare(dataset, preprocessor, batch, is_training)

    monkeypatch.setattr(Member, "__init__", recorded)
    monkeypatch.setattr(GroupDataset, "batches", batches)
    contexts = {key: groups.task(tmp_path / "group", data, *key) for key in (large, small)}
    outcomes = groups.together(contexts)
    assert isinstance(outcomes[large], OutOfMemory) and "lower batch_size" in str(outcomes[large])
    assert isinstance(outcomes[small], TaskResult)
    assert outcomes[small].metrics == alone.metrics
    assert alive[2:] == [[True, True]] + [[False, True]] * 4, "the batch is prepared again"
