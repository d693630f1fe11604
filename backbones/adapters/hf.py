"""``hf/REPO``: any image encoder of transformers, by its config alone; code that a repository
carries is never run.

Which kinds were tried, and what is read of each, is in ``docs/guide/encoders.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig

from backbones.adapters.hf_hub import hub_file
from backbones.adapters.transformers import ADVICE, HfBackbone, HfStages, image_size
from backbones.backbone import Backbone, DataConfig
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Request
from cliptex_common.errors import UserError, first_line

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PREPROCESSING = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
NOT_ARCHITECTURE = (  # keys of a config
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "auto_map",
)


def has_stages(vision_config: Any) -> bool:
    """Whether it is a network of stages, not a plain ViT."""
    is_plain = hasattr(vision_config, "patch_size") and hasattr(vision_config, "num_hidden_layers")
    return hasattr(vision_config, "depths") or not is_plain


def architecture_config(config: Any) -> dict[str, Any]:
    """What builds the architecture again: the config's differences from its class's defaults."""
    changes = json.loads(config.to_json_string(use_diff=True))
    settings = {key: value for key, value in changes.items() if key not in NOT_ARCHITECTURE}
    return {**settings, "model_type": config.model_type}


def build(request: Request) -> Backbone:
    """The builder of ``hf/REPO``; REPO is one of the hub's, or a local folder in the same layout.

    Settings: ``repo``, ``model_config`` (of ``architecture_config``, instead of the repository's),
    ``layers``, ``size``.

    Raises:
        UserError: see ``backbones.create``.
    """
    settings, checkpoint = request.settings, request.checkpoint
    repo = settings.get("repo", request.name.removeprefix("hf/"))
    config = _config(repo, settings, request.name)
    vision = getattr(config, "vision_config", config)
    pretrained = checkpoint is None and not request.random
    model = _model(config, repo, request.name, pretrained, has_stages(vision))
    if checkpoint is not None:
        model_config = architecture_config(config)
        check_architecture(checkpoint, f"hf/{config.model_type}", model_config)
        fit_state(model, checkpoint, request.name)
    data = checkpoint.data if checkpoint is not None else None
    data = data or _data(repo, vision, settings, request.name, needed=pretrained)
    backbone: HfStages | HfBackbone
    if has_stages(vision):
        backbone = HfStages(model, data, name=request.name)
    else:
        backbone = HfBackbone(model, config, data, name=request.name, repo=repo)
    backbone.architecture = f"hf/{config.model_type}"
    backbone.model_config = architecture_config(config)
    backbone.weights = request.weights(backbone.model_state(), f"hf/{repo}")
    return backbone


def _model(config: Any, repo: str, backbone: str, pretrained: bool, stages: bool) -> nn.Module:
    """The library's own class, not AutoModel, which can run a repository's code, nor AutoBackbone,
    which asks the network."""
    classes = MODEL_FOR_BACKBONE_MAPPING if stages else MODEL_MAPPING
    if stages:
        config.out_indices = list(range(len(getattr(config, "stage_names", ()))))
    try:
        cls = cast(Any, classes[type(config)])
        if hasattr(config, "mask_ratio"):
            config.mask_ratio = 0.0  # masks are for training
        if not pretrained:
            return cls(config)
        file = _file(repo, WEIGHTS, backbone)
        is_index = file.suffix == ".json"  # it names shards to be fetched
        return cls.from_pretrained(
            repo, config=config, dtype=torch.float32, local_files_only=not is_index
        )
    except UserError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"transformers has no image encoder for {backbone!r} ({first_line(error)}); {ADVICE}"
        ) from error


def _file(repo: str, names: Sequence[str], backbone: str) -> Path:
    """The first of ``names`` in a local folder or a hub repository. Raises ``UserError`` if there
    is none."""
    if not Path(repo).is_dir():
        return hub_file(repo, names, backbone=backbone, weights=names == WEIGHTS)
    for name in names:
        if (path := Path(repo, name)).is_file():
            return path
    raise UserError(
        f"{repo} has no {names[0]} for {backbone!r}; save_pretrained of transformers writes it"
    )


def _config(repo: str, settings: Mapping[str, Any], backbone: str) -> Any:
    """The model's config, from the settings or the repository. Raises ``UserError`` if transformers
    does not have the model."""
    stored = settings.get("model_config")
    if not stored:
        stored = json.loads(_file(repo, ("config.json",), backbone).read_text(encoding="utf-8"))
    try:
        return AutoConfig.for_model(
            **{key: value for key, value in stored.items() if key not in NOT_ARCHITECTURE}
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"transformers does not know the model of {backbone!r} ({first_line(error)}), and code"
            f" of a repository is never run; {ADVICE}"
        ) from error


def _data(
    repo: str, vision: Any, settings: Mapping[str, Any], backbone: str, *, needed: bool
) -> DataConfig:
    """The repository's own preprocessing with the settings over it; for random weights it may be
    missing."""
    stored: dict[str, Any] = {}
    try:
        file = _file(repo, PREPROCESSING, backbone)
        stored = json.loads(file.read_text(encoding="utf-8"))
        stored = stored.get("image_processor", stored)
    except UserError:
        if needed:
            raise
    native = image_size(vision)
    resize, crop = _size(stored.get("size")), _size(stored.get("crop_size"))
    cropped = bool(stored.get("do_center_crop")) and "height" in crop
    shape = crop if cropped else resize
    edge = resize.get("shortest_edge") or resize.get("height") or native[0]
    size = (shape["height"], shape["width"]) if "height" in shape else (edge, edge)
    if not stored.get("do_normalize", True):  # the model takes [0, 1], as RADIO and TIPSv2 do
        stored["image_mean"], stored["image_std"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return DataConfig(
        size=tuple(settings.get("size", size)),
        mean=tuple(stored.get("image_mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(stored.get("image_std", IMAGENET_DEFAULT_STD)),
        interpolation="bilinear" if stored.get("resample") == 2 else "bicubic",
        crop_pct=crop["height"] / edge if cropped else 1.0,
        squash=not cropped and "height" in resize,
        layers=tuple(settings.get("layers", ())),
    )


def _size(stored: Any) -> dict[str, int]:
    return {"height": stored, "width": stored} if isinstance(stored, int) else stored or {}
