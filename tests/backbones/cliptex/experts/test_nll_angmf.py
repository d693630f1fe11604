"""NLL-AngMF from its authors' checkpoints: names and shapes, the network's arithmetic, axes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from torch.nn import functional as F

from backbones.cliptex.experts import load_experts
from backbones.cliptex.experts.nll_angmf import PublishedNllAngMF
from backbones.cliptex.experts.uncertainty_guided import UncertaintyGuided, _Up
from cliptex_common.errors import UserError

pytestmark = pytest.mark.integration

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    vectors = {
        f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")
    }
    return {**vectors, f"{name}.num_batches_tracked": ()}


def convolution(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def published_encoder() -> Shapes:
    """EfficientNet-B5 as geffnet names it."""
    top = "encoder.original_model"
    shapes = {**convolution(f"{top}.conv_stem", 48, 3, 3, 3, bias=False), **norm(f"{top}.bn1", 48)}
    kernels, repeats = (3, 3, 5, 3, 5, 5, 3), (3, 5, 5, 7, 7, 9, 3)
    before = 48
    for stage, channels in enumerate((24, 40, 64, 128, 176, 304, 512)):
        kernel = kernels[stage]
        for layer in range(repeats[stage]):
            block, squeezed = f"{top}.blocks.{stage}.{layer}", before // 4
            if stage:
                inner = 6 * before
                norms = [inner, inner, channels]
                shapes |= convolution(f"{block}.conv_pw", inner, before, 1, 1, bias=False)
                shapes |= convolution(f"{block}.conv_pwl", channels, inner, 1, 1, bias=False)
            else:
                inner = before
                norms = [inner, channels]
                shapes |= convolution(f"{block}.conv_pw", channels, inner, 1, 1, bias=False)
            shapes |= convolution(f"{block}.conv_dw", inner, 1, kernel, kernel, bias=False)
            shapes |= convolution(f"{block}.se.conv_reduce", squeezed, inner, 1, 1)
            shapes |= convolution(f"{block}.se.conv_expand", inner, squeezed, 1, 1)
            for number, width in enumerate(norms, 1):
                shapes |= norm(f"{block}.bn{number}", width)
            before = channels
    return {
        **shapes,
        **convolution(f"{top}.conv_head", 2048, 512, 1, 1, bias=False),
        **norm(f"{top}.bn2", 2048),
    }


def published(architecture: str) -> Shapes:
    """Names and shapes of the authors' checkpoints."""
    shapes = published_encoder() | convolution("decoder.conv2", 2048, 2048, 1, 1)
    ups = [(2048 + 176, 1024), (1024 + 64, 512), (512 + 40, 256), (256 + 24, 128)]
    for number, (inputs, outputs) in enumerate(ups, 1):
        net = f"decoder.up{number}._net"
        shapes |= convolution(f"{net}.0", outputs, inputs, 3, 3)
        shapes |= convolution(f"{net}.3", outputs, outputs, 3, 3)
        for layer in (1, 4):
            vectors = {f"{net}.{layer}.{kind}": (outputs,) for kind in ("weight", "bias")}
            shapes |= norm(f"{net}.{layer}", outputs) if architecture == "BN" else vectors
    shapes |= convolution("decoder.out_conv_res8", 4, 512, 3, 3)
    for stride, width in ((4, 512), (2, 256), (1, 128)):
        widths = (width + 4, 128, 128, 128, 4)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            shapes |= convolution(f"decoder.out_conv_res{stride}.{2 * layer}", outputs, inputs, 1)
    return shapes


@pytest.mark.parametrize("architecture", ["BN", "GN"])
def test_names_and_shapes_are_the_published_ones(architecture):
    with torch.device("meta"):
        output = UncertaintyGuided(architecture).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in output.items()} == published(architecture)


def random_state(architecture: str) -> dict[str, torch.Tensor]:
    """A state dict of the published names and shapes that keeps the scale of activations."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published(architecture).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith(("running_var", "weight")) and len(shape) == 1:
            state[name] = 0.8 + 0.4 * torch.rand(shape, generator=generator)
        elif len(shape) == 1:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
        else:
            gain = (3.0 if "out_conv" in name else 1.0) * float(np.prod(shape[1:])) ** -0.5
            state[name] = gain * torch.randn(shape, generator=generator)
    return state


def test_a_checkpoint_of_the_authors(tmp_path):
    """As saved from several GPUs; its numbers are the authors', with x negated."""
    state = {f"module.{name}": tensor for name, tensor in random_state("BN").items()}
    path = tmp_path / "scannet.pt"
    torch.save({"model": state, "iter": 5000}, path)
    (expert,) = load_experts([f"nll-angmf={path}"])
    assert expert.identity()["settings"]["norm"] == "BN" and not expert.training
    expert.settings = replace(expert.settings, size=64)  # small, for the test
    torch.manual_seed(1)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    output = expert.predict(images)
    pixels = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        normal, kappa = reference(expert.net, pixels)
    np.testing.assert_allclose(
        output["normal"] * np.array([-1, 1, 1])[:, None, None], normal.numpy(), atol=1e-3
    )
    np.testing.assert_allclose(output["confidence"], kappa.numpy(), atol=1e-3, rtol=1e-3)
    assert normal.std((0, 2, 3)).min() > 0.02 and kappa.std() > 0.02  # far more than the tolerance
    assert expert.predict(images[..., :70].repeat(9, 1, 1, 1))["normal"].shape == (9, 3, 64, 70)

    rounded = expert.freeze(bf16=True).predict(images)["normal"]
    assert rounded.dtype == np.float32 and 0 < np.abs(rounded - output["normal"]).mean() < 0.05


def reference(net, pixels):
    """The published forward pass: features are enlarged before the MLPs."""
    encoder, decoder = net.encoder.original_model, net.decoder
    maps = [encoder.bn1(encoder.conv_stem(pixels))]
    for block in encoder.blocks:
        maps.append(block(maps[-1]))
    x = decoder.conv2(encoder.conv_head(maps[-1]))
    levels = []
    for up, stage in enumerate((5, 3, 2, 1), 1):
        x = F.interpolate(x, maps[stage].shape[2:], mode="bilinear", align_corners=True)
        x = getattr(decoder, f"up{up}")._net(torch.cat([x, maps[stage]], 1))
        levels.append(x)

    def normalised(raw):
        normal = raw[:, :3] / (raw[:, :3].norm(dim=1, keepdim=True) + 1e-10)
        return torch.cat([normal, F.elu(raw[:, 3:]) + 1.01], 1)

    out = normalised(decoder.out_conv_res8(levels[1]))
    for stride, features in zip((4, 2, 1), levels[1:], strict=True):
        both = torch.cat([features, out], 1)
        both = F.interpolate(both, scale_factor=2, mode="bilinear", align_corners=True)
        raw = getattr(decoder, f"out_conv_res{stride}")(both.flatten(2))
        out = normalised(raw).reshape(len(both), 4, *both.shape[2:])
    return out[:, :3], out[:, 3]


def test_standardised_weights_with_group_norm():
    up = _Up(6, 16, "GN")
    x, skip = torch.randn(2, 4, 5, 5), torch.randn(2, 2, 9, 10)
    joined = torch.cat(
        [F.interpolate(x, size=(9, 10), mode="bilinear", align_corners=True), skip], 1
    )
    for convolution, norm in ((up._net[0], up._net[1]), (up._net[3], up._net[4])):
        weight = convolution.weight
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        joined = norm(F.conv2d(joined, weight, convolution.bias, padding=1))
        joined = F.leaky_relu(joined)
    torch.testing.assert_close(up(x, skip), joined, atol=1e-5, rtol=1e-4)


def test_group_norm_and_wrong_files(tmp_path):
    torch.manual_seed(0)
    original = PublishedNllAngMF("GN", size=32).freeze()
    torch.save({"model": original.net.state_dict(), "iter": 1}, tmp_path / "nyu.pt")
    (back,) = load_experts([f"nll-angmf={tmp_path / 'nyu.pt'}"])
    back.settings = original.settings
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(
        back.predict(images)["normal"], original.predict(images)["normal"]
    )
    torch.save(
        {"model": {"encoder.original_model.conv_stem.weight": torch.zeros(1)}}, tmp_path / "bad.pt"
    )
    with pytest.raises(UserError, match=r"bad\.pt does not fit the authors' NLL-AngMF network"):
        load_experts([f"nll-angmf={tmp_path / 'bad.pt'}"])
