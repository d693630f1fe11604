"""Published depth models: transformers' numbers, and only relative inverse depth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)

from backbones.cliptex.experts.base import load_experts
from cliptex_common.errors import UserError

VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.2, 0.2],
    "do_resize": True,
    "do_normalize": True,
    "do_rescale": True,
}


def write_model(folder, kind: str, **changes) -> str:
    """A tiny model with random weights as transformers saves it."""
    torch.manual_seed(0)
    if kind == "dpt":
        layers = {"backbone_out_indices": [0, 1, 2, 3], "image_size": 32, "patch_size": 16}
        config = {"depth_estimation_type": "relative", **VIT, **layers, **DECODER, **changes}
        model = DPTForDepthEstimation(DPTConfig(**config))
    else:
        layers = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
        vit = Dinov2Config(**VIT, **layers, image_size=28, patch_size=14)
        decoder = {**DECODER, "reassemble_hidden_size": 32, **changes}
        model = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=vit, **decoder))
    for module in model.modules():  # transformers' initial weights give zeros behind a ReLU
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return f"dpt={folder}"


def test_numbers_are_those_of_transformers(tmp_path):
    (expert,) = load_experts([write_model(tmp_path, "dpt")])
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = DPTForDepthEstimation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        pixels = (images / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
        expected = model(pixel_values=pixels).predicted_depth.numpy()
    assert expected.std() > 0
    depth = expert.predict(images)["depth"]
    np.testing.assert_allclose(depth, expected, atol=1e-5 * expected.max())
    assert expert.predict(images[:, :, :20, :30])["depth"].shape == (2, 20, 30)
    rounded = expert.freeze(bf16=True).predict(images)["depth"]
    assert 0 < np.abs(rounded - depth).mean() < 0.1 * depth.std()


def test_identity_holds_weights_model_and_processor(tmp_path):
    (expert,) = load_experts([write_model(tmp_path, "dpt")])
    assert load_experts([f"dpt={tmp_path}"])[0].identity() == expert.identity()
    changed = {**PROCESSOR, "image_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
    assert load_experts([f"dpt={tmp_path}"])[0].identity() != expert.identity()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("depth-anything", {"depth_estimation_type": "metric", "max_depth": 20}, "metric"),
        ("dpt", {"add_projection": True}, "metric"),
        ("dpt", {"depth_estimation_type": "unknown"}, "if it does, write"),
    ],
)
def test_models_of_another_or_no_known_convention_are_refused(tmp_path, kind, changes, message):
    """A metric depth would give inverted labels."""
    with pytest.raises(UserError, match=message):
        load_experts([write_model(tmp_path, kind, **changes)])


class Evil:
    def __reduce__(self):
        return (open, ("proof", "w"))


def test_torch_files_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = write_model(tmp_path, "dpt")
    (tmp_path / "model.safetensors").unlink()
    weights = {"dpt.layernorm.weight": torch.ones(64), "evil": Evil()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no depth model at") as error:
        load_experts([spec])
    assert "\n" not in str(error.value) and not (tmp_path / "proof").exists()
