"""Upsamplers of feature maps by name: where those with weights come from, and what each fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

UpsamplerName = Literal[
    "bilinear", "nearest", "bicubic", "jbu", "tile2", "anyup", "anyup-multi", "naf", "loftup"
]


@dataclass(frozen=True)
class HubSource:
    """Where an upsampler with weights comes from: part of a number's conditions.

    Attributes:
        repository, commit, entry: of its code on GitHub, for torch.hub.
        weights: address of their file.
        sha256: of that file; '' where nobody has published one.
        licence: of code and weights.
    """

    repository: str
    commit: str
    entry: str
    weights: str
    sha256: str
    licence: str

    @property
    def credit(self) -> str:
        """Source and licence in one line."""
        return f"github.com/{self.repository}, licence {self.licence}"


GITHUB = "https://github.com"
HUB_SOURCES: Mapping[str, HubSource] = {
    "anyup": HubSource(
        "wimmerth/anyup",
        "351807a9c4287368732cc247f26c7c81c9139af4",
        "anyup",
        f"{GITHUB}/wimmerth/anyup/releases/download/checkpoint/anyup_paper.pth",
        "9d035c0f27114a6f32bdd3d8ed93b6cd39dad4b8f8bf94e69fddbfbf022901b2",
        "CC-BY-4.0",
    ),
    "anyup-multi": HubSource(
        "wimmerth/anyup",
        "351807a9c4287368732cc247f26c7c81c9139af4",
        "anyup_multi_backbone",
        f"{GITHUB}/wimmerth/anyup/releases/download/checkpoint_v2/anyup_multi_backbone.pth",
        "b6cc407da8986c7e5c9098e61f7531767a9aca8fff20a1bc6c99d488e61aac59",
        "CC-BY-4.0",
    ),
    "naf": HubSource(
        "valeoai/NAF",
        "ad4e24d2ec32a2fbcccb3beaf7107bc3caa7038a",
        "naf",
        f"{GITHUB}/valeoai/NAF/releases/download/model/naf_release.pth",
        "c096c1ab2217a5c3ac136365f721685e2201379cb69d509cfb0261183847c98f",
        "Apache-2.0",
    ),
    "loftup": HubSource(
        "andrehuang/loftup",
        "6620d9bcde4c1af5cddedde6b9aaed6d4174a799",
        "loftup_{}",
        "https://huggingface.co/haiwen/loftup-{}/resolve/main/pytorch_model.bin",
        "",
        "MIT",
    ),
}
# source of a backbone's weights → LoftUp's name of it
LOFTUP_BACKBONES = {
    r"vit_small_patch14_dinov2\.|dinov2_vits14$": "dinov2s",
    r"vit_small_patch14_reg4_dinov2\.|dinov2_vits14_reg$": "dinov2s_reg",
    r"vit_base_patch14_dinov2\.|dinov2_vitb14$": "dinov2b",
    r"vit_base_patch14_reg4_dinov2\.|dinov2_vitb14_reg$": "dinov2b_reg",
    r"ViT-B-16-SigLIP(/|$)": "siglip",
    r"ViT-B-16-SigLIP2(/|$)": "siglip2",
}


def hub_source(name: str, backbone: Any) -> HubSource | None:
    """The source of the upsampler ``name`` for a backbone; None where there is none for it, or
    where it has no weights.

    Args:
        backbone: a ``Backbone``, or a record with its weights.
    """
    source = HUB_SOURCES.get(name)
    if source is None or name != "loftup":
        return source
    for pattern, model in LOFTUP_BACKBONES.items():
        if re.search(pattern, backbone.weights.source):
            address = source.weights.format(model)
            return replace(source, entry=source.entry.format(model), weights=address)
    return None


def upsampler_misfit(settings: Any, backbone: Any) -> str:
    """Why the upsampler of a task's settings, which is not ``bilinear``, cannot serve a backbone;
    '' if it can.

    Args:
        backbone: see ``hub_source``; with channels and strides, too.
    """
    name = settings.upsampler
    coarsest, stride = max(backbone.strides), settings.feature_stride
    if len(set(backbone.strides)) == 1 or settings.layers not in ("all", "auto"):
        stride = stride or coarsest  # a single map stays as it is
    if stride is not None and stride >= coarsest:
        return (
            f"upsampler={name} has nothing to do, maps are at stride {coarsest:g} already; set"
            " feature_stride to a lower one"
        )
    if name == "naf" and find_spec("natten") is None:
        return "upsampler=naf needs the package natten, which is not installed"
    if name == "naf" and any(width % 4 for width in backbone.channels):
        return f"upsampler=naf takes multiples of 4 channels, not {backbone.channels}"
    if name == "loftup" and hub_source(name, backbone) is None:
        return f"upsampler=loftup has no weights for {backbone.weights.source}"
    if name == "loftup" and settings.layers not in ("last", "auto"):
        return "upsampler=loftup is for the last layer; set layers=last"
    return ""
