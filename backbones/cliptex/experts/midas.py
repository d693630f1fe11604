"""MiDaS's DPT checkpoints as transformers' model: ``dpt_large_384.pt``, ``dpt_hybrid_384.pt`` and
their like with a ViT.

The names are those of https://github.com/isl-org/MiDaS (``midas/dpt_depth.py``, ``vit.py``,
``blocks.py``) and of timm's ViT and ResNetV2 below it; sizes follow from the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation

from backbones.checkpoint import fit_state
from common.errors import UserError

MARK = "pretrained.model.patch_embed.proj.weight"
_STEM = "pretrained.model.patch_embed.backbone.stem.conv.weight"  # only a hybrid has one
_HEAD_CHANNELS = 64  # of a ViT's attention heads, whatever its size
_RULES = (
    ("pretrained.model.cls_token", "dpt.embeddings.cls_token"),
    ("pretrained.model.pos_embed", "dpt.embeddings.position_embeddings"),
    ("pretrained.model.patch_embed.proj", "dpt.embeddings.patch_embeddings.projection"),
    (
        "pretrained.model.patch_embed.backbone.stem.conv",
        "dpt.embeddings.backbone.bit.embedder.convolution",
    ),
    (
        "pretrained.model.patch_embed.backbone.stem.norm",
        "dpt.embeddings.backbone.bit.embedder.norm",
    ),
    (
        r"pretrained.model.patch_embed.backbone.(stages.\d+).blocks",
        r"dpt.embeddings.backbone.bit.encoder.\1.layers",
    ),
    ("pretrained.model.norm", "dpt.layernorm"),
    (r"pretrained.model.blocks.(\d+).norm1", r"dpt.encoder.layer.\1.layernorm_before"),
    (r"pretrained.model.blocks.(\d+).norm2", r"dpt.encoder.layer.\1.layernorm_after"),
    (r"pretrained.model.blocks.(\d+).attn.proj", r"dpt.encoder.layer.\1.attention.output.dense"),
    (r"pretrained.model.blocks.(\d+).attn.qkv", r"dpt.encoder.layer.\1.attention.attention.qkv"),
    (r"pretrained.model.blocks.(\d+).mlp.fc1", r"dpt.encoder.layer.\1.intermediate.dense"),
    (r"pretrained.model.blocks.(\d+).mlp.fc2", r"dpt.encoder.layer.\1.output.dense"),
    (
        r"pretrained.act_postprocess(\d).0.project.0",
        r"neck.reassemble_stage.readout_projects.<\1-1>.0",
    ),
    (r"pretrained.act_postprocess(\d).3", r"neck.reassemble_stage.layers.<\1-1>.projection"),
    (r"pretrained.act_postprocess(\d).4", r"neck.reassemble_stage.layers.<\1-1>.resize"),
    (r"scratch.layer(\d)_rn", r"neck.convs.<\1-1>"),
    (r"scratch.refinenet(\d).out_conv", r"neck.fusion_stage.layers.<4-\1>.projection"),
    (
        r"scratch.refinenet(\d).resConfUnit(\d).conv",
        r"neck.fusion_stage.layers.<4-\1>.residual_layer\2.convolution",
    ),
    ("scratch.output_conv", "head.head"),
)


def from_midas(state: Mapping[str, Tensor], path: Path) -> DPTForDepthEstimation:
    """The model that ``state`` (read from ``path``) is of.

    Raises:
        UserError: names or shapes are not those of a DPT with a ViT; names the first.
    """
    try:
        config = midas_config(state)
    except KeyError as error:
        raise UserError(
            f"{path} is no DPT of MiDaS with a ViT: it has no {error}; give dpt_large_384.pt or"
            " dpt_hybrid_384.pt"
        ) from error
    model = DPTForDepthEstimation(config)
    fit_state(
        model, renamed(state, config.is_hybrid), path=path, architecture="a DPT of MiDaS with a ViT"
    )
    return model


def midas_config(state: Mapping[str, Tensor]) -> DPTConfig:
    """transformers' configuration, from the shapes."""
    hybrid = _STEM in state
    width, _, patch, _ = state[MARK].shape
    patch = 16 if hybrid else patch  # a hybrid's patches are single pixels of a map at stride 16
    grid = round((state["pretrained.model.pos_embed"].shape[1] - 1) ** 0.5)
    depth = sum(name.endswith(".attn.qkv.weight") for name in state)
    scratch = [state[f"scratch.layer{place}_rn.weight"].shape for place in (1, 2, 3, 4)]
    return DPTConfig(
        image_size=grid * patch,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // _HEAD_CHANNELS),
        intermediate_size=state["pretrained.model.blocks.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=1e-6,
        # a hybrid's first two maps come from its ResNet, whatever stands here
        backbone_out_indices=[(place + 1) * depth // 4 - 1 for place in range(4)],
        reassemble_factors=[1, 1, 1, 0.5] if hybrid else [4, 2, 1, 0.5],
        neck_hidden_sizes=[shape[1] for shape in scratch],
        fusion_hidden_size=scratch[0][0],
        is_hybrid=hybrid,
        backbone_featmap_shape=[1, state[MARK].shape[1], grid, grid],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def renamed(state: Mapping[str, Tensor], hybrid: bool) -> dict[str, Tensor]:
    """MiDaS's names → transformers'; the classifier of the ViT, which nothing uses, is left out."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("pretrained.model.head."):
            continue
        for pattern, to in _RULES:
            if match := re.match(pattern, name):
                name = match.expand(to) + name[match.end() :]
                break
        name = re.sub(r"<(\d)-(\d)>", lambda places: str(int(places[1]) - int(places[2])), name)
        if hybrid:
            name = name.replace("patch_embeddings.projection", "projection")
        parts = (
            zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            if ".qkv." in name
            else [("", tensor)]
        )
        found.update({name.replace(".qkv.", f".{part}."): piece.clone() for part, piece in parts})
    return found
