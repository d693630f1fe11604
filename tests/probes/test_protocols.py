"""Published protocols: what is built for each kind of backbone is what its table says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import backbones.named  # noqa: F401  registers the families of names
import probes.catalog  # noqa: F401
from common.errors import UserError
from common.settings import field_names, with_changes
from probes.dense.probe import DenseProbe
from probes.protocols.base import (
    OWN,
    PROTOCOLS,
    Preset,
    Protocol,
    find_preset,
    preset_deviations,
    register_protocol,
)
from probes.registry import PROBES, find_task
from probes.runner.bridge import FrozenBackbone
from tests.probes import tiny_coco, tiny_dense
from tests.probes.tiny_mmlab import context

# isort: split
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope

BACKBONES = {"plain ViT": "random/timm/vit_tiny_patch16_224", "CNN": "random/timm/resnet18"}
DENSE = [
    (protocol.name, preset)
    for protocol in PROTOCOLS.values()
    for preset in protocol.presets
    if isinstance(PROBES[preset.probe], DenseProbe)
]

# The published table, in the words of the built config; rates at (iteration: share of the highest
# rate).
MMSEG = {
    "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "clip": None,
    "batch": 16,
    "crop": (512, 512),
    "scale": ((2048, 512), (0.5, 2.0)),
    "flip": 0.5,
    "colours": ["PhotoMetricDistortion"],
    "test": {"mode": "whole", "flip": False},
    "last": True,
    "dropout": 0.1,
    "stride": {"plain ViT": 8, "CNN": 8},
}
PROBE3D = {
    "optimizer": {"type": "AdamW", "lr": 5e-4, "betas": (0.9, 0.999), "weight_decay": 0.01},
    "clip": None,
    "batch": 8,
    "crop": (480, 480),
    "scale": ((1920, 480), (1.0, 1.0)),
    "flip": 0.0,
    "colours": [],
    "test": {"mode": "whole", "flip": False},
    "last": False,
    "dropout": 0.0,
    "iterations": 10 * 24 // 8,
    "stride": {"plain ViT": 16, "CNN": 8},
}
TABLE = {
    ("dinov3", "ade20k/linear"): {
        "optimizer": {"type": "AdamW", "lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-3},
        "clip": 35.0,
        "batch": 16,
        "crop": (512, 512),
        "scale": ((2048, 512), (0.5, 2.0)),
        "flip": 0.5,
        "colours": [],
        "iterations": 40_000,
        "test": {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341), "flip": False},
        "last": True,
        "dropout": 0.1,
        "loss": {"type": "CrossEntropyLoss"},
        "stride": {"plain ViT": 16, "CNN": 32},
        "rates": {750: 0.5, 1_500: 1.0, 20_750: 0.5, 39_999: 0.0},
    },
    ("dinov3", "nyu-depth/linear"): {
        "optimizer": {"type": "AdamW", "lr": 3e-4, "betas": (0.9, 0.99), "weight_decay": 1e-4},
        "clip": 35.0,
        "batch": 16,
        "crop": (416, 544),
        "scale": ((1920, 480), (1.0, 1.0)),
        "flip": 0.5,
        "colours": ["RandomBrightness"],
        "iterations": 38_400,
        "test": {"mode": "whole", "flip": True},
        "last": True,
        "dropout": 0.0,
        "loss": {"type": "DepthBins", "bins": 256, "min_depth": 1e-3, "max_depth": 10.0},
        "stride": {"plain ViT": 16, "CNN": 32},
        "rates": {0: 0.04, 12_799: 1.0, 25_599: 0.5, 38_399: 0.0},
    },
    ("mmseg", "voc/deeplabv3"): {
        **MMSEG,
        "iterations": 40_000,
        "rates": {0: 1.0, 20_000: 0.99 * 0.5**0.9 + 0.01, 39_999: 0.01},
    },
    ("mmseg", "voc/pspnet"): {**MMSEG, "iterations": 40_000, "rates": {}},
    ("mmseg", "ade20k/deeplabv3"): {**MMSEG, "iterations": 160_000, "rates": {}},
    ("mmseg", "ade20k/pspnet"): {**MMSEG, "iterations": 160_000, "rates": {}},
    ("mmseg", "camvid/deeplabv3"): {**MMSEG, "iterations": 40_000, "rates": {}},
    ("mmseg", "camvid/pspnet"): {**MMSEG, "iterations": 40_000, "rates": {}},
    ("probe3d", "nyu-depth/dpt-probe3d"): {
        **PROBE3D,
        "loss": {"type": "DepthBins", "bins": 256},
        "rates": {
            4: 1.0,
            17: 0.99 * math.cos(math.pi / 4) + 0.01,
            29: 0.99 * math.cos(math.pi / 2 * 25 / 26) + 0.01,
        },
    },
    ("probe3d", "nyu-normal/dpt-probe3d"): {
        **PROBE3D,
        "loss": {"type": "NormalObjective", "uncertainty": True},
        "rates": {},
    },
}


def test_the_table_has_every_dense_preset() -> None:
    covered = {(name, id(find_preset(name, *find_task(task)))) for name, task in TABLE}
    assert covered == {(name, id(preset)) for name, preset in DENSE}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {
        kind: tiny_dense.make(tmp_path_factory.mktemp(kind), kind, train=24, val=1)
        for kind in tiny_dense.SPECS
    }


def rates(config: Config) -> list[float]:
    """The learning rate of each iteration, over the highest."""
    optimizer = torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)], lr=config.optim_wrapper.optimizer.lr
    )
    parts = [
        PARAM_SCHEDULERS.build({**part, "optimizer": OptimWrapper(optimizer)})
        for part in config.param_scheduler
    ]
    found = []
    for _ in range(config.train_cfg.max_iters):
        found.append(optimizer.param_groups[0]["lr"] / config.optim_wrapper.optimizer.lr)
        for part in parts:
            part.step()
    return found


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("name", "task"), TABLE)
def test_what_is_built_is_what_the_table_says(name, task, backbone, data, tmp_path) -> None:
    spec, probe = find_task(task)
    preset, row = find_preset(name, spec, probe), TABLE[name, task]
    settings = with_changes(probe.settings_type(), {**preset.settings, "protocol": name})
    assert settings.protocol == name and settings.cache == "none" and not settings.lr_grid
    config = Config.fromstring(
        probe.config(context(tmp_path, data[spec.kind], settings, BACKBONES[backbone])), ".py"
    )
    optimizer = config.optim_wrapper.optimizer.to_dict()
    assert {
        **optimizer,
        **({"betas": tuple(optimizer["betas"])} if "betas" in optimizer else {}),
    } == row["optimizer"]
    assert (config.optim_wrapper.get("clip_grad") or {}).get("max_norm") == row["clip"]
    assert config.train_dataloader.batch_size == row["batch"]
    assert config.train_cfg.max_iters == row["iterations"]
    parts = {part["type"]: part for part in config.train_dataloader.dataset.dataset.pipeline}
    assert (
        tuple(parts["RandomResize"]["scale"]),
        tuple(parts["RandomResize"]["ratio_range"]),
    ) == row["scale"]
    assert tuple(parts["RandomCrop"]["crop_size"]) == tuple(parts["PadCrop"]["size"]) == row["crop"]
    assert parts["RandomFlip"]["prob"] == row["flip"]
    assert [kind for kind in parts if kind in ("PhotoMetricDistortion", "RandomBrightness")] == row[
        "colours"
    ]
    if "RandomBrightness" in parts:
        assert (parts["RandomBrightness"]["low"], parts["RandomBrightness"]["high"]) == (0.75, 1.25)
    test = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.model.test_cfg.items()
    }
    assert test == row["test"]
    assert config.model.backbone.out_indices == ([-1] if row["last"] else None)
    assert config.model.neck.stride == row["stride"][backbone]
    head = config.model.decode_head
    assert head.dropout_ratio == row["dropout"]
    assert head.loss_decode.to_dict().items() >= row.get("loss", {}).items()
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model)
        build_optim_wrapper(model, config.optim_wrapper)
    assert (
        model.decode_head.out_channels == {"segmentation": 3, "depth": 1, "normals": 4}[spec.kind]
    )
    if probe.name == "deeplabv3":
        assert tuple(head.dilations) == (1, 12, 24, 36)
    if row["rates"]:
        found = rates(config)
        assert max(found) == pytest.approx(1.0, abs=1e-3)
        for iteration, share in row["rates"].items():
            assert found[iteration] == pytest.approx(share, abs=2e-3), iteration


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mask_rcnn_of_mmdet(backbone, tmp_path) -> None:
    spec, probe = find_task("coco/mask-rcnn")
    settings = with_changes(probe.settings_type(), {**find_preset("mmdet1x", spec, probe).settings})
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "data"))
    config = Config.fromstring(
        probe.config(context(tmp_path / "work", data, settings, BACKBONES[backbone])), ".py"
    )
    assert (
        config.train_cfg.max_iters == 12 * 117_266 // 16
        and config.train_dataloader.batch_size == 16
    )
    sgd = {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}
    assert config.optim_wrapper.to_dict() == {"type": "OptimWrapper", "optimizer": sgd}
    images = config.train_dataloader.dataset.dataset
    assert (images.min_size, images.drop_empty, images.aspect_groups) == (32, True, 16)
    (resize,) = (part for part in images.pipeline if part["type"] == "Resize")
    assert tuple(resize["scale"]) == (1333, 800) and resize["keep_ratio"]
    found = rates(config)
    eight, eleven = 8 * len(found) // 12, 11 * len(found) // 12
    for iteration, share in {
        0: 1e-3,
        250: 0.5,
        500: 1.0,
        eight - 9: 1.0,
        eight + 9: 0.1,
        eleven + 9: 0.01,
    }.items():
        assert found[iteration] == pytest.approx(share, rel=5e-3), iteration


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_every_preset_names_settings_of_its_probe_and_says_where_it_is_from(protocol) -> None:
    assert protocol.source
    for preset in protocol.presets:
        probe = PROBES[preset.probe]
        assert set(preset.settings) <= field_names(probe.settings_type) - {"protocol", "precision"}
        settings = with_changes(probe.settings_type(), preset.settings)
        assert (
            preset_deviations(
                dataclasses.replace(preset, data={}), settings, tiny_dense.SPECS["depth"]
            )
            == []
        )
        assert all(
            isinstance(getattr(settings, key), type(value))
            for key, value in preset.settings.items()
        )


def test_what_differs_is_said_and_what_does_not_apply_is_refused() -> None:
    spec, probe = find_task("nyu-depth/linear")
    preset = find_preset("dinov3", spec, probe)
    settings = with_changes(probe.settings_type(), {**preset.settings, "max_iters": 100})
    assert preset_deviations(preset, settings, spec) == [
        "max_iters=100 instead of 38400",
        "split=official 795/654 instead of 24k/654",
    ]
    same_split = dataclasses.replace(spec, extra={**spec.extra, "split": "24k/654"})
    assert preset_deviations(preset, with_changes(settings, preset.settings), same_split) == []
    with pytest.raises(
        UserError,
        match=r"dinov3 does not apply to voc/linear; it applies to ade20k/linear, nyu-depth/lin",
    ):
        find_preset("dinov3", *find_task("voc/linear"))
    with pytest.raises(UserError, match="no protocol 'dinov4'; did you mean dinov3"):
        find_preset("dinov4", spec, probe)
    assert find_preset("own", spec, probe).settings == {} and not OWN.presets


def test_a_dataset_of_its_own_comes_before_all_datasets(monkeypatch) -> None:
    monkeypatch.setattr(PROTOCOLS, "_things", dict(PROTOCOLS))
    some, own = (
        Preset("segmentation/linear", {"lr": 1.0}),
        Preset("segmentation/linear", {"lr": 2.0}, ("voc",)),
    )
    register_protocol(Protocol("two", "a test", (some, own)))
    assert find_preset("two", *find_task("voc/linear")) is own
    assert find_preset("two", *find_task("ade20k/linear")) is some


@pytest.mark.parametrize("name", ["random/timm/vit_tiny_patch16_224", "random/open_clip/ViT-B-32"])
def test_the_last_layer_has_passed_the_backbones_own_final_norm(name) -> None:
    frozen = FrozenBackbone(name=name, seed=0, out_indices=[-1])
    images = torch.randn(1, 3, 224, 224)
    (features,) = frozen(images)
    if "timm" in name:
        tokens = frozen.backbone.model.forward_features(images)[:, 1:]
    else:
        tokens = frozen.backbone.model.visual.ln_post(
            frozen.backbone.model.visual.transformer(frozen.backbone.model.visual._embeds(images))
        )[:, 1:]
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-4)
