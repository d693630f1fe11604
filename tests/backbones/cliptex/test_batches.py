"""Training batches: a function of seed and step; nothing is lost, nothing bad is trained on,
nothing held out is seen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_train import CLIPTEX, dataset


def test_batches_lose_nothing_and_do_not_depend_on_ranks_memory_or_workers(pairs, monkeypatch):
    recipe = replace(CLIPTEX, batch_size=10, epochs=5, val_pairs=7)
    batches = partial(dataset, pairs, toy.ToyLabels(), recipe)
    single = batches()
    seen = np.concatenate([single.positions(step)[0] for step in range(len(single))])
    train_pairs = set(range(48)) - set(single.held_out.tolist())
    assert len(train_pairs) == 41
    for epoch in range(5):
        assert set(seen[epoch * 41 : (epoch + 1) * 41].tolist()) == train_pairs
    halves = [batches(rank=rank, world=2) for rank in range(2)]
    remembered = batches()
    assert remembered.cache_in_memory(toy.Recorder())
    threads = list(batches().loader(17, workers=2))
    monkeypatch.setattr("backbones.cliptex.batches.MEMORY_BYTES", 0)
    processes = list(batches().loader(17, workers=2))
    for step in (17, 20):
        halved = [half[step] for half in halves]
        same = [remembered[step], threads[step - 17], processes[step - 17]]
        images = [torch.cat([half.images for half in halved]), *(batch.images for batch in same)]
        assert all(torch.equal(each, single[step].images) for each in images)
        for name, targets in single[step].targets.items():
            others = [torch.cat([half.targets[name] for half in halved])]
            for batch in (*others, *(each.targets[name] for each in same)):
                assert torch.equal(batch.float().nan_to_num(), targets.float().nan_to_num()), name


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_bad_pair_is_never_replaced_by_one_that_is_held_out(tmp_path, in_memory):
    """Its neighbours are held out: the next one that is trained on takes its place. A bad one that
    is held out is left out."""
    recipe = replace(CLIPTEX, val_pairs=60, epochs=1.0)
    held_out = set(dataset(toy.damaged_pairs(tmp_path / "a"), None, recipe).held_out.tolist())
    bad = next(i for i in range(200) if i not in held_out and {i + 1, i + 2} <= held_out)
    data = dataset(toy.damaged_pairs(tmp_path / "b", corrupt=(bad, bad + 1)), None, recipe)
    if in_memory:
        assert data.cache_in_memory(toy.Recorder())
    step, row = next(
        (step, [*data.positions(step)[0]].index(bad))
        for step in range(len(data))
        if bad in data.positions(step)[0]
    )
    replacement = next(i for i in range(bad + 1, 200) if i not in held_out)
    assert [key for key, _ in data[step].bad] == [f"00000/{bad:09d}"]
    assert torch.equal(data[step].tokens[row], data.tokenizer([toy.scene(replacement)[1]])[0])
    assert sum(len(batch.images) for batch in data.validation(16)) == 59


def test_an_empty_caption_is_not_trained_on(tmp_path):
    data = dataset(toy.damaged_pairs(tmp_path, 40, silent=(7,)), None, CLIPTEX)
    bad = {failure for step in range(len(data)) for failure in data[step].bad}
    assert bad == {("00000/000000007", "its caption is empty")}


def test_only_labels_that_are_used_are_read(pairs):
    requested = []

    class Watched(toy.ToyLabels):
        def get(self, key, tasks=None):
            requested.append(tasks)
            return super().get(key, tasks)

    batch = dataset(pairs, Watched(), CLIPTEX.changed({"lambda_seg": 0.0}))[0]
    assert set(batch.targets) == {"depth", "normal"} and set(requested) == {("depth", "normal")}
