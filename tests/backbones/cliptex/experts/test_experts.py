"""Experts: the AngMF likelihood, the contract that each one keeps, training, and their accuracy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from transformers import DPTConfig, DPTForDepthEstimation
from transformers.modeling_outputs import DepthEstimatorOutput

from backbones.cliptex.experts import (
    EXPERTS,
    angmf,
    evaluate,
    find_expert,
    fit,
    load_experts,
    train_expert,
)
from backbones.cliptex.experts.base import Expert
from backbones.cliptex.experts.data import load_data
from backbones.cliptex.experts.dpt import DPT, DPTSettings
from backbones.cliptex.experts.fit import FitRun
from backbones.cliptex.experts.unet import scaled
from backbones.cliptex.protocols import Silent
from common.errors import UserError
from tests.backbones.cliptex.experts import toy_experts

NAMES = ("unet", "dpt", "nll-angmf")
QUIET = FitRun(Silent(), Silent())


def unit(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1
    )


# ---------------------------------------------------------------- AngMF


@pytest.mark.parametrize("kappa", [0.0, 0.01, 0.5, 1.0, 3.0, 10.0, 50.0, 300.0])
def test_angmf_is_a_density_on_the_sphere(kappa):
    """The integral of exp(-nll) over the sphere is 1, and its mean angle is the closed form."""

    def density(theta: float) -> float:
        mean = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
        normal = torch.tensor([[math.sin(theta), 0.0, math.cos(theta)]], dtype=torch.float64)
        return float(
            torch.exp(-angmf.nll(mean, torch.tensor([kappa], dtype=torch.float64), normal))
        )

    def over(function) -> float:
        peak = min(math.pi, 20 / max(kappa, 1e-3))  # the density falls off within some 1/κ
        return quad(function, 0, peak, limit=200)[0] + quad(function, peak, math.pi, limit=200)[0]

    assert over(lambda t: 2 * math.pi * math.sin(t) * density(t)) == pytest.approx(1, abs=2e-6)
    mean_angle = over(lambda t: 2 * math.pi * math.sin(t) * t * density(t))
    assert float(angmf.expected_angle(torch.tensor(kappa, dtype=torch.float64))) == pytest.approx(
        mean_angle, abs=1e-5
    )


def test_angmf_over_the_sphere_by_sampling():
    """Any mean direction, not only the pole: a uniform average over the sphere times its area is
    1."""
    normal = unit(0, 400_000, 3)
    for seed, kappa in ((1, 0.3), (2, 2.0), (3, 8.0)):
        mean = unit(seed, 1, 3).expand_as(normal)
        value = (
            4
            * math.pi
            * torch.exp(-angmf.nll(mean, torch.full((len(normal),), kappa), normal)).mean()
        )
        assert float(value) == pytest.approx(1, abs=0.03)


def test_angmf_hand_computed():
    mean, normal = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 1.0, 0]])  # θ = π / 2
    kappa = 2.0
    expected = -math.log(
        (kappa**2 + 1)
        * math.exp(-kappa * math.pi / 2)
        / (2 * math.pi * (1 + math.exp(-2 * math.pi)))
    )
    assert float(angmf.nll(mean, torch.tensor([kappa]), normal)) == pytest.approx(
        expected, rel=1e-5
    )


def test_angmf_gradient():
    outputs = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    normal = unit(5, 2, 3, 2, 2)

    def loss(raw):
        mean, kappa = angmf.split(raw)
        return angmf.nll(mean, kappa, normal)

    assert torch.autograd.gradcheck(loss, outputs)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1e4), st.sampled_from([0.0, 1e-8, 1e-4, 1.0, math.pi - 1e-6, math.pi]))
def test_angmf_is_stable(kappa, theta):
    mean = torch.tensor([[0.0, 0, 1]], requires_grad=True)
    normal = torch.tensor([[math.sin(theta), 0, math.cos(theta)]])
    concentration = torch.tensor([kappa], requires_grad=True)
    loss = angmf.nll(mean, concentration, normal).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(concentration.grad).all()


def test_kappa_is_positive():
    mean, kappa = angmf.split(torch.randn(4, 4, 8, 8) * 100)
    assert float(kappa.min()) > 0
    torch.testing.assert_close(mean.norm(dim=1), torch.ones(4, 8, 8))


# ---------------------------------------------------------------- the contract, for every expert


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (40, 56), (64, 48)])
def test_predictions(name, size):
    expert = toy_experts.make_expert(name)
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    labels = expert.predict(images)
    again = expert.predict(images[1:2])
    if expert.task == "seg":
        assert labels["seg"].dtype == np.uint8
        assert set(np.unique(labels["seg"])) <= {0, 1, 2, 255}
        assert labels["seg"].shape == (3, *size)
    elif expert.task == "depth":
        assert labels["depth"].dtype == np.float32
        assert labels["depth"].shape == (3, *size)
        np.testing.assert_allclose(again["depth"][0], labels["depth"][1], atol=1e-5)
    else:
        assert labels["normal"].shape == (3, 3, *size)
        assert labels["confidence"].shape == (3, *size)
        np.testing.assert_allclose(np.linalg.norm(labels["normal"], axis=1), 1, atol=1e-5)
        assert labels["confidence"].min() > 0
    assert not expert.training
    assert not any(parameter.requires_grad for parameter in expert.parameters())


@pytest.mark.parametrize("name", [*NAMES, "dpt on a timm encoder"])
def test_bf16(name):
    """The trunk rounds, what follows it does not: labels differ a little, and are as fine as
    before."""
    kind = find_expert(name.split()[0])
    config = toy_experts.SETTINGS[name] if name in NAMES else toy_experts.SMALL_CONV_DPT
    torch.manual_seed(0)
    classes = ("background", "cup", "chair") if kind.task == "seg" else ()
    expert = kind.create(
        kind.settings_type(**config, **({"score_threshold": 0.0} if classes else {})), classes
    )
    images = torch.from_numpy(toy_experts.picture(3, 64, 64)).permute(2, 0, 1)[None]
    exact = expert.freeze().predict(images)
    (label, rounded), *_ = expert.freeze(bf16=True).predict(images).items()
    exact = exact[label]
    assert rounded.dtype == exact.dtype and not np.array_equal(rounded, exact)
    if kind.task == "seg":
        assert np.mean(rounded == exact) > 0.9
    else:
        assert np.abs(rounded - exact).mean() < 0.02 * np.abs(exact).mean()
        assert len(np.unique(rounded)) > 0.5 * len(
            np.unique(exact)
        )  # bf16 has 256 values between 1 and 2


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    expert = toy_experts.make_expert(name)
    expert.save(tmp_path / "expert", note="kept")
    (back,) = load_experts([f"{name}={tmp_path / 'expert'}"])
    assert back.identity() == expert.identity()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for label, values in expert.predict(images).items():
        np.testing.assert_array_equal(back.predict(images)[label], values)
    other = toy_experts.make_expert(name)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert other.identity() != expert.identity()


def test_damaged_and_wrong_experts_are_one_line(tmp_path):
    toy_experts.make_expert("dpt").save(tmp_path / "e")
    with pytest.raises(UserError, match="holds expert 'dpt', not 'unet'"):
        load_experts([f"unet={tmp_path / 'e'}"])
    weights = tmp_path / "e" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="has changed since"):
        load_experts([f"dpt={tmp_path / 'e'}"])
    weights.write_bytes(bytes(content[:1000]))
    with pytest.raises(UserError, match="does not hold the weights"):
        load_experts([f"dpt={tmp_path / 'e'}"])
    with pytest.raises(UserError, match="no expert in"):
        load_experts([f"unet={tmp_path}"])


def test_names():
    with pytest.raises(UserError, match="no expert 'nll-angfm'; did you mean nll-angmf"):
        find_expert("nll-angfm")
    with pytest.raises(UserError, match="needs its weights"):
        load_experts(["dpt"])
    with pytest.raises(UserError, match="no experts given"):
        load_experts([])
    assert set(NAMES) <= set(EXPERTS.descriptions())


def test_one_expert_a_task(tmp_path):
    toy_experts.make_expert("dpt").save(tmp_path / "e")
    with pytest.raises(UserError, match="both label depth"):
        load_experts([f"dpt={tmp_path / 'e'}", f"dpt={tmp_path / 'e'}"])


def test_a_third_party_brings_an_expert_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "flat_world.py").write_text(
        "import numpy as np, torch\nfrom dataclasses import dataclass\nfrom"
        " backbones.cliptex.experts import Expert\n@dataclass(frozen=True)\nclass Flat:\n    slope:"
        " float = 1.0\nclass FlatWorld(Expert):\n    name, task, settings_type, about ="
        " 'flat-world', 'depth', Flat, 'all is flat'\n    def __init__(self, settings,"
        " classes=()):\n        super().__init__(settings)\n        self.p ="
        " torch.nn.Parameter(torch.ones(1))\n    def predict(self, images):\n        n, _, h, w ="
        " images.shape\n        return {'depth': np.broadcast_to(np.linspace(0, 1, h,"
        " dtype=np.float32)[:, None], (n, h, w)).copy()}\n"
    )
    info = tmp_path / "flat_world-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-world\nVersion: 1\n")
    points = "[cliptex_benchmark.experts]\nflat-world = flat_world:FlatWorld\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(EXPERTS, "_entries", dict(EXPERTS))
    kind = find_expert("flat-world")
    assert issubclass(kind, Expert)
    kind(kind.settings_type()).save(tmp_path / "saved")
    (expert,) = load_experts([f"flat-world={tmp_path / 'saved'}"])
    assert expert.predict(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))["depth"][0, 3, 0] == 1


# ---------------------------------------------------------------- DPT as transformers keeps it


def test_dpt_from_a_transformers_folder(tmp_path):
    expert = toy_experts.make_expert("dpt")
    expert.net.save_pretrained(tmp_path / "hub")
    mean = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(mean))
    (back,) = load_experts([f"dpt={tmp_path / 'hub'}"])
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = DPTForDepthEstimation.from_pretrained(tmp_path / "hub").eval()
    pixels = (images / 255 - torch.tensor(mean["image_mean"]).view(3, 1, 1)) / 0.2
    with torch.no_grad():
        expected = model(pixel_values=pixels).predicted_depth
    np.testing.assert_allclose(back.predict(images)["depth"], expected.numpy(), atol=1e-5)
    back.save(tmp_path / "ours")
    assert load_experts([f"dpt={tmp_path / 'ours'}"])[0].identity() == back.identity()


def test_dpt_on_a_convolutional_encoder(tmp_path):
    kind = find_expert("dpt")
    expert = kind.create(kind.settings_type(**toy_experts.SMALL_CONV_DPT), ()).freeze()
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    depth_ = expert.predict(images)["depth"]
    assert depth_.shape == (2, 40, 56)
    assert depth_.std() > 0.01  # alive behind its final ReLU
    expert.save(tmp_path / "e")
    (back,) = load_experts([f"dpt={tmp_path / 'e'}"])
    assert back.identity() == expert.identity()
    np.testing.assert_array_equal(back.predict(images)["depth"], depth_)


def test_dpt_offline_is_one_line():
    with pytest.raises(UserError, match="no DPT at 'Intel/dpt-large'") as error:
        load_experts(["dpt=Intel/dpt-large"])
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- training

TRAINED = {
    "unet": ({"epochs": 20.0, "lr": 3e-3, "width": 16}, "object_acc", 70.0, 1),
    "dpt": ({"epochs": 30.0, "lr": 2e-3}, "abs_rel", 0.12, -1),
    "nll-angmf": ({"epochs": 20.0, "lr": 3e-3, "width": 16}, "normal_median", 6.0, -1),
}


@pytest.mark.parametrize("name", NAMES)
def test_training_learns_and_is_kept(name, tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=32, val=8)
    changes, metric, goal, sign = TRAINED[name]
    settings = {**toy_experts.SETTINGS[name], "batch_size": 8, "color_jitter": 0.1, **changes}
    found = train_expert(name, root, tmp_path / "out", replace(QUIET, seed=1), settings)
    assert sign * found["accuracy"][metric] > sign * goal, found["accuracy"]
    (expert,) = load_experts([f"{name}={tmp_path / 'out'}"])
    val = load_data(root, expert.task, "val", 32, Silent())
    assert evaluate(expert, val)[metric] == pytest.approx(found["accuracy"][metric], abs=1e-4)
    weights = (tmp_path / "out" / "weights.safetensors").stat().st_mtime_ns
    again = train_expert(name, root, tmp_path / "out", replace(QUIET, seed=1), settings)
    assert again == found
    assert (tmp_path / "out" / "weights.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(UserError, match="holds another expert"):
        train_expert(name, root, tmp_path / "out", replace(QUIET, seed=2), settings)


class _Stop(Silent):
    """A progress bar that interrupts training after some steps, as a Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, description: str, total: int) -> None:
        self.training = description.startswith("training")

    def advance(self, steps: int = 1) -> None:
        self.left -= steps * self.training
        if self.left < 0:
            raise KeyboardInterrupt


def test_training_is_the_same_resumed_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_STEPS", 5)
    root = toy_experts.write_truth(tmp_path / "data", train=16, val=4)
    settings = {**toy_experts.SMALL_UNET, "batch_size": 8, "epochs": 6.0}
    whole = train_expert("nll-angmf", root, tmp_path / "whole", QUIET, settings)
    with pytest.raises(KeyboardInterrupt):
        train_expert("nll-angmf", root, tmp_path / "cut", FitRun(Silent(), _Stop(7)), settings)
    (state,) = (tmp_path / "cut" / "training-state").iterdir()
    saved = torch.load(state, weights_only=True)["spent"]
    assert saved["steps"] == 5
    rest = train_expert("nll-angmf", root, tmp_path / "cut", QUIET, settings)
    assert rest["sha256"] == whole["sha256"]
    assert rest["flops"] == whole["flops"] > 1e7 and rest["seconds"] > saved["seconds"] > 0
    assert not (tmp_path / "cut" / "training-state").exists()


def test_a_loss_that_breaks_says_so(tmp_path):
    root = toy_experts.write_truth(tmp_path / "data", train=16, val=4)
    with pytest.raises(UserError, match="not finite at step"):
        settings = {**toy_experts.SMALL_UNET, "batch_size": 8, "epochs": 40.0, "lr": 1e18}
        train_expert("nll-angmf", root, tmp_path / "out", QUIET, settings)
    with pytest.raises(UserError, match="no setting 'epoch'; did you mean epochs"):
        train_expert("nll-angmf", root, tmp_path / "out", QUIET, {"epoch": "3"})
    with pytest.raises(UserError, match="no timm encoder"):
        train_expert("unet", root, tmp_path / "out", QUIET, {"encoder": "resnet-fifty"})


def test_banners_are_squeezed():
    assert scaled((480, 640), 384) == (384, 512) and scaled((64, 64), 64) == (64, 64)
    assert scaled((1, 1000), 384) == (384, 3072) and scaled((1000, 1), 384) == (3072, 384)


def test_a_hybrid_dpt_predicts():
    """Its backbone (BiT) has no patch size; the net here only stands for a gigabyte of weights."""
    config = DPTConfig(is_hybrid=True)
    assert not hasattr(config.backbone_config, "patch_size")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = config

        def forward(self, pixel_values):
            return DepthEstimatorOutput(predicted_depth=pixel_values.mean(1))

    expert = DPT(DPTSettings(size=64), model=Net())
    expert.register_parameter("one", torch.nn.Parameter(torch.zeros(1)))
    assert expert.predict(torch.zeros(1, 3, 40, 50, dtype=torch.uint8))["depth"].shape == (
        1,
        40,
        50,
    )
