"""``dpt`` as transformers has it against MiDaS' own DPT, large and hybrid, at small sizes.

transformers' state is random; the record is of the same weights under MiDaS' names.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation

from backbones.cliptex.experts.base import load_experts
from tests.protocols.experts import image, network_input, random_state

SOURCE, COMMIT = "isl-org/MiDaS", "4545977"
DIFFERS = {
    "input": "theirs keeps the aspect and resizes by cubic interpolation; the hub's processor"
    " squeezes to a square, bilinear",
}
TOLERANCE = {"depth": 1e-4}
SIDE = 96  # of training images, where theirs have 384
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
COMMON = {**VIT, "image_size": SIDE, "patch_size": 16, "fusion_hidden_size": 16}
COMMON |= {"backbone_out_indices": [0, 1, 2, 3], "depth_estimation_type": "relative"}
BIT = {
    "model_type": "bit",
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [1, 1, 1],
    "hidden_sizes": [256, 512, 1024],
    "out_features": ["stage1", "stage2", "stage3"],
    "embedding_dynamic_padding": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "large": {**COMMON, "neck_hidden_sizes": [8, 16, 32, 32]},
    "hybrid": {
        **COMMON,
        "is_hybrid": True,
        "backbone_config": BIT,
        "backbone_featmap_shape": [1, 1024, SIDE // 16, SIDE // 16],
        "neck_hidden_sizes": [256, 512, 32, 32],
        "neck_ignore_stages": [0, 1],
    },
}
# of Intel/dpt-large and dpt-hybrid-midas: bilinear, to a square
PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# transformers' names and MiDaS'
NAMES = {
    r"dpt\.embeddings\.cls_token": "pretrained.model.cls_token",
    r"dpt\.embeddings\.position_embeddings": "pretrained.model.pos_embed",
    r"dpt\.embeddings\.(patch_embeddings\.)?projection": "pretrained.model.patch_embed.proj",
    r"dpt\.embeddings\.backbone\.bit\.embedder\.convolution": "BACKBONE.stem.conv",
    r"dpt\.embeddings\.backbone\.bit\.embedder\.norm": "BACKBONE.stem.norm",
    r"dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d)\.layers": r"BACKBONE.stages.\1.blocks",
    r"BACKBONE": "pretrained.model.patch_embed.backbone",
    r"dpt\.encoder\.layer": "pretrained.model.blocks",
    r"attention\.output\.dense": "attn.proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"dpt\.layernorm": "pretrained.model.norm",
    r"residual_layer(\d)\.convolution(\d)": r"resConfUnit\1.conv\2",
    r"head\.head": "scratch.output_conv",
}


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    import timm
    from midas import blocks, dpt_depth
    from midas.backbones import vit
    from midas.transforms import Resize
    from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2

    sizes = {"img_size": SIDE, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
    fields = {}
    for name, config in CONFIGS.items():
        widths = config["neck_hidden_sizes"]
        model = timm.models.VisionTransformer(**sizes)
        options = {"features": widths, "hooks": [0, 1, 2, 3], "size": [SIDE, SIDE]}
        options |= {"vit_features": 32, "use_readout": "project"}
        make = vit._make_vit_b16_backbone
        if name == "hybrid":
            trunk = _resnetv2((1, 1, 1))
            embedding = HybridEmbed(trunk, img_size=SIDE, patch_size=1, embed_dim=32)
            model = timm.models.VisionTransformer(**sizes)
            model.patch_embed = embedding
            make = vit._make_vit_b_rn50_backbone
        parts = make(model, **options), blocks._make_scratch(widths, 16)
        with patch.object(dpt_depth, "_make_encoder", lambda *_, parts=parts, **__: parts):
            network = dpt_depth.DPTDepthModel(features=16, backbone="vitb16_384")
        network.load_state_dict(_renamed(random_state(_network(config).state_dict())))
        picture = image(SIDE, SIDE) / 255 * 2 - 1
        wide = image(48, 144)[0].permute(1, 2, 0).numpy() / 255
        how = {"keep_aspect_ratio": True, "ensure_multiple_of": 32, "resize_method": "minimal"}
        cubic = _interpolation(checkout)
        resize = Resize(SIDE, SIDE, resize_target=None, image_interpolation_method=cubic, **how)
        pixels = resize({"image": wide})["image"] * 2 - 1
        with torch.no_grad():
            depth = network.eval()(picture)[0]
        fields[name] = _fields(depth.numpy(), pixels.transpose(2, 0, 1))
    return fields


def _interpolation(checkout: Path) -> int:
    """The one that ``midas/model_loader.py`` resizes with."""
    import cv2

    text = (checkout / "midas" / "model_loader.py").read_text(encoding="utf-8")
    (name,) = set(re.findall(r"image_interpolation_method=cv2\.(\w+)", text))
    return getattr(cv2, name)


def suite() -> dict[str, dict[str, Any]]:
    fields = {}
    for name, config in CONFIGS.items():
        network = _network(config)
        network.load_state_dict(random_state(network.state_dict()))
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            Path(folder, "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
            (expert,) = load_experts([f"dpt={folder}"])
        depth = expert.predict(image(SIDE, SIDE))["depth"][0]
        pixels = network_input(expert.net, partial(expert.predict, image(48, 144)))[0]
        fields[name] = _fields(depth, pixels.numpy())
    return fields


def _network(config: Mapping[str, Any]) -> DPTForDepthEstimation:
    return DPTForDepthEstimation(DPTConfig(**config))


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' state dict under MiDaS' names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := re.match(r"neck\.reassemble_stage\.layers\.(\d)\.(\w+)\.(\w+)", name):
            part = {"projection": 3, "resize": 4}[match[2]]
            name = f"pretrained.act_postprocess{int(match[1]) + 1}.{part}.{match[3]}"
        elif match := re.match(r"neck\.reassemble_stage\.readout_projects\.(\d)\.0\.(.*)", name):
            name = f"pretrained.act_postprocess{int(match[1]) + 1}.0.project.0.{match[2]}"
        elif match := re.match(r"neck\.convs\.(\d)\.(.*)", name):
            name = f"scratch.layer{int(match[1]) + 1}_rn.{match[2]}"
        elif match := re.match(r"neck\.fusion_stage\.layers\.(\d)\.(.*)", name):
            rest = match[2].replace("projection", "out_conv")
            name = f"scratch.refinenet{4 - int(match[1])}.{rest}"
        elif match := re.match(r"(.*)attention\.attention\.query\.(.*)", name):
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = f"{match[1]}attn.qkv.{match[2]}", torch.cat(parts)
        elif re.search(r"attention\.attention\.(key|value)", name):
            continue
        for theirs, midas in NAMES.items():
            name = re.sub(theirs, midas, name)
        renamed[name] = tensor
    return renamed


def _fields(depth: np.ndarray, pixels: np.ndarray) -> dict[str, Any]:
    return {
        "depth": depth[::7, ::7] / np.abs(depth).max(),
        "input": {"size": pixels.shape[1:], "pixels": pixels[:, ::24, ::24]},
    }
