"""The dense probes end to end: real files, MMEngine's Runner, mmseg's models, a small frozen
backbone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from cliptex_common.errors import UserError
from probes.dense.config import dense_config
from probes.dense.depth import DepthSettings
from probes.dense.segmentation import SegmentationSettings
from probes.dense.settings import in_iterations
from probes.registry import PROBES as REGISTERED
from probes.settings import scheduler_configs
from tests.kinds import slow_except
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

from mmseg.registry import MODELS  # isort: skip

pytestmark = pytest.mark.integration

KINDS = ("segmentation", "depth", "normals")
SMALL = {"size": 48, "batch_size": 4, "channels": 8, "scale_range": (1.0, 1.0), "warmup": 0.0}


def run(folder: Path, kind: str, name: str, data=None, **settings):
    """Make a tiny dataset, run the probe on it; returns its result and the context."""
    data = data or tiny_dense.make(folder / "data", kind)
    probe = REGISTERED[f"{kind}/{name}"]
    chosen = probe.settings_type(**{**SMALL, "max_iters": 2, **settings})
    task = context(folder / "work", data, chosen)
    return probe.run(task), task


def test_a_long_image_keeps_a_pixel_of_its_short_side(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "segmentation")
    for split in ("train", "val"):
        for folder, mode in (("images", "RGB"), ("truth", "L")):
            Image.new(mode, (20_000, 1)).save(data.root / folder / split / "000.png")
    result, _ = run(tmp_path, "segmentation", "linear", data)
    assert result.per_image["label"].sum(axis=1)[0] == 20_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slide": (64, 128)}, "no smaller than the stride"),
        ({"size": 0}, "set crop as well"),
        ({"crop": (64, 96), "feature_stride": 65}, "the side of a training crop"),
        ({"fixed_crops": 1, "cache": "fp16", "flip_test": True}, "upright images"),
        ({"fixed_crops": 1, "colours": "mmseg"}, "keep their colours"),
        ({"cache": "fp16"}, "set fixed_crops=1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DepthSettings(**change)


def test_unfit_data_and_settings_fail_before_training(tmp_path):
    with pytest.raises(UserError, match="batch_size must be 2 or more"):
        run(tmp_path / "a", "depth", "pspnet", batch_size=1)
    data = tiny_dense.make(tmp_path / "data", "segmentation")
    single = tiny_dense.with_declared(data, classes=("all",))
    with pytest.raises(UserError, match="needs 2 or more"):
        run(tmp_path / "b", "segmentation", "linear", single)
    data = tiny_dense.make(tmp_path / "depth", "depth")
    with pytest.raises(UserError, match="dpt fuses 4 feature maps, not one"):
        run(tmp_path / "d", "depth", "dpt", data, layers=3)


METAS = [{"ori_shape": (96, 128), "img_shape": (96, 128), "pad_shape": (96, 128)}]


def sliding_model(folder: Path, kind: str, **settings):
    """A linear head that slides over images."""
    data, probe = tiny_dense.make(folder / "data", kind), REGISTERED[f"{kind}/linear"]
    chosen = probe.settings_type(**{**SMALL, "slide": (64, 40), **settings})
    config = dense_config(probe, context(folder / "work", data, chosen))
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(config.model).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_an_image_and_its_mirror_image_are_averaged(tmp_path, kind):
    model = sliding_model(tmp_path, kind, flip_test=True)
    model.init_weights()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        averaged = model.inference(image, METAS)
        plain, mirrored = (model.slide_inference(each, METAS) for each in (image, image.flip(-1)))
    mirrored = mirrored.flip(-1)
    if kind == "normals":
        mirrored[:, 0] *= -1
    torch.testing.assert_close(averaged, (plain + mirrored) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", slow_except(KINDS, ["depth"]))
def test_a_published_recipe_in_small_learns(tmp_path, kind):
    """Every part of it at once: crops that are not square, colours, a schedule of its own,
    clipping, class tokens, sliding, mirror images."""
    own = {
        "depth": {"bins": 32, "loss_images": 3, "sig_warmup": 5, "rotation": 2.5},
        "normals": {"uncertainty": True},
        "segmentation": {"colours": "dinov3", "loss_mean": "all", "slide_padded": True},
    }[kind]
    result, task = run(
        tmp_path,
        kind,
        "linear",
        crop=(32, 48),
        schedule="dinov3-depth",
        class_token="concat",
        warmup=0.3,
        lr=0.02,
        max_iters=40,
        betas=(0.9, 0.99),
        clip_norm=35.0,
        slide=(40, 24),
        flip_test=True,
        feature_stride=4,
        **own,
    )
    curve = task.log.curve("train/loss")
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
    assert not [note for note in result.notes if "best constant" in note]


def test_the_length_of_training_and_of_the_warm_up(tmp_path):
    chosen = in_iterations(SegmentationSettings(epochs=2.5, batch_size=4), images=16)
    assert (chosen.max_iters, chosen.epochs) == (10, 0.0)
    begins = [
        scheduler_configs(SegmentationSettings(max_iters=1000, warmup=warmup))[1]["begin"]
        for warmup in (0.2, 150)
    ]
    assert begins == [200, 150]
    with pytest.raises(UserError, match="warmup=1500 leaves nothing of max_iters=100"):
        scheduler_configs(SegmentationSettings(max_iters=100, warmup=1500))
