"""Choosing on a held-out part of train: which images, which candidate, and what is reported."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptex_common.errors import UserError
from probes.select import Candidate, log_scores, select_candidate, stratified_split
from tests.recorder import Recorder


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_stratified_split(counts, share, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    if max(counts) == 1:
        with pytest.raises(UserError, match="leaves none to choose a setting on; do so"):
            stratified_split(labels, share, seed, "do so")
        return
    training, held_out = stratified_split(labels, share, seed, "")
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        number = int((labels[held_out] == label).sum())
        assert min(1, count - 1) <= number < count
        assert abs(number - share * count) <= 1
    repeated, _ = stratified_split(labels, share, seed, "")
    assert torch.equal(training, repeated)


@pytest.mark.parametrize(
    ("scores", "losses", "direction", "best"),
    [
        ([0.5, 0.7, 0.6], [0.0, 0.0, 0.0], -1, 0),
        ([70.0, 70.0, 70.0], [0.0, 0.0, 0.0], 1, 0),
        ([70.0, 70.0, 60.0], [0.3, 0.2, 0.1], 1, 1),
        ([math.nan, 90.0, 60.0], [0.0, math.inf, 0.1], 1, 2),
    ],
)
def test_the_best_candidate(scores, losses, direction, best):
    rates = (0.1, 1.0, 10.0)
    candidates = [
        Candidate(rate, f"lr_{rate:g}", score, loss, rate)
        for rate, score, loss in zip(rates, scores, losses, strict=True)
    ]
    chosen, note = select_candidate(candidates, "top1", 9, direction)
    assert chosen is candidates[best]
    assert note.startswith(f"best of 3 on 9 held-out training images (top1 {scores[best]:.4g})")
    edge = {0: "the lowest of its grid", 1: None, 2: "the highest of its grid"}[best]
    assert edge in note if edge else "grid" not in note
    log = Recorder()
    log_scores(log, "top1", candidates[1:], 7)
    assert log.metrics == [(7, {"select/top1/lr_1": scores[1], "select/top1/lr_10": scores[2]})]
