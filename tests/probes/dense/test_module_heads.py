"""Heads of mmseg's registry and modules of plugins, as heads of the dense probes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from torch import nn

from benchmark.commands.new import template
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.settings import with_changes
from probes.dense.config import dense_config
from probes.dense.probe import DenseProbe
from probes.dense.settings import DenseHead
from probes.dense.tasks import DENSE_TASKS
from probes.registry import HEADS, PROBES
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

SHIPPED = ("segmentation", "depth", "normals")
SMALL = {"size": 48, "batch_size": 2, "max_iters": 2, "scale_range": (1.0, 1.0), "warmup": 0.0}
UPERNET = {"type": "UPerHead", "channels": 8, "norm_cfg": {"type": "BN"}}
FCN = {"type": "FCNHead", "channels": 8}
ENC = {"type": "EncHead", "channels": 8, "num_codes": 4, "norm_cfg": {"type": "BN"}}
TWO_LOSSES = [{"type": "CrossEntropyLoss"}, {"type": "DiceLoss"}]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "heads.py"
    path.write_text(template("head", "sum-of-maps"))
    registry.load(path)
    yield
    registry.LOADED[path].remove()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return {kind: tiny_dense.make(tmp_path_factory.mktemp(kind), kind) for kind in SHIPPED}


def planned(kind, name="head", head=None, **changes):
    """A probe and its settings, as a plan makes them."""
    probe = PROBES[f"{kind}/{name}"]
    settings = with_changes(probe.settings_type(**SMALL), probe.defaults)
    return probe, with_changes(settings, {"head": head or {}, **changes})


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "name", "head", "changes"),
    [
        ("segmentation", "head", {**FCN, "loss_decode": TWO_LOSSES}, {}),
        ("segmentation", "sum-of-maps", {"width": 8}, {"fixed_crops": 1, "cache": "fp16"}),
        ("depth", "head", UPERNET, {"bins": 8}),
    ],
)
def test_heads_train_and_score(tmp_path, datasets, kind, name, head, changes):
    probe, settings = planned(kind, name, head, **changes)
    task = context(tmp_path, datasets[kind], settings)
    probe.fits(task.backbone, task.data, settings)
    result = probe.run(task)
    assert set(probe.metrics) <= set(result.metrics)
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert any(name.startswith("decode_head.") for name in result.head.tensors)


def model_of(folder, data, head, **changes):
    probe, settings = planned("segmentation", head=head, **changes)
    task = context(folder, data, settings)
    return dense_config(probe, task).model


def test_a_head_of_one_map_gets_them_concatenated_unless_it_names_one(tmp_path, datasets):
    data = datasets["segmentation"]
    model = model_of(tmp_path, data, FCN)
    assert model.neck.stride == 8 and model.decode_head.in_channels == 8 + 16 + 24 + 32
    model = model_of(tmp_path, data, {**FCN, "in_index": 2})
    assert "neck" not in model
    assert model.decode_head.in_channels == 24
    assert "neck" not in model_of(tmp_path, data, UPERNET)
    fpn = model_of(tmp_path, data, {"type": "FPNHead", "channels": 8}).decode_head
    assert fpn.feature_strides == [4, 8, 16, 32]


class Failing(nn.Module):
    def __init__(self, in_channels, out_channels, returns=None):
        super().__init__()
        self.conv, self.returns = nn.Conv2d(8, out_channels, 1), returns

    def forward(self, maps):
        if self.returns == "classes":
            return self.conv(maps[0]).argmax(dim=1)
        if self.returns == "square":
            return self.conv(maps[0]).view(len(maps[0]), -1, 24, 24)
        return self.conv(maps[-1])


@pytest.mark.parametrize(
    ("kind", "head", "changes", "message"),
    [
        ("segmentation", {}, {}, "head.type is missing"),
        ("segmentation", {"type": "UPerHed"}, {}, "did you mean UPerHead"),
        ("segmentation", {**UPERNET, "widht": 3}, {}, "unexpected keyword argument 'widht'"),
        (
            "segmentation",
            {**UPERNET, "in_channels": [768] * 4},
            {},
            "8, 16, 24, 32 channels.* 768 channels",
        ),
        (
            "segmentation",
            UPERNET,
            {"batch_size": 1},
            "more than 1 value per channel.*try batch_size=2",
        ),
        ("segmentation", {"type": "OCRHead", "channels": 8}, {}, "of another head"),
        ("segmentation", UPERNET, {"feature_stride": 8}, "reads each at its own stride"),
        ("depth", ENC, {}, "for segmentation"),
        ("depth", {**FCN, "loss_decode": TWO_LOSSES}, {}, "loss of depth is its own"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, datasets, kind, head, changes, message):
    probe, settings = planned(kind, head=head, **changes)
    task = context(tmp_path, datasets[kind], settings)
    with pytest.raises(UserError, match=message) as error:
        probe.fits(task.backbone, task.data, settings)
    assert "\n" not in str(error.value)


def test_a_layer_of_a_cnn_leaves_the_other_checks_before_the_start(tmp_path, datasets):
    probe = PROBES["segmentation/deeplabv3"]
    settings = probe.settings_type(layers="50%", batch_size=1)
    task = context(tmp_path, datasets["segmentation"], settings)
    task.backbone.depth = 4
    with pytest.raises(UserError, match="batch_size must be 2 or more"):
        probe.fits(task.backbone, task.data, settings)


def test_a_head_is_tried_before_the_data_are_checked(tmp_path, datasets):
    """In evaluation a batch norm has statistics of its own: one image is enough."""
    probe, settings = planned("segmentation", head=UPERNET)
    task = context(tmp_path, datasets["segmentation"], settings)
    probe.fits(task.backbone, replace(task.data, samples={}), settings)


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (None, "to have 8 channels, but got 32"),
        ("classes", r"it must return \(2, 3, height, width\), and returns \(2, 24, 24\)"),
        ("square", r"returns \(1, 4, 24, 24\)"),  # of a test image, 96 × 128 px
    ],
)
def test_a_module_that_does_not_fit_is_refused(tmp_path, datasets, returns, message):
    head = DenseHead("failing", Failing, config={"type": "failing", "returns": returns})
    HEADS.register("failing", head)
    try:
        probe = DenseProbe(head, DENSE_TASKS["segmentation"])
        settings = probe.settings_type(**{**SMALL, "size": 96}, head=head.config)
        task = context(tmp_path, datasets["segmentation"], settings)
        with pytest.raises(UserError, match=message):
            probe.fits(task.backbone, task.data, settings)
    finally:
        del HEADS["failing"]


def test_the_settings_of_shipped_heads_are_not_those_of_others():
    for task in DENSE_TASKS.values():
        assert not hasattr(task.settings(), "head")
        assert not hasattr(task.head_settings(), "channels")


def test_a_head_of_mmseg_gets_the_maps_as_its_own_configs_give_them(tmp_path, datasets):
    """Outputs and losses are those of mmseg's own head with the same weights."""
    torch.manual_seed(0)
    ours = MODELS.build(model_of(tmp_path, datasets["segmentation"], UPERNET).decode_head)
    theirs = MODELS.build(
        {
            **UPERNET,
            "in_channels": [8, 16, 24, 32],
            "in_index": [0, 1, 2, 3],
            "num_classes": 3,
            "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True},
        }
    )
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, 8 * (i + 1), 16 // 2**i, 16 // 2**i) for i in range(4)]
    sample = SegDataSample()
    sample.set_data({"gt_sem_seg": PixelData(data=torch.randint(0, 3, (1, 64, 64)))})
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(maps), theirs(maps))
    losses = [head.loss(maps, [sample] * 2, {}) for head in (ours, theirs)]
    torch.testing.assert_close(losses[0]["loss_ce"], losses[1]["loss_ce"])
