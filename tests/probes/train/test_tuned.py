"""Dense heads with a backbone that trains: each tier learns, resumes, predicts, and leaves the
frozen backbone as it was."""

from dataclasses import replace

import open_clip.factory as factory
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

import backbones
import probes.catalog  # noqa: F401  tests of teams import this file
from backbones.backbone import state_sha256
from backbones.tuning import Cut
from cliptex_common.errors import OutOfMemory, UserError
from cliptex_common.settings import with_changes
from probes.dense.config import dense_config
from probes.dense.group import join_group, run_group
from probes.predictor import load_predictor
from probes.registry import PROBES
from probes.train.frozen_backbone import TunedBackbone
from probes.train.loop import resolved, run_training
from tests.backbones.mini import CONFIG
from tests.kinds import slow_except
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration

SMALL = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (0.7, 1.5),
    "max_iters": 6,
    "lr": 0.01,
    "feature_stride": 8,
    "drop_path": 0.2,
    "fixed_crops": 2,
    "cache": "fp16",
}
TIERS = ["all", "blocks:1", "lora:2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dense.make(tmp_path_factory.mktemp("data"), "segmentation", train=10)


@pytest.fixture(autouse=True)
def small_clip(monkeypatch):
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", CONFIG)


def prepare(folder, data, tune, recorder=None, name="random/timm/test_vit", **changes):
    probe = PROBES[f"{data.spec.kind}/linear"]
    return probe, task_of(probe, folder, data, recorder, name, **{**SMALL, "tune": tune, **changes})


def task_of(probe, folder, data, recorder=None, name="random/timm/test_vit", **settings):
    task = context(folder, data, probe.settings_type(**settings), recorder=recorder)
    create = {"name": name, "seed": 3}
    return replace(task, backbone=backbones.create(**create), backbone_config=create)


def train(*args, **changes):
    probe, task = prepare(*args, **{"tune_rates": (1e-3,), **changes})
    return run_training(dense_config(probe, task), task, "toy")


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_frozen_numbers_after_a_tuned_task_are_the_same(data, tmp_path):
    """They share a backbone, which the tuned tasks copy; they are trained apart."""
    probe, frozen = prepare(tmp_path / "a", data, "frozen", name="open_clip/Mini")
    expected = probe.run(frozen)
    digest = state_sha256(frozen.backbone.model_state())
    for number, tune in enumerate(TIERS):
        _, task = prepare(tmp_path / str(number), data, tune, tune_rates=(1e-2,))
        task = replace(task, backbone=frozen.backbone, backbone_config=frozen.backbone_config)
        key, _ = join_group(probe, task)
        assert key is None
        (result,) = run_group([(probe, task)])
        assert result.metrics != expected.metrics
        assert any("tuned for this task alone" in note for note in result.notes)
        assert task.cost.metrics()["trained_parameters"] > 0
    assert state_sha256(frozen.backbone.model_state()) == digest
    rates = replace(frozen.settings, tune_rates=(0.1, 1.0))  # of a backbone that has none
    again = probe.run(replace(frozen, settings=rates, work_dir=tmp_path))
    assert again.metrics == expected.metrics
    tensors = expected.head.tensors
    assert all(torch.equal(again.head.tensors[name], tensors[name]) for name in tensors)


def test_the_rate_of_the_backbone_is_chosen_on_held_out_images(data, tmp_path):
    recorder = Recorder()
    probe, task = prepare(tmp_path / "a", data, "blocks:1", recorder, max_iters=2)
    result = probe.run(task)
    scores = {
        name: metrics[name]
        for _, metrics in recorder.metrics
        for name in metrics
        if name.startswith("select/mIoU")
    }
    assert set(scores) == {f"select/mIoU/lr_{rate}" for rate in ("3e-05", "0.0001", "0.0003")}
    (chosen,) = recorder.curve("select/lr")
    assert scores[f"select/mIoU/lr_{chosen:g}"] == max(scores.values())
    fixed = probe.run(
        prepare(tmp_path / "b", data, "blocks:1", max_iters=2, tune_rates=(chosen,))[1]
    )
    assert fixed.metrics == result.metrics
    assert any(note.startswith("learning rate of the backbone") for note in result.notes)


@pytest.mark.parametrize("tune", slow_except(TIERS, ["lora:2"]))
def test_tuned_weights_of_a_stored_head_can_be_probed_again(data, tmp_path, tune):
    changes = {"tune_rates": (1e-2,), "name": "open_clip/Mini"}
    probe, task = prepare(tmp_path / "a", data, tune, **changes)
    result = probe.run(task)
    result.head.write(tmp_path / "head.safetensors")
    predictor = load_predictor(tmp_path / "head.safetensors", task.backbone)
    path = tmp_path / "tuned.safetensors"
    backbones.save_backbone(path, predictor.backbone)
    loaded = backbones.create("open_clip/Mini", weights=path)
    assert loaded.weights.sha256 != task.backbone.weights.sha256
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, loaded(images), predictor.backbone(images)))
    frozen, task = prepare(tmp_path / "c", data, "frozen", max_iters=1)
    create = {"name": "open_clip/Mini", "weights": path}
    assert frozen.run(replace(task, backbone=loaded, backbone_config=create)).metrics


def test_parts_of_a_batch_give_its_gradient(data, tmp_path):
    """Of images of one size without normalisation over them, up to rounding."""
    changes = {"max_iters": 1, "linear_norm": False, "drop_path": 0.0, "scale_range": (1.0, 1.0)}
    depth = tiny_dense.make(tmp_path / "data", "normals", train=8)
    whole, parts = (
        train(tmp_path / str(count), depth, "all", accumulate=count, **changes) for count in (1, 2)
    )
    a, b = whole.model.state_dict(), parts.model.state_dict()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=2e-5), name
    assert not same(whole, parts)


def test_plain_mmengine_trains_the_same(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe, task = prepare(tmp_path / "a", data, "blocks:1", tune_rates=(1e-3,), ema=0.9)
    runner = Runner.from_cfg(
        Config.fromstring(resolved(dense_config(probe, task), task).pretty_text, ".py")
    )
    runner.train()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_test_epoch(runner)  # the average takes the place of the weights
    trained = train(tmp_path / "b", data, "blocks:1", ema=0.9)
    assert same(runner, trained) and not same(trained, train(tmp_path / "c", data, "blocks:1"))


@pytest.mark.parametrize(
    "name", ["random/timm/test_vit", "random/timm/test_resnet", "open_clip/Mini"]
)
def test_cached_activations_train_the_same_weights(data, tmp_path, name, monkeypatch):
    """They are stored in float32, and no image is encoded again."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    options = {"name": name, "checkpointing": True}
    whole = train(tmp_path / "a", data, "blocks:1", cache="none", **options)
    cached = train(tmp_path / "b", data, "blocks:1", cache="fp16", **options)
    assert same(whole, cached) and whole.metrics == cached.metrics
    assert cached.cost.images["encode"] == 40, "10 images, 2 crops, flipped or not"
    monkeypatch.delattr(Cut, "record")
    again = train(tmp_path / "c", data, "blocks:1", cache="bf16", **options)
    assert same(whole, again) and not again.cost.images["encode"]


def test_what_does_not_fit_is_one_line(data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has 6 blocks; ask for fewer"):
        train(tmp_path / "a", data, "blocks:7")
    with pytest.raises(UserError, match="lr_grid="):
        changes = {"tune": "all", "lr_grid": "0.1,0.2"}
        with_changes(PROBES["segmentation/linear"].settings_type(), changes)

    def full(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TunedBackbone, "forward", full)
    with pytest.raises(OutOfMemory, match=r"accumulate=2.*checkpointing=true.*blocks:2"):
        train(tmp_path / "b", data, "all")
