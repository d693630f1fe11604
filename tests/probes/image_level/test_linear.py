"""A grid of linear classifiers trained at once equals each trained alone, and is chosen without a
look at val."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import probes.catalog  # noqa: F401
from common.errors import NonFiniteLoss, UserError
from probes.datasets.base import Sample
from probes.image_level.classification import score
from probes.image_level.linear import Samples, Standardiser, ranks, stratified_split, train_linear
from probes.image_level.probe import LINEAR
from probes.image_level.settings import LinearSettings
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import context

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


def blobs(samples=120, width=16, classes=5, seed=0):
    """Features of overlapping classes, badly scaled, one of them constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + torch.randn(samples, width, generator=generator)
    features = features * torch.logspace(-3, 3, width) + torch.linspace(-100, 100, width)
    features[:, 0] = 7
    return features, labels


def train(rates, decays, features, labels, epochs=4, batch=32, **options):
    grid = list(zip(rates, decays, strict=True))
    how = LinearSettings(epochs=epochs, batch_size=batch, **options)
    return train_linear(Samples(features, labels, 5), grid, how, 0, CPU)


def test_together_equals_alone():
    features, labels = blobs()
    rates, decays = [0.001, 0.1, 1.0, 0.1], [0.0, 0.0, 1e-3, 1e-2]
    together = train(rates, decays, features, labels)
    for index, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        alone = train([rate], [decay], features, labels)
        torch.testing.assert_close(
            together.weight[:, index], alone.weight[:, 0], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(together.bias[index], alone.bias[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            together.logits(features)[index], alone.logits(features)[0], rtol=1e-4, atol=1e-5
        )


def test_a_diverging_one_does_not_touch_the_others():
    features, labels = blobs()
    together = train([0.1, 1e38], [0.0, 1e3], features, labels)
    assert not together.weight[:, 1].isfinite().all()
    torch.testing.assert_close(
        together.weight[:, 0], train([0.1], [0.0], features, labels).weight[:, 0]
    )
    with pytest.raises(NonFiniteLoss, match="not finite in epoch"):
        train([1e38], [1e3], features, labels)


def test_the_hand_written_step_is_torch_sgd():
    features, labels = blobs()
    samples, epochs, batch = Samples(features, labels, 5), 3, 50
    ours = train_linear(
        samples, [(0.5, 0.01)], LinearSettings(epochs=epochs, batch_size=batch), 3, CPU
    )
    inputs = Standardiser.fit(samples)(features)
    layer = nn.Linear(16, 5)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias]}]
    optimiser = torch.optim.SGD(groups, lr=0.5 * batch / 256, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * 3)
    order = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        for picked in torch.randperm(120, generator=order).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(inputs[picked]), labels[picked]).backward()
            optimiser.step()
            cosine.step()
    torch.testing.assert_close(ours.weight[:, 0], layer.weight.T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bias[0], layer.bias, rtol=1e-4, atol=1e-6)


def test_trained_long_it_is_logistic_regression():
    features, labels = blobs(samples=300)
    ours = train([2.0], [0.02], features, labels, epochs=300, batch=300)
    inputs = Standardiser.fit(Samples(features, labels, 5))(features).numpy().astype(np.float64)
    # sklearn minimises C * sum of losses + |w|^2 / 2: the same with C = 1 / (N * weight decay)
    reference = LogisticRegression(C=1 / (300 * 0.02), tol=1e-8, max_iter=5000).fit(
        inputs, labels.numpy()
    )
    wanted = torch.from_numpy(reference.decision_function(inputs)).softmax(dim=1).float()
    torch.testing.assert_close(ours.logits(features)[0].softmax(dim=1), wanted, rtol=0, atol=5e-3)


def test_standardised_features_are_those_of_a_batchnorm_without_affine():
    features, labels = blobs()
    ours = Standardiser.fit(Samples(features, labels, 5))(features)
    norm = nn.BatchNorm1d(16, eps=1e-15, affine=False, dtype=torch.float64)
    wanted = norm(features.double()).float()
    assert (ours[:, 0] == 0).all()  # the constant one
    torch.testing.assert_close(ours[:, 1:], wanted[:, 1:], rtol=1e-3, atol=1e-3)
    assert torch.equal(Standardiser.identity(16)(features), features)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_stratified_split(counts, share, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    kept, held = stratified_split(labels, share, seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        number = int((labels[held] == label).sum())
        assert number < count
        assert number >= 1 or count == 1
        assert abs(number - share * count) <= 1
    again = stratified_split(labels, share, seed)
    assert torch.equal(kept, again[0])
    assert torch.equal(held, again[1])


def test_ranks_agree_with_sklearn_and_count_ties_against():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(400, 9, generator=generator),
        torch.randint(9, (400,), generator=generator),
    )
    rank = ranks(logits, labels)
    for k in (1, 3, 5):
        wanted = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(9))
        assert (rank < k).double().mean().item() == pytest.approx(wanted)
    assert ranks(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == [3, 3]
    assert ranks(torch.tensor([[torch.nan, 0, 0]]), torch.tensor([0])).tolist() == [2]


def test_top5_only_with_more_than_five_classes():
    around = SimpleNamespace(
        data=SimpleNamespace(samples={"val": [Sample("a", 0), Sample("b", 1)]})
    )
    right = score(around, torch.eye(5)[:2]).metrics
    assert "top5" not in right and set(right.values()) == {100.0}
    result = score(around, torch.tensor([[0, 1, 2, 3, 4, 5.0], [0, 9, 1, 2, 3, 4.0]]))
    assert (result.metrics["top1"], result.metrics["top5"]) == (50.0, 50.0)
    assert result.per_image["rank"].tolist() == [5, 0]


SMALL = {"epochs": 6, "batch_size": 16, "learning_rates": (0.001, 0.1, 10.0), "holdout": 0.25}


def test_the_probe_end_to_end(tmp_path):
    root = make.make_imagefolder(tmp_path, 8, 3)
    probe = LINEAR
    around = context(probe, DATASETS["imagefolder"], root, **SMALL)
    before = {name: value.clone() for name, value in around.backbone.state_dict().items()}
    with FlopCounterMode(display=False) as everything:
        result = probe.run(around)
    assert result.metrics == {"top1": 100.0}
    assert result.per_image["image"].tolist() == [
        sample.image for sample in around.data.samples["val"]
    ]
    assert (result.per_image["rank"] == 0).all()
    assert result.cost["encode_images_per_second"] > 0 and result.cost["encode_flops"] > 0
    assert result.cost["flops"] == everything.get_total_flops() > result.cost["train_flops"] > 0
    assert "held-out training images" in result.notes[0]
    assert json.loads(result.config)["settings"]["epochs"] == 6
    curves = {
        name: [step for step, metrics in around.log.curves if name in metrics]
        for name in (
            "train/loss",
            "select/top1/lr_0.001",
            "select/top1/lr_0.1",
            "select/top1/lr_10",
        )
    }
    assert all(steps == [1, 2, 3, 4, 5, 6] for steps in curves.values())
    assert around.progress.done == 4 * 8 + 4 * 3 + 6 + 6
    assert all(
        torch.equal(value, before[name]) for name, value in around.backbone.state_dict().items()
    )

    again = probe.run(context(probe, DATASETS["imagefolder"], root, workers=2, **SMALL))
    assert again.metrics == result.metrics
    assert again.notes == result.notes
    assert again.cost["encode_flops"] == again.cost["encode_seconds"] == 0  # all was there
    assert again.cost["flops"] == result.cost["flops"] - result.cost["encode_flops"]


def test_the_choice_does_not_depend_on_val(tmp_path):
    """Val with permuted labels, other images, or far more of them: the same classifier is chosen
    and trained."""
    probe, spec = LINEAR, DATASETS["imagefolder"]
    root = make.make_imagefolder(tmp_path / "a", 8, 3)
    around = context(probe, spec, root, **SMALL)
    wanted = probe.run(around)
    for colour, other in zip(
        ("red", "green", "blue", "white"), ("green", "blue", "white", "red"), strict=True
    ):
        (root / "val" / colour).rename(root / "val" / f"_{other}")
    for folder in list((root / "val").iterdir()):
        folder.rename(folder.with_name(folder.name[1:]))
    elsewhere = context(probe, spec, root, **SMALL)
    result = probe.run(elsewhere)
    assert result.metrics["top1"] == 0.0  # every label of val is wrong now
    assert result.notes == wanted.notes
    assert elsewhere.log.curves == around.log.curves


def test_one_learning_rate_needs_no_choice(tmp_path):
    root = make.make_imagefolder(tmp_path, 1, 1)
    probe, spec = LINEAR, DATASETS["imagefolder"]
    around = context(probe, spec, root, **{**SMALL, "learning_rates": (0.1,)})
    assert "given" in probe.run(around).notes[0]
    with pytest.raises(UserError, match="only one training image"):
        probe.run(context(probe, spec, root, **SMALL))


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rates": ()},
        {"learning_rates": (-1.0,)},
        {"weight_decays": (-0.1,)},
        {"epochs": 0},
        {"holdout": 1.0},
        {"batch_size": 0},
        {"encode_batch_size": 0},
        {"size": 0},
        {"precision": "fp16"},
    ],
)
def test_settings_that_make_no_sense(settings):
    """Known when they are read, before a dataset of a million images is looked at."""
    with pytest.raises(UserError, match=f"linear|{next(iter(settings))}="):
        LinearSettings(**settings)


def test_defaults_are_protocol_and_frozen():
    defaults = LinearSettings()
    json.dumps(defaults.__dict__)
    with pytest.raises(AttributeError):
        defaults.epochs = 1
