"""Patches of open_clip's image towers in the space of texts, without training (Zhou, Loy, Dai:
MaskCLIP, ECCV 2022).

The pooling is applied to each position alone, so that its value is mapped as the pooled image is:
of a ViT the attention of the last block is its value projection; likewise the attention pooling of
CLIP's ResNets and of SigLIP; an average is over one cell.
"""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from backbones.adapters.common import gives_tokens


def can_be_dense(visual: Any) -> bool:
    """Whether ``encode_dense`` supports the tower's pooling: not CoCa's, nor a timm ViT's class
    token."""
    if isinstance(visual, VisionTransformer):
        attention = getattr(visual.transformer.resblocks[-1], "attn", None)
        return visual.attn_pool is None and isinstance(attention, nn.MultiheadAttention)
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        if hasattr(visual.head, "pool") or getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            return False
        return not gives_tokens(trunk) or getattr(trunk, "num_prefix_tokens", 0) == 0
    return isinstance(visual, ModifiedResNet)


def encode_dense(visual: Any, images: Tensor) -> Tensor:
    """(N, embed_dim, h, w) of normalised images (N, 3, H, W), by a tower that ``can_be_dense`` and
    takes their size."""
    if isinstance(visual, VisionTransformer):
        return _encode_vit(visual, images)
    if isinstance(visual, ModifiedResNet):
        maps = visual.forward_intermediates(images, indices=[4], intermediates_only=True)
        last, pool = maps["image_intermediates"][0], visual.attnpool
        return pool.c_proj(pool.v_proj(last.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return _encode_timm(visual, images)


def _encode_vit(visual: VisionTransformer, images: Tensor) -> Tensor:
    *blocks, last = visual.transformer.resblocks
    tokens = visual._embeds(images)
    for block in blocks:
        tokens = block(tokens)
    attention, width = last.attn, tokens.shape[-1]
    values = linear(
        last.ln_1(tokens),
        attention.in_proj_weight[2 * width :],
        attention.in_proj_bias[2 * width :],
    )
    tokens = tokens + last.ls_1(attention.out_proj(values))
    tokens = visual.ln_post(tokens + last.ls_2(last.mlp(last.ln_2(tokens))))[:, 1:]
    if visual.proj is not None:
        tokens = tokens @ visual.proj
    return tokens.transpose(1, 2).unflatten(2, visual.grid_size)


def _encode_timm(visual: TimmModel, images: Tensor) -> Tensor:
    """Each cell through the trunk's pooling and the projection alone."""
    trunk: Any = visual.trunk
    features = trunk.forward_features(images)
    if features.ndim == 4:
        count, _, *grid = features.shape
        cells = features.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
    else:
        count, grid = len(features), trunk.patch_embed.dynamic_feat_size(images.shape[-2:])
        cells = features.flatten(0, 1)[:, None]
    embedded = visual.head(trunk.forward_head(cells))
    return embedded.unflatten(0, (count, *grid)).permute(0, 3, 1, 2).contiguous()
