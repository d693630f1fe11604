"""A grid of linear classifiers trained at once equals each trained alone, and is chosen without
using val."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from torch import nn

from cliptex_common.errors import NonFiniteLoss
from probes.image_level.classification import ranks
from probes.image_level.linear import (
    Samples,
    Standardiser,
    train_linear,
    zero_heads,
)
from probes.image_level.probe import LINEAR
from probes.image_level.settings import LinearSettings
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context

CPU = torch.device("cpu")
SMALL = {"epochs": 6, "batch_size": 16, "learning_rates": (0.001, 0.1, 10.0), "holdout": 0.25}


def blobs(samples=120, width=16, classes=5):
    """Features of overlapping classes, badly scaled, one of them constant."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + torch.randn(samples, width, generator=generator)
    features = features * torch.logspace(-3, 3, width) + torch.linspace(-100, 100, width)
    features[:, 0] = 7
    return features, labels


def train(grid, features, labels, epochs=4, batch_size=32):
    settings = LinearSettings(epochs=epochs, batch_size=batch_size)
    samples = Samples(features, labels, 5)
    heads = zero_heads(samples, len(grid), settings, CPU)
    for _ in train_linear(heads, samples, grid, settings, 0):
        pass
    return heads


def test_together_equals_alone():
    features, labels = blobs()
    grid = [(0.001, 0.0), (0.1, 0.0), (1.0, 1e-3), (0.1, 1e-2)]
    together = train(grid, features, labels)
    for index, pair in enumerate(grid):
        alone = train([pair], features, labels)
        for name, tensor in alone.state_dict().items():
            kind = name.partition(".")[0]
            same = together.state_dict()[f"{kind}.{index}"]
            torch.testing.assert_close(same, tensor, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            together(features)[index], alone(features)[0], rtol=1e-4, atol=1e-5
        )


def test_a_diverging_head_does_not_touch_the_others():
    features, labels = blobs()
    together = train([(0.1, 0.0), (1e38, 1e3)], features, labels)
    assert not together.weights[1].isfinite().all()
    alone = train([(0.1, 0.0)], features, labels)
    torch.testing.assert_close(together.weights[0], alone.weights[0])
    with pytest.raises(NonFiniteLoss, match="not finite in epoch"):
        train([(1e38, 1e3)], features, labels)


def test_trained_long_it_is_logistic_regression():
    features, labels = blobs(samples=300)
    ours = train([(2.0, 0.02)], features, labels, epochs=300, batch_size=300)
    inputs = Standardiser.fit(features)(features).numpy().astype(np.float64)
    # sklearn minimises C * sum of losses + |w|^2 / 2: the same with C = 1 / (N * weight decay)
    reference = LogisticRegression(C=1 / (300 * 0.02), tol=1e-8, max_iter=5000)
    reference.fit(inputs, labels.numpy())
    expected = torch.from_numpy(reference.decision_function(inputs)).softmax(dim=1).float()
    torch.testing.assert_close(ours(features)[0].softmax(dim=1), expected, rtol=0, atol=5e-3)


def test_standardised_features_are_those_of_a_batchnorm_without_affine():
    features, _ = blobs()
    ours = Standardiser.fit(features)(features)
    norm = nn.BatchNorm1d(16, eps=1e-15, affine=False, dtype=torch.float64)
    expected = norm(features.double()).float()
    assert (ours[:, 0] == 0).all()  # the constant one
    torch.testing.assert_close(ours[:, 1:], expected[:, 1:], rtol=1e-3, atol=1e-3)
    assert torch.equal(Standardiser.identity(16)(features), features)


def test_ranks_agree_with_sklearn_and_count_ties_against():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 9, generator=generator)
    labels = torch.randint(9, (400,), generator=generator)
    rank = ranks(logits, labels)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(9))
        assert (rank < k).double().mean().item() == pytest.approx(expected)
    assert ranks(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == [3, 3]
    assert ranks(torch.tensor([[torch.nan, 0, 0]]), torch.tensor([0])).tolist() == [2]


def test_the_probe_end_to_end(tmp_path):
    root = make.make_imagefolder(tmp_path, 8, 3)
    task = context(LINEAR, DATASETS["imagefolder"], root, **SMALL)
    result = LINEAR.run(task)
    assert (result.per_image["rank"] == 0).all()
    for name in ("train/loss", "select/top1/lr_0.001", "select/top1/lr_0.1", "select/top1/lr_10"):
        assert [step for step, metrics in task.log.metrics if name in metrics] == [*range(1, 7)]
    assert task.progress.advanced == 4 * 8 + 4 * 3 + 6 + 6
