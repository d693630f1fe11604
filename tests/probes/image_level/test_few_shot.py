"""``few-shot``: the closed form is least squares for every penalty, and leaving an image out is
fitting without it."""

import pytest
import torch
from torch.nn.functional import one_hot, pad

from probes.image_level.neighbours import DEFAULT_L2, LeastSquares, sample_shots
from probes.image_level.neighbours import choose_few_shot as choose
from probes.image_level.probe import FEW_SHOT
from probes.image_level.settings import FewShotSettings
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context


def random_samples(images: int, width: int = 12):
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (images,), generator=random)
    return torch.randn(images, width, generator=random), labels


def solve(x, y, l2):
    """Regularised least squares of rows that are whitened and have their bias."""
    return torch.linalg.solve(x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


@pytest.mark.parametrize("images", [7, 40])
@pytest.mark.parametrize("l2", [0.01, 1.0, 1024.0])
def test_one_decomposition_serves_every_penalty(images, l2):
    features, labels = random_samples(images)
    fits = LeastSquares(features, labels, 3)
    x = features.double()
    x = pad((x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-5), (0, 1), value=100)
    y = 2 * one_hot(labels, 3).double() - 1
    weights = solve(x, y, l2)
    torch.testing.assert_close(fits.weights(l2), weights, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fits.scores(features, l2), x @ weights, rtol=1e-5, atol=1e-6)
    for index in range(images):
        rest = torch.arange(images) != index
        expected = x[index] @ solve(x[rest], y[rest], l2)
        torch.testing.assert_close(fits.leave_one_out(l2)[index], expected, rtol=1e-4, atol=1e-5)


def test_shots_are_of_each_class_and_nested():
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 0, 1, 1])
    few, more = (set(sample_shots(labels, shots, 3).tolist()) for shots in (1, 3))
    assert few < more and len(few) == 3 and len(more) == 7
    assert {labels[index].item() for index in few} == {0, 1, 2}
    assert set(sample_shots(labels, 1, 4).tolist()) != few


def test_one_shot_takes_the_default_penalty():
    features, labels = random_samples(3)[0], torch.arange(3)
    fits = LeastSquares(features, labels, 3)
    assert choose(fits, labels, FewShotSettings())[0] == DEFAULT_L2


def test_it_learns_colours_from_two_images_each(tmp_path):
    root = make.make_imagefolder(tmp_path, 5, 4)
    result = FEW_SHOT.run(context(FEW_SHOT, DATASETS["imagefolder"], root, shots=2))
    assert result.metrics["top1"] == 100
    assert "8 training images" in result.notes[0] and "each left out in turn" in result.notes[0]
    result = FEW_SHOT.run(context(FEW_SHOT, DATASETS["imagefolder"], root, shots=9))
    assert "4 of 4 classes have fewer" in result.notes[1]
