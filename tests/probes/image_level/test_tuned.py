"""Classification with a backbone that trains: it learns more, resumes, and is stored with its
head."""

from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

import backbones
from cliptex_common.errors import NonFiniteLoss, UserError
from cliptex_common.settings import with_changes
from probes.base import Head
from probes.image_level.tuned import head_groups, probe_head
from probes.registry import DATASETS, PROBES
from tests.probes.datasets import make
from tests.probes.whole_images import context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration

SETTINGS = {"epochs": 3, "batch_size": 8, "holdout": 0.25, "size": 64, "drop_path": 0.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make.make_imagefolder(tmp_path_factory.mktemp("images"), 8, 3)


def prepare(root, folder, tune, head="linear", **settings):
    probe, recorder = PROBES[f"classification/{head}"], Recorder()
    create = {"name": "random/timm/test_vit", "seed": 3}
    settings = {**SETTINGS, "tune": tune, "tune_rates": (1e-3,), **settings}
    task = context(probe, DATASETS["imagefolder"], root, **settings)
    folder.mkdir()
    return probe, replace(
        task,
        backbone=backbones.create(**create),
        backbone_config=create,
        work_dir=folder,
        progress=recorder,
        log=recorder,
    )


def test_the_rate_is_chosen_on_held_out_images_and_parts_of_a_batch_give_its_gradient(
    root, tmp_path
):
    probe, task = prepare(root, tmp_path / "a", "blocks:1", tune_rates=())
    result = probe.run(task)
    curves = {name for _, each in task.log.metrics for name in each}
    assert sum("select/top1" in name for name in curves) == 3
    losses = task.log.curve(next(name for name in curves if "train/loss" in name))
    assert losses[-1] < losses[0]
    assert any(name.startswith(Head.PREFIX) for name in result.head.tensors), "its own backbone"
    assert "tuned for this task alone" in result.notes[0]
    assert "learning rate of the backbone" in result.notes[1]
    options = {"epochs": 1, "drop_path": 0.0}
    weights = [
        probe.run(prepare(root, tmp_path / str(parts), "all", accumulate=parts, **options)[1])
        for parts in (1, 3)
    ]
    for name, tensor in weights[0].head.tensors.items():
        assert torch.allclose(tensor, weights[1].head.tensors[name], atol=1e-4), name


def test_it_begins_as_the_frozen_classifier(root, tmp_path):
    """The layer on raw features gives the logits of the head on standardised ones."""
    probe, frozen = prepare(root, tmp_path / "a", "frozen", learning_rates=(0.1,))
    result = probe.run(frozen)
    tensors, every = result.head.tensors, torch.arange(len(frozen.data.samples["train"]))
    layer = probe_head(frozen, every)
    features = torch.randn(5, len(tensors["mean"]))
    expected = (features - tensors["mean"]) * tensors["scale"] @ tensors["weight"] + tensors["bias"]
    assert torch.allclose(layer(features), expected, atol=1e-4)


def test_what_does_not_fit_is_one_line(root, tmp_path):
    for name in ("linear", "attentive"):
        settings = PROBES[f"classification/{name}"].settings_type()
        with pytest.raises(UserError, match="one weight decay"):
            with_changes(settings, {"tune": "all", "weight_decays": "0,0.1"})


def test_a_rate_that_diverges_is_left_out(root, tmp_path):
    probe, task = prepare(root, tmp_path / "a", "all", tune_rates=(1e-3, 1e20))
    result = probe.run(task)
    assert any(note.startswith("learning rate 1e+20 failed: the loss is") for note in result.notes)
    assert any(note.startswith("learning rate of the backbone 0.001") for note in result.notes)
    probe, task = prepare(root, tmp_path / "b", "all", tune_rates=(1e20, 1e21))
    with pytest.raises(NonFiniteLoss):
        probe.run(task)


def test_groups_of_a_head_are_timms():
    head = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    ids = {id(each): name for name, each in head.named_parameters()}

    def decays(groups):
        return {
            ids[id(each)]: group["weight_decay"] for group in groups for each in group["params"]
        }

    assert decays(head_groups(head, 1e-3, 0.05)) == decays(param_groups_weight_decay(head, 0.05))
    assert set(decays(head_groups(head, 1e-3, 0.05, decays_all=True)).values()) == {0.05}
