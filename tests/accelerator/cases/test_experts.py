"""Every expert labels on an accelerator as on a CPU, and learns there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import probes.experts  # noqa: F401  registers those that need MMDetection
from backbones.cliptex.encoders import PACKAGED
from backbones.cliptex.experts.base import EXPERTS, Expert, load_experts
from backbones.cliptex.experts.fit import train_expert
from backbones.cliptex.experts.published import NllAngMF
from backbones.cliptex.trainer import TrainContext
from cliptex_common.device import CPU
from tests.accelerator.cases.devices import is_pretended
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.experts import toy_experts
from tests.backbones.cliptex.experts.small_mask_rcnn import (
    shrink,
    write_mmdet,
    write_torchvision,
)
from tests.backbones.cliptex.experts.test_dpt import write_model
from tests.kinds import slow_except

NAMES = sorted(EXPERTS.load_entry_points().keys() | EXPERTS.descriptions().keys())


def write_nll_angmf(folder: Path) -> str:
    torch.manual_seed(0)
    path = folder / "scannet.pt"
    torch.save({"model": NllAngMF("BN", size=32).net.state_dict(), "iter": 5000}, path)
    return f"nll-angmf={path}"


# not trained here, but read from files of others: name of the case → writes a file, as EXPERT=FILE
PUBLISHED: dict[str, Callable[[Path], str]] = {
    "dpt": lambda folder: write_model(folder, "dpt"),
    "nll-angmf": write_nll_angmf,
    "mask-rcnn": lambda folder: f"mask-rcnn={write_mmdet(folder)}",
    "mask-rcnn of torchvision": lambda folder: f"mask-rcnn={write_torchvision(folder)}",
}
TRAINED = [name for name in NAMES if name not in PUBLISHED]
PICTURES = torch.stack(
    [torch.from_numpy(toy_experts.picture(seed, 48, 64)).permute(2, 0, 1) for seed in range(2)]
)


def make(name: str, folder: Path) -> Expert:
    """A small expert."""
    if name not in PUBLISHED:
        return toy_experts.make_expert(name)
    (expert,) = load_experts([PUBLISHED[name](folder)])
    if hasattr(expert.net, "transform"):  # torchvision's
        shrink(expert.net)
    if name == "nll-angmf":
        expert.settings = replace(expert.settings, size=32)
    return expert


@pytest.mark.parametrize("name", slow_except([*NAMES, "mask-rcnn of torchvision"], NAMES))
def test_labels_are_those_of_the_cpu(name, tmp_path, device):
    expert = make(name, tmp_path)
    expected = expert.predict(PICTURES)
    actual = expert.freeze(device, bf16=False).predict(PICTURES)
    assert expert.device.type == device.type and actual.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype == np.uint8:
            assert np.mean(actual[name] == values) > 0.99
        else:
            np.testing.assert_allclose(actual[name], values, atol=1e-3, rtol=1e-3)
    rounded = expert.freeze(device).predict(PICTURES)
    assert all(np.isfinite(values).all() for values in rounded.values())


@pytest.mark.parametrize("name", slow_except(TRAINED, ["unet-seg"]))
def test_training_is_that_of_the_cpu_and_resumes_to_the_same_bits(name, tmp_path, device):
    root = toy_experts.write_truth(tmp_path / "data", train=8, val=2)
    settings = {**toy_experts.SMALL_UNET, "batch_size": 4, "epochs": 2.0}

    def train(folder: str, target: torch.device, die_at: int | None = None) -> dict:
        context = TrainContext(device=target, progress=toy.Recorder(die_at=die_at))
        return train_expert(name, root, tmp_path / folder, context, settings)

    complete = train("complete", device)
    with pytest.raises(KeyboardInterrupt):
        train("resumed", device, die_at=3)
    assert train("resumed", device)["sha256"] == complete["sha256"]
    if is_pretended(device):
        expected = train("cpu", CPU)["accuracy"]
        assert complete["accuracy"] == pytest.approx(expected, rel=0.05, abs=0.05)


def test_experts_that_share_a_frozen_encoder(tmp_path, device):
    root = toy_experts.write_truth(tmp_path / "data", train=4, val=2)
    encoder = {"encoder": PACKAGED, "pretrained": True, "frozen": True}
    settings = {**toy_experts.SMALL_UNET, **encoder, "batch_size": 4, "epochs": 1.0}
    context = TrainContext(device=CPU, progress=toy.Recorder())
    specs = []
    for name in ("unet-seg", "unet-normals"):
        train_expert(name, root, tmp_path / name, context, settings)
        specs.append(f"{name}={tmp_path / name}")
    expected = [expert.predict(PICTURES) for expert in load_experts(specs)]
    for expert, labels in zip(load_experts(specs, device), expected, strict=True):
        actual = expert.predict(PICTURES)[expert.task].astype(np.float32)
        assert np.isfinite(actual).all() and actual.shape == labels[expert.task].shape
