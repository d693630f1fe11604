"""What presets set reaches the backbone: batches, crops, flips, arithmetic; and its last map has
passed the final norm. The records compare the settings with the sources'."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from probes.registry import PROBES
from tests.accelerator.cases.tasks import PRESETS, make_task, small, write_data
from tests.probes.tiny_mmlab import TinyBackbone
from tests.protocols import dense

DENSE = [name for name, preset in PRESETS.items() if "crop" in preset.settings]
STEPS = 3


@pytest.mark.integration
@pytest.mark.parametrize("name", DENSE)
def test_batches_crops_and_flips_reach_the_backbone(name, tmp_path, own_home, monkeypatch):
    preset = PRESETS[name]
    probe, batch = PROBES[preset.probe], preset.settings["batch_size"]
    data = write_data(probe, tmp_path / "data")
    for path in (tmp_path / "data").rglob("images/*/*.png"):  # brighter to the right
        height, width = cv2.imread(str(path)).shape[:2]
        row = np.linspace(0, 255, width).astype(np.uint8)
        cv2.imwrite(str(path), np.tile(row[None, :, None], (height, 1, 3)))
    changes = {**preset.settings, "max_iters": STEPS, "epochs": 0.0}
    settings = small(probe, changes)
    settings = settings.__class__(**{**vars(settings), "batch_size": batch})
    calls = []
    forward = TinyBackbone.forward

    def spy(self, images):
        calls.append((images, torch.is_autocast_enabled("cpu")))
        return forward(self, images)

    monkeypatch.setattr(TinyBackbone, "forward", spy)
    probe.run(make_task(probe, tmp_path / "work", torch.device("cpu"), data, settings))
    calls = calls[settings.is_tuned :]  # whose first pass finds what there is to tune
    images = torch.cat([images for images, _ in calls[:STEPS]])
    assert [len(each) for each, _ in calls[:STEPS]] == [batch] * STEPS
    assert images.shape[2:] == settings.crop
    left, right = (half.mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=3))
    flipped = (left > right).double().mean().item()
    assert flipped == pytest.approx(settings.flip, abs=0.25 if settings.flip else 0)
    in_bf16 = any(autocast for _, autocast in calls)
    assert in_bf16 is (settings.precision == "bf16")


@pytest.mark.parametrize("protocol", ["dinov3", "pixio", "radio"])
def test_the_last_map_has_passed_the_final_norm(protocol):
    config = dense.preset_config(protocol, "ade20k/linear")
    options = config.model.backbone.to_dict()
    with DefaultScope.overwrite_default_scope("mmseg"):
        frozen = MODELS.build(options)
    vit, images = frozen.backbone.model, dense.random(1, 3, 224, 224)
    with torch.no_grad():
        tokens = vit.forward_features(images)
    assert not isinstance(vit.norm, torch.nn.Identity)
    (last,) = frozen(images)
    torch.testing.assert_close(last[:, : vit.embed_dim].flatten(2).mT, tokens[:, 1:])
