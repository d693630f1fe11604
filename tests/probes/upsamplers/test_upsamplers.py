"""Upsamplers of feature maps: their operators, where they are reached, and what they refuse."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark.tasks import PlannedTask
from cliptex_common.errors import UserError
from cliptex_common.files import sha256_file
from probes.base import NotApplicable
from probes.dense.heads import LinearHead
from probes.registry import PROBES
from probes.upsamplers import upsample
from probes.upsamplers.names import HUB_SOURCES
from probes.upsamplers.upsample import OPERATORS, UpsampledMaps, encode_tiles, interpolation
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context
from tests.probes.upsamplers import anyup_module

LINEAR = [*OPERATORS, "anyup"]
SMALL = {"size": 48, "feature_stride": 4}
DENSE = {"batch_size": 4, "channels": 8, "scale_range": (1.0, 1.0), "warmup": 0.0, "max_iters": 3}


def upsampling(name):
    if name == "anyup":
        return upsample.AnyUp(anyup_module.seeded(anyup_module.AnyUp()))
    return OPERATORS[name]


@pytest.mark.parametrize("name", LINEAR)
def test_a_pixel_is_a_mean_of_cells(name):
    colours, (low, size) = torch.rand(1, 3, 24, 36), ((4, 6), (9, 14))
    operator = upsampling(name)(colours, torch.randn(1, 5, *low), size)
    weights = operator(torch.eye(24).view(1, 24, *low))
    assert weights.shape[2:] == size
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1, *size))
    assert name == "bicubic" or weights.min() >= 0


@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_head_may_upsample_its_outputs(name, has_norm):
    colours, maps = torch.rand(2, 3, 24, 36), [torch.randn(2, c, 4, 6) for c in (3, 5)]
    operators = [upsampling(name)(colours, each, (12, 18)) for each in maps]
    head = LinearHead(in_channels=8, num_classes=4, dropout_ratio=0, norm=has_norm)
    if has_norm:
        head((torch.cat(maps, dim=1) * 3 + 2,))  # in training: statistics
        head.eval()
    late, early = head((UpsampledMaps(maps, operators),)), UpsampledMaps(maps, operators).features
    torch.testing.assert_close(late, head((early,)), rtol=1e-4, atol=1e-4)
    gradients = []
    for outputs in (late, head((early,))):
        head.zero_grad()
        outputs.square().mean().backward()
        gradients.append(head.conv_seg.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_joint_bilateral_upsampling_follows_the_edges_of_the_image():
    image = torch.zeros(1, 3, 32, 32)
    image[..., 13:] = 1  # inside a cell
    cells = F.adaptive_avg_pool2d(image[:, :1], (4, 4))
    errors = {
        name: (upsampling(name)(image, cells, (32, 32))(cells) - image[:, :1]).abs().mean()
        for name in ("jbu", "tile2")
    }
    assert errors["jbu"] < 0.5 * errors["tile2"]  # ``tile2`` interpolates


def test_tiles_cover_the_enlarged_image():
    images = torch.rand(2, 3, 32, 48)
    cells = partial(F.avg_pool2d, kernel_size=8)
    (tiled,) = encode_tiles(lambda part: [cells(part)], images, 16)
    torch.testing.assert_close(tiled, cells(F.interpolate(images, scale_factor=2, mode="bilinear")))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {**DENSE, "cache": "fp32", "fixed_crops": 1}),
        pytest.param("deeplabv3", DENSE, marks=pytest.mark.slow),
        ("patch-knn", {"neighbours": (3,), "distances": ("l2",)}),
    ],
)
def test_one_that_interpolates_gives_the_numbers_of_bilinear(tmp_path, monkeypatch, name, options):
    monkeypatch.setitem(OPERATORS, "nearest", partial(interpolation, "bilinear"))
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=4, val=2)
    probe, scores = PROBES[f"segmentation/{name}"], {}
    for upsampler in ("bilinear", "nearest", "jbu", "tile2"):
        settings = probe.settings_type(**SMALL, **options, upsampler=upsampler)
        task = context(tmp_path / upsampler, data, settings)
        probe.fits(task.backbone, data, settings)
        scores[upsampler] = probe.run(task).metrics["mIoU"]
    assert scores["nearest"] == pytest.approx(scores["bilinear"], abs=0.05)
    assert len({*scores.values()}) > 2


def test_bilinear_keeps_the_identity_of_numbers(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=1, val=1)
    plain, jbu, anyup = (
        PlannedTask("voc/linear", PROBES["segmentation/linear"].settings_type(upsampler=name))
        for name in ("bilinear", "jbu", "anyup")
    )
    assert "upsampler" not in plain.conditions(data)["settings"]
    assert jbu.conditions(data)["settings"]["upsampler"] == "jbu"
    assert anyup.conditions(data)["upsampler"]["licence"] == "CC-BY-4.0"
    assert "licence CC-BY-4.0" in HUB_SOURCES["anyup"].credit


@pytest.mark.parametrize(
    ("probe", "options", "strides", "reason"),
    [
        ("linear", {"upsampler": "jbu"}, (16, 16), "nothing to do"),
        ("linear", {"upsampler": "jbu", "feature_stride": 16}, (16, 16), "feature_stride to a low"),
        ("linear", {"upsampler": "jbu", "layers": "last"}, (8, 16), "nothing to do"),
        ("linear", {"upsampler": "naf", "feature_stride": 4}, (16, 16), "package natten"),
        ("patch-knn", {"upsampler": "loftup", "feature_stride": 4}, (16, 16), "no weights for"),
        ("dpt", {"upsampler": "jbu", "feature_stride": 4}, (16,) * 4, "set upsampler=bilinear"),
    ],
)
def test_what_cannot_be_upsampled_is_refused(tmp_path, probe, options, strides, reason):
    probe = PROBES[f"segmentation/{probe}"]
    weights = SimpleNamespace(source="random(seed=0)")
    backbone = SimpleNamespace(
        name="mine",
        weights=weights,
        channels=(8,) * len(strides),
        strides=strides,
        divisor=16,
        fixed_size=None,
    )
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=1, val=1)
    with pytest.raises(UserError, match=reason) as caught:
        probe.fits(backbone, data, probe.settings_type(**options))
    assert isinstance(caught.value, NotApplicable) == (probe.name != "dpt")


def test_anyup_gives_what_its_source_gave_with_random_weights():
    images, features, size = anyup_module.inputs()
    std, mean = (
        torch.tensor(each)[:, None, None]
        for each in (upsample.IMAGENET_DEFAULT_STD, upsample.IMAGENET_DEFAULT_MEAN)
    )
    upsampled = upsampling("anyup")(images * std + mean, features, size)(features)
    recorded = json.loads(anyup_module.RECORD.read_text())["values"]
    ours = upsampled.flatten()[::31]
    torch.testing.assert_close(ours, torch.tensor(recorded), rtol=1e-4, atol=1e-5)


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """torch.hub's, with the code of ``anyup`` and weights that are not published."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = HUB_SOURCES["anyup"]
    folder = tmp_path / f"wimmerth_anyup_{source.commit}"
    folder.mkdir()
    (tmp_path / "trusted_list").write_text("wimmerth_anyup\n")
    (folder / "hubconf.py").write_text(
        "from tests.probes.upsamplers.anyup_module import AnyUp\n\n"
        "def anyup(pretrained=True):\n    assert not pretrained\n    return AnyUp()\n"
    )
    weights = tmp_path / "weights.pth"
    torch.save(anyup_module.seeded(anyup_module.AnyUp()).state_dict(), weights)
    own = replace(source, weights=weights.as_uri(), sha256=sha256_file(weights))
    monkeypatch.setitem(HUB_SOURCES, "anyup", own)
    return tmp_path


def test_code_and_weights_come_from_torch_hub(hub_folder):
    loaded = upsample.load_upsampler("anyup", SimpleNamespace())
    expected = anyup_module.seeded(anyup_module.AnyUp()).rope.freqs
    assert torch.equal(loaded.module.rope.freqs, expected) and not loaded.training


def test_other_weights_than_the_published_are_refused(hub_folder, monkeypatch):
    own = replace(HUB_SOURCES["anyup"], sha256="0" * 64)
    monkeypatch.setitem(HUB_SOURCES, "anyup", own)
    with pytest.raises(UserError, match="is not the published file of upsampler=anyup"):
        upsample.load_upsampler("anyup", SimpleNamespace())


def test_loftup_sees_one_image_at_a_time():
    class Scaled(nn.Module):
        def forward(self, features, guide):
            scale = guide.amax() - guide.amin()
            return F.interpolate(features, guide.shape[2:]) / scale

    colours, features = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 2, 2)
    both, first = (
        upsample.LoftUp(Scaled())(colours[part], features[part], (8, 8))
        for part in (slice(2), slice(1))
    )
    torch.testing.assert_close(both(None)[:1], first(None))
    assert torch.equal(both(None), both(None)), "it can be applied again"
