"""A probe that a user's config file states: ``--task voc/my_probe.py``."""

from dataclasses import replace

import numpy as np
import pytest

import benchmark  # noqa: F401  plugins may be config files
from benchmark.options import RunOptions
from benchmark.suites import SUITES
from benchmark.tasks import plan_tasks
from cliptex_common import registry
from cliptex_common.errors import UserError
from cliptex_common.settings import with_changes
from probes.dense.config import dense_config
from probes.registry import PROBES
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

FILE = """
_base_ = [
    "probes::_base_/heads/head.py",
    "probes::_base_/segmentation.py",
    "probes::_base_/schedule_40k.py",
]

model = dict(
    decode_head=dict(
        type="FCNHead",
        channels=8,
        num_convs=1,
        dropout_ratio=0.2,
        loss_decode=[dict(type="CrossEntropyLoss"), dict(type="DiceLoss")],
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[2], gamma=0.1)]
train_cfg = dict(max_iters=3)
train_dataloader = dict(batch_size=2)
"""
SMALL = {"size": 48}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_probe.py"
    path.write_text(FILE)
    registry.load(path)
    yield path
    registry.LOADED[path].remove()


def prepare(folder, name="my_probe", **changes):
    probe = PROBES[f"segmentation/{name}"]
    settings = with_changes(probe.settings_type(), {**probe.defaults, **SMALL, **changes})
    return probe, context(folder / "work", tiny_dense.make(folder, "segmentation"), settings)


OWN = """
_base_ = ["probes::_base_/heads/head.py", "probes::_base_/segmentation.py"]

model = dict(decode_head=dict(type="ASPPHead", channels=8, dilations=(1, 2, 3, 4)))
optim_wrapper = dict(
    optimizer=dict(type="Adam", lr=2e-3), clip_grad=dict(type="value", clip_value=0.5)
)
train_cfg = dict(max_iters=4)
train_dataloader = dict(batch_size=2)
val_evaluator = dict(hungarian=True)
"""


@pytest.mark.integration
def test_what_the_file_states_is_what_trains(tmp_path):
    """And what it leaves out is made of the settings: loss, schedule, sizes of crops."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    registry.load(path)
    try:
        probe, task = prepare(tmp_path, "own", max_iters=3)
        config = dense_config(probe, task)
        assert config.model.decode_head.dilations == (1, 2, 3, 4)
        assert config.model.decode_head.loss_decode.type == "CrossEntropyLoss"
        assert config.optim_wrapper.optimizer == {"type": "Adam", "lr": 2e-3, "weight_decay": 1e-4}
        assert config.optim_wrapper.clip_grad == {"type": "value", "clip_value": 0.5}
        assert config.val_evaluator.hungarian and config.val_evaluator.ignore_index == 255
        assert [part.type for part in config.param_scheduler] == ["PolyLR"]
        assert config.param_scheduler[-1].end == config.train_cfg.max_iters == 3
        changed = replace(task.settings, optimizer="sgd")
        with pytest.raises(UserError, match="optimizer=sgd: the config file of own has its own"):
            probe.fits(task.backbone, task.data, changed)
        assert np.isfinite(probe.run(task).metrics["mIoU"])
    finally:
        registry.LOADED[path].remove()


@pytest.mark.parametrize(
    "changes", [{"max_iters": 5}, {"warmup": 0.1}, {"loss_mean": "all"}, {"dropout_first": True}]
)
def test_what_the_file_states_in_its_own_way_is_not_a_setting(tmp_path, file, changes):
    probe, task = prepare(tmp_path, **changes)
    with pytest.raises(UserError, match="change it there"):
        probe.fits(task.backbone, task.data, task.settings)


def test_the_options_of_a_command_name_the_file(file):
    (name,) = RunOptions(tasks=[f"camvid/{file}"]).tasks
    assert name == "camvid/my_probe"
    (task,) = plan_tasks(SUITES.find("own"), [name], {})
    assert (task.settings.lr, task.settings.max_iters, task.settings.batch_size) == (2e-3, 3, 2)
    assert PROBES.origin("segmentation/my_probe")["plugin"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(type='DenseModel')\n", "states no .*train_dataloader"),
        (FILE.replace("_base_/segmentation.py", "_base_/none.py"), "none.py"),
        (
            FILE + "val_evaluator = dict(_delete_=True, type='CocoMeanAP')\n",
            "val_evaluator.type=CocoMeanAP is of no dense task",
        ),
        (
            FILE + "model['backbone'] = dict(out_indices=[1])\n",
            "states model.backbone.out_indices; leave it out",
        ),
    ],
)
def test_a_file_that_is_no_probe_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        registry.load(path)


def test_losses_and_schedule_are_those_of_the_file(tmp_path, file):
    config = dense_config(*prepare(tmp_path, lr=0.01))
    losses = config.model.decode_head.loss_decode
    assert [loss.type for loss in losses] == ["CrossEntropyLoss", "DiceLoss"]
    assert [part.type for part in config.param_scheduler] == ["MultiStepLR"]
    assert config.optim_wrapper.optimizer.lr == 0.01, "what a setting changes"
