"""Every entry of the registry and members of the families of names, built thin: all blocks, few
channels."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import backbones
from backbones import registry
from backbones.cliptex.training.recipes import subsets
from benchmark.cli.new import template
from cliptex_common import plugins
from tests.backbones.hub_repo import HUB_REPO
from tests.kinds import slow_except

FEW_BLOCKS = {"model_args": {"embed_dim": 96, "num_heads": 3, "depth": 4}}
THIN_VIT = {"model_args": {"embed_dim": 96, "num_heads": 3}}
THIN_CLIP = {
    "model_args": {
        "vision_cfg": {"width": 96, "head_width": 32},
        "text_cfg": {"width": 64, "layers": 2},
    }
}
THIN = {
    "clip": THIN_CLIP,
    "clip-openai": THIN_CLIP,
    "clip-ft": THIN_CLIP,
    "cliptex": THIN_CLIP,
    "siglip": {
        "model_args": {
            "embed_dim": 192,
            "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"},
            "text_cfg": {"width": 64, "heads": 2, "layers": 2},
        }
    },
    "mae-b16": THIN_VIT,
    "dinov2-b14": THIN_VIT,
    "deit3-b16": THIN_VIT,
    "beit-b16": THIN_VIT,
    "siglip2-b16": {
        "model_args": {
            "embed_dim": 192,
            "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"},
            "text_cfg": {"width": 64, "heads": 2, "layers": 2, "vocab_size": 1000},
        }
    },
    "pe-b16": {
        "model_args": {
            "embed_dim": 64,
            "vision_cfg": {"timm_model_name": "vit_pe_core_tiny_patch16_384"},
            "text_cfg": {"width": 64, "heads": 2, "layers": 2},
        }
    },
    **dict.fromkeys(("dinov2-reg-b14", "dinov3-b16", "c-radio-b16", "aimv2-l14"), FEW_BLOCKS),
    "franca-b14": {"entry": f"{HUB_REPO}:dino_like"},
    "capi-l14": {"entry": f"{HUB_REPO}:capi_like", "model_args": {}},
}
# L as B, with more blocks: test_large_entries_are_as_their_base
LARGE = {
    "siglip2-l16": "siglip2-b16",
    "pe-l14": "pe-b16",
    "dinov2-l14": "dinov2-b14",
    "dinov2-reg-l14": "dinov2-reg-b14",
    "dinov3-l16": "dinov3-b16",
    "c-radio-l16": "c-radio-b16",
    "franca-l14": "franca-b14",
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HF = {
    "dinov2_with_registers": {**VIT, "num_register_tokens": 4},
    "dinov3_vit": {**VIT, "num_register_tokens": 4},
    "ijepa": VIT,  # no class token
    "clip": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 16},
    "siglip": {"vision_config": VIT, "text_config": TEXT},
    "siglip2": {"vision_config": {**VIT, "num_patches": 16}, "text_config": TEXT},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "deit": VIT,  # a class token and one of distillation
    "internvl_vision": VIT,
    "metaclip_2": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 16},
    "radio": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "max_img_size": 128,
    },
    "siglip_vision_model": VIT,
    "tipsv2": {"vision_config": VIT, "text_config": TEXT},
    "vit_mae": {
        **VIT,
        "decoder_hidden_size": 32,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 32,
    },
}
FAMILY_MEMBERS = [
    "random/timm/resnet18",
    "random/timm/vit_tiny_patch16_224",
    "random/timm/swin_tiny_patch4_window7_224",
    "random/timm/convnext_atto",
    "open_clip/RN50",
    "efficientnet-lite0",
    "random/my-net",
    *(f"random/hf/{model}" for model in HF),
]


# ablations are built as cliptex is, see test_registry
NAMES = [
    name
    for name in backbones.names()
    if (name not in subsets() or name == "cliptex") and name not in LARGE
]
TYPICAL = [  # small, and one of each adapter at least
    "random/timm/vit_tiny_patch16_224",
    "random/timm/resnet18",
    "efficientnet-lite0",
    "random/my-net",
    "random/hf/dinov3_vit",
    "random/hf/clip",
    "random/hf/convnext",
    "random/clip",
    "random/capi-l14",
]
PARAMS = slow_except([*(f"random/{name}" for name in NAMES), *FAMILY_MEMBERS], TYPICAL)


@contextmanager
def repositories(folder: Path) -> Iterator[None]:
    """``hf/MODEL`` is a folder as ``save_pretrained`` writes it, and ``my-net`` a plugin as ``new
    backbone my-net`` writes it."""
    for model, config in HF.items():
        (folder / "hf" / model).mkdir(parents=True)
        (folder / "hf" / model / "config.json").write_text(
            json.dumps({"model_type": model, **config})
        )
        if "text_config" in config:
            save_tokenizer(folder / "hf" / model)
    path = folder / "my-net.py"
    path.write_text(template("backbone", "my-net"))
    plugins.load(path)
    before = Path.cwd()
    os.chdir(folder / "hf")
    yield
    os.chdir(before)
    plugins.LOADED[path].remove()


def save_tokenizer(folder: Path) -> None:
    """One token a word, as far as it knows the word."""
    words = {
        word: number
        for number, word in enumerate(("[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "dog", "cat"))
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


@contextmanager
def thin(name: str) -> Iterator[str]:
    """A name of ``PARAMS``; while the block runs, its entry is a thin one, built quickly."""
    base = name.removeprefix("random/")
    if base not in THIN or not name.startswith("random/"):
        yield name
        return
    entry = backbones.find(base)
    settings = {**entry.settings, **THIN[base]}
    registry.BACKBONES.pop(base, None)
    registry.BACKBONES.register(base, dataclasses.replace(entry, settings=settings))
    yield name
    registry.BACKBONES.pop(base, None)
    registry.BACKBONES.register(base, entry)
