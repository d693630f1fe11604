"""Kinds of encoders as small configs, each with random weights: what `docs/guide/encoders.md`
lists."""

from __future__ import annotations

from typing import Any

from tests.backbones.thin import HF, TEXT, VIT

PYRAMID = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "image_size": [64] * 2,
}
NARROW = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
CLIP = HF["clip"]
# model_type → config
TRANSFORMERS: dict[str, dict[str, Any]] = {
    **HF,
    "aimv2": CLIP,
    "aimv2_vision_model": VIT,
    "altclip": {**CLIP, "text_config": {**TEXT, "project_dim": 16}},
    "beit": VIT,
    "blip": {**CLIP, "text_config": {**TEXT, "encoder_hidden_size": 32}},
    "chinese_clip": CLIP,
    "clip_vision_model": VIT,
    "clipseg": CLIP,
    "data2vec-vision": VIT,
    "dinov2": VIT,
    "dinov3_convnext": NARROW,
    "dpt": VIT,
    "hiera": PYRAMID,
    "idefics3_vision": VIT,
    "internvl": {
        "vision_config": VIT,
        "text_config": {
            "model_type": "qwen2",
            **{key: TEXT[key] for key in ("hidden_size", "intermediate_size", "vocab_size")},
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "image_token_id": 3,
    },
    "mlcd_vision_model": VIT,
    "owlvit": CLIP,
    "pixio": VIT,
    "pvt_v2": {**NARROW, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 1, 1]},
    "resnet": {**NARROW, "embedding_size": 8},
    "sapiens2": VIT,
    "siglip2_vision_model": {**VIT, "num_patches": 16},
    "swin": {**PYRAMID, "window_size": 2},
    "tipsv2_vision_model": VIT,
    "vit": VIT,
    "vit_msn": VIT,
    "vjepa2": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "crop_size": 32,
        "patch_size": 8,
        "pred_hidden_size": 48,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "frames_per_clip": 4,
    },
}
# model_type → config of what is refused in one line
REFUSED: dict[str, dict[str, Any]] = {
    "align": {},
    "mobilevit": {},
    "pixtral": VIT,
    "sam_vision_model": VIT,
    "vitdet": VIT,
    "videomae": VIT,
}
THIN_VIT = {"embed_dim": 48, "num_heads": 3, "depth": 4}
# timm's name → arguments that make it small
TIMM: dict[str, dict[str, Any]] = {
    "aimv2_large_patch14_224": THIN_VIT,
    "convit_tiny": {"embed_dim": 48, "num_heads": 4, "depth": 4},
    "convnext_atto": {},
    "deit3_small_patch16_224": THIN_VIT,
    "hiera_tiny_224": {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "vit_base_patch16_dinov3": THIN_VIT,
    "vit_base_patch16_radio_v3": THIN_VIT,
    "vit_small_patch14_reg4_dinov2": THIN_VIT,
}
# entry points of tests/backbones/hub_repo, with the interface of these → theirs
TORCH_HUB = {
    "dino_like": "DINOv2, DINOv3, Franca",
    "capi_like": "CAPI",
    "video_like": "V-JEPA 2",
}
