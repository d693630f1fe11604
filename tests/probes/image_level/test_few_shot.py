"""``few-shot``: the closed form is least squares for every penalty, and leaving an image out is
fitting without it."""

import pytest
import torch
from torch.nn.functional import one_hot, pad

import probes.catalog  # noqa: F401
from probes.image_level.few_shot import USUAL, Fits, choose, draw
from probes.image_level.probe import FEW_SHOT
from probes.image_level.settings import FewShotSettings
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


def drawn(images: int, width: int = 12):
    random = torch.Generator().manual_seed(0)
    return torch.randn(images, width, generator=random), torch.randint(
        3, (images,), generator=random
    )


def by_hand(x, y, l2):
    """Regularised least squares of rows that are whitened and have their bias."""
    return torch.linalg.solve(x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


@pytest.mark.parametrize("images", [7, 40])
@pytest.mark.parametrize("l2", [0.01, 1.0, 1024.0])
def test_one_decomposition_serves_every_penalty(images, l2):
    features, labels = drawn(images)
    fits = Fits.of(features, labels, 3)
    x = features.double()
    x = pad((x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-5), (0, 1), value=100)
    y = 2 * one_hot(labels, 3).double() - 1
    torch.testing.assert_close(fits.weights(l2), by_hand(x, y, l2), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        fits.scores(features, l2), x @ by_hand(x, y, l2), rtol=1e-5, atol=1e-6
    )
    for place in range(images):
        rest = torch.arange(images) != place
        wanted = x[place] @ by_hand(x[rest], y[rest], l2)
        torch.testing.assert_close(fits.without(l2)[place], wanted, rtol=1e-4, atol=1e-5)


def test_what_is_drawn():
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 0, 1, 1])
    few, more = (set(draw(labels, shots, 3).tolist()) for shots in (1, 3))
    assert few < more and len(few) == 3 and len(more) == 7
    assert {labels[place].item() for place in few} == {0, 1, 2}
    assert set(draw(labels, 1, 4).tolist()) != few


def test_one_shot_takes_the_usual_penalty():
    features, _ = drawn(3)
    labels = torch.arange(3)
    assert choose(Fits.of(features, labels, 3), labels, FewShotSettings())[0] == USUAL


def test_it_learns_colours_from_two_images_each(tmp_path):
    root = make.make_imagefolder(tmp_path, 5, 4)
    result = FEW_SHOT.run(context(FEW_SHOT, DATASETS["imagefolder"], root, shots=2))
    assert result.metrics["top1"] == 100
    assert "8 training images" in result.notes[0] and "leaving each image out" in result.notes[0]
    assert (
        "4 of 4 classes have fewer"
        in FEW_SHOT.run(context(FEW_SHOT, DATASETS["imagefolder"], root, shots=9)).notes[1]
    )
