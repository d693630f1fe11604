"""Every entry of the registry and members of the families of names, built thin: all blocks, few
channels."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import backbones
from backbones import registry
from backbones.cliptex.recipes import subsets
from benchmark.commands.new import template
from cliptex_common import registry as plugins
from tests.backbones.hub_repo import HUB_REPO
from tests.kinds import slow_except

MODELS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "small_models.json").read_text(encoding="utf-8")
)
VIT, TEXT = MODELS["vit"], MODELS["text"]


def configs(part: str) -> dict[str, Any]:
    """``model_type`` → config of a part of the file, where "vit" and "clip" stand for theirs."""
    shared = {"vit": VIT, "clip": MODELS["hf"]["clip"]}
    return {
        name: shared[config] if isinstance(config, str) else config
        for name, config in MODELS[part].items()
    }


HF = configs("hf")
THIN = {
    **MODELS["thin"],
    "franca-b14": {"entry": f"{HUB_REPO}:dino_like"},
    "capi-l14": {"entry": f"{HUB_REPO}:capi_like", "model_args": {}},
}
# L as B, with more blocks: test_large_entries_are_as_their_base
LARGE = MODELS["large"]
FAMILY_MEMBERS = [
    "random/timm/resnet18",
    "random/timm/vit_tiny_patch16_224",
    "random/timm/swin_tiny_patch4_window7_224",
    "random/timm/convnext_atto",
    "open_clip/RN50",
    "efficientnet-lite0",
    "random/my-net.py:MyNet",
    *(f"random/hf/{model}" for model in HF),
]


# ablations are built as cliptex is, see test_registry; those of other tests are registered where
# they run in the same process
NAMES = [
    name
    for name in backbones.names()
    if (name not in subsets() or name == "cliptex")
    and name not in LARGE
    and not name.startswith("tiny-")
]
TYPICAL = [  # small, and one of each adapter at least
    "random/timm/vit_tiny_patch16_224",
    "random/timm/resnet18",
    "efficientnet-lite0",
    "random/my-net.py:MyNet",
    "random/hf/dinov3_vit",
    "random/hf/clip",
    "random/hf/convnext",
    "random/clip",
    "random/capi-l14",
]
PARAMS = slow_except([*(f"random/{name}" for name in NAMES), *FAMILY_MEMBERS], TYPICAL)


@contextmanager
def repositories(folder: Path) -> Iterator[None]:
    """``hf/MODEL`` is a folder as ``save_pretrained`` writes it, and ``my-net.py`` a file as ``new
    backbone my-net`` writes it."""
    for model, config in HF.items():
        (folder / "hf" / model).mkdir(parents=True)
        (folder / "hf" / model / "config.json").write_text(
            json.dumps({"model_type": model, **config})
        )
        if "text_config" in config:
            save_tokenizer(folder / "hf" / model)
    path = folder / "hf/my-net.py"
    path.write_text(template("backbone", "my-net"))
    plugins.load(path, registers=False)
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
