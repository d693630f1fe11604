"""DINOv2's linear heads: the same samples and numbers wherever training goes on, and what each head
is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import backbones
import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level import random_crops
from probes.image_level.linear import Grid, Linear, Standardiser
from probes.image_level.probe import LINEAR
from probes.image_level.random_crops import RandomCrops
from probes.image_level.settings import LinearSettings
from probes.protocols.base import find_preset
from probes.registry import DATASETS, find_task
from tests.probes.datasets import make
from tests.probes.whole_images import Bar, Colours, context

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


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def root(tmp_path):
    return make.make_imagefolder(tmp_path / "images", 8, 3)


def around(root, **change):
    return context(
        LINEAR, DATASETS["imagefolder"], root, backbone=Colours(cnn=True), **{**SMALL, **change}
    )


def test_end_to_end(root):
    made = around(root)
    result = LINEAR.run(made)
    assert result.metrics["top1"] > 60  # four colours
    assert "best of 12 heads on 8 held-out training images" in result.notes[0]
    assert "DINOv2 itself chooses the head on val" in result.notes[1]
    assert result.per_image["image"].tolist() == [
        sample.image for sample in made.data.samples["val"]
    ]
    names = {name for _, metrics in made.log.curves for name in metrics}
    assert {
        "train/loss",
        "select/top1/blocks_2_avgpool_lr_3",
        "select/top1/blocks_1_lr_0.001",
    } <= names
    assert result.cost["train_flops"] > 0 and result.cost["encode_images_per_second"] > 0
    again = around(root)
    assert (
        LINEAR.run(again).metrics == result.metrics and again.log.curves[-1] == made.log.curves[-1]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_gone_on_it_ends_the_same(root, monkeypatch, workers):
    monkeypatch.setattr(random_crops, "SAVE_EVERY", 0.0)
    whole = around(root)
    wanted = LINEAR.run(whole)

    class Stop(Bar):
        def advance(self, steps=1):
            super().advance(steps)
            if self.done == 6:
                raise KeyboardInterrupt

    cut = around(root)
    (cut.work_dir / "heads.pt").unlink()
    object.__setattr__(cut, "progress", Stop())
    with pytest.raises(KeyboardInterrupt):
        LINEAR.run(cut)
    assert torch.load(cut.work_dir / "heads.pt", weights_only=True)["iteration"] == 5
    on = around(root)
    object.__setattr__(on, "num_workers", workers)
    result = LINEAR.run(on)
    assert result.metrics == wanted.metrics and result.notes == wanted.notes
    assert on.log.curves == [curve for curve in whole.log.curves if curve[0] > 5]
    assert result.cost["encode_images_per_second"] > 0


def test_the_crops_follow_from_the_seed_and_the_draw(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    data = Colours().data
    first, second = (RandomCrops(paths, (16, 16), data, seed=1) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    crops = [first[draw] for draw in range(2 * len(paths))]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert all(torch.equal(second[draw], crops[draw]) for draw in reversed(range(len(crops))))
    for epoch in range(2):
        order = [first.index(epoch * len(paths) + place) for place in range(len(paths))]
        assert sorted(order) == list(range(len(paths)))
    assert not torch.equal(RandomCrops(paths, (16, 16), data, seed=2)[0], crops[0])


def test_a_head_alone_is_the_head_among_others(root):
    among, alone = (
        around(root),
        around(root, blocks=(2,), average_pool=(True,), learning_rates=(0.1,)),
    )
    heads = [
        random_crops.start(each, [(rate, 0.0) for rate in each.settings.learning_rates], 4)
        for each in (among, alone)
    ]
    assert [kind.name for kind in heads[0]] == [
        "blocks_1",
        "blocks_1_avgpool",
        "blocks_2",
        "blocks_2_avgpool",
    ]
    assert [kind.columns for kind in heads[0]] == [
        slice(3, 6),
        slice(3, 9),
        slice(0, 6),
        slice(0, 9),
    ]
    assert torch.equal(heads[0][3].model.weight[:, 1], heads[1][0].model.weight[:, 0])
    assert 0.005 < heads[0][3].model.weight.std() < 0.02


def test_the_step_is_torch_sgd_on_a_linear_layer_with_a_cosine():
    torch.manual_seed(0)
    inputs, labels = torch.randn(40, 6), torch.randint(5, (40,))
    layer = nn.Linear(6, 5)
    model = Linear(
        Standardiser(torch.zeros(6), torch.ones(6)),
        layer.weight.T.clone()[:, None].detach(),
        layer.bias.clone()[None].detach(),
    )
    grid = Grid(model, [(0.5, 0.0)], batch_size=8)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5 * 8 / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5, eta_min=0)
    for step in range(5):
        part = slice(8 * step, 8 * step + 8)
        loss = nn.functional.cross_entropy(layer(inputs[part]), labels[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        found = grid.step(inputs[part], labels[part], random_crops.cosine(step / 5))
        assert found.item() / 8 == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(model.weight[:, 0], layer.weight.T)
    torch.testing.assert_close(model.bias[0], layer.bias)


def test_a_rate_at_the_edge_is_said(root):
    result = LINEAR.run(
        around(root, learning_rates=(1e-6, 3.0), blocks=(1,), average_pool=(False,))
    )
    assert "the highest rate of its grid: a better one may lie beyond it" in result.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ()}, "needs blocks"),
        ({"blocks": (0,)}, "needs blocks"),
        ({"standardise": True}, "standardise=false"),
        ({"random_crops": False}, "random_crops=true only"),
        ({"blocks": (3,)}, "has 2 blocks or feature maps to read, not 3"),
    ],
)
def test_settings_that_make_no_sense(root, change, message):
    with pytest.raises(UserError, match=message):
        LINEAR.run(around(root, **change))


def test_the_defaults_train_on_embeddings():
    assert not LinearSettings().random_crops and LinearSettings().encoding("cpu").blocks == 0
    assert [LinearSettings().encoding(device).batch_size for device in ("cpu", "cuda")] == [64, 256]


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("random/timm/vit_tiny_patch16_224", (192, 384, 768, 960)),
        ("random/timm/resnet18", (512, 1024, 960, 1472)),
    ],
)
def test_the_preset_dinov2_builds_its_heads_for_each_kind_of_backbone(root, name, widths):
    preset = find_preset("dinov2", *find_task("imagenet/linear"))
    made = context(
        LINEAR, DATASETS["imagefolder"], root, backbone=backbones.create(name), **preset.settings
    )
    settings = made.settings
    rates = [base * 10.0**power for power in range(-5, -1) for base in (1, 2, 5)] + [0.1]
    assert settings.learning_rates == pytest.approx(rates) and len(rates) == 13
    assert random_crops.iterations(made, 1_281_167) == 12_500 and settings.batch_size == 1024
    kinds = random_crops.start(made, [(rate, 0.0) for rate in settings.learning_rates], 4)
    assert tuple(kind.model.weight.shape[0] for kind in kinds) == widths
    assert sum(len(kind.training.rates) for kind in kinds) == 52
    assert kinds[0].training.rates.flatten().tolist() == pytest.approx(
        [4 * rate for rate in rates]
    )  # · 1024 / 256
