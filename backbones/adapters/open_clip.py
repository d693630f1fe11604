"""Any open_clip model: image tower (ViT, CLIP ResNet, or a timm trunk such as SigLIP's) and its
text tower; its position embeddings at other sizes; and its patches in the space of texts, without
training (Zhou, Loy, Dai: MaskCLIP, ECCV 2022).

For the last the pooling is applied to each position alone, so that its value is mapped as the
pooled image is: of a ViT the attention of the last block is its value projection; likewise the
attention pooling of CLIP's ResNets and of SigLIP; an average is over one cell.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import open_clip
import timm
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import VisionTransformer
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from backbones.adapters.common import (
    SizedCopies,
    evenly_spaced,
    gives_tokens,
    hub_file,
    layers_of,
    load_tokenizer,
    tokens_of,
)
from backbones.backbone import Backbone, DataConfig
from backbones.checkpoint import Checkpoint, check_architecture, fit_state, load_checkpoint
from backbones.registry import BACKBONES, Request
from cliptex_common.errors import UserError, suggest

_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


class OpenClipBackbone(Backbone):
    """An open_clip model. The embedding is CLIP's projected one, so that text and image can be
    compared.

    Feature maps of a ViT are the patch tokens of the blocks read, each through the tower's final
    norm where it has one.
    """

    has_text = True

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        arch: str,
        model_config: Mapping[str, Any],
        data: DataConfig,
    ) -> None:
        super().__init__()
        self.model, self.name, self.data = model, name, data
        self.architecture, self.model_config = f"open_clip/{arch}", dict(model_config)
        visual = self.visual
        self.libraries = ("open_clip",)
        if isinstance(visual, TimmModel):
            self.libraries += ("timm",)
        if any(key.startswith("hf_") for key in model_config["text_cfg"]):
            self.libraries += ("transformers",)
        self.embed_dim = self.model_config["embed_dim"]
        self.channels, self.strides = feature_maps(visual, data.layers)
        self.divisor, self.depth = max(self.strides), len(all_strides(visual))
        if isinstance(visual, VisionTransformer):
            self.token_blocks = len(visual.transformer.resblocks)
        elif isinstance(visual, TimmModel) and gives_tokens(visual.trunk):
            self.token_blocks = len(cast(Any, visual.trunk).feature_info)
        any_size = isinstance(visual, TimmModel) and not hasattr(visual.trunk, "set_input_size")
        copies = SizedCopies(visual, native_size(visual), set_image_size)
        self._sized = None if any_size else copies  # None: the tower itself takes any size

    @property
    def visual(self) -> Any:
        return cast(Any, self.model).visual

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._at(images).forward_intermediates(
            images,
            indices=list(self.data.layers),
            stop_early=True,
            intermediates_only=True,
            normalize_intermediates=normalizes(self.visual),
        )
        return tuple(maps["image_intermediates"])

    def encode_image(self, images: Tensor) -> Tensor:
        return self._at(images)(images)

    def encode_features(self, images: Tensor) -> Tensor:
        """As ``Backbone.encode_features``; the embedding where attention pooling includes the
        projection (CLIP's ResNets). open_clip's own methods end behind the projection, so this
        repeats what they do before it."""
        visual = self._at(images)
        if isinstance(visual, VisionTransformer):
            return visual._pool(visual.transformer(visual._embeds(images)))[0]
        if isinstance(visual, TimmModel):
            trunk: Any = visual.trunk
            if hasattr(visual.head, "pool"):
                return visual.head.pool(trunk(images))
            return trunk.forward_head(trunk.forward_features(images), pre_logits=True)
        return self.encode_image(images)

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        visual = self._at(images)
        if not isinstance(visual, VisionTransformer):
            return tokens_of(visual.trunk, images, layers)
        outputs = visual.forward_intermediates(
            images,
            indices=list(layers),
            normalize_intermediates=normalizes(visual),
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        prefixes = [prefix[:, 0] for prefix in outputs["image_intermediates_prefix"]]
        return list(zip(prefixes, outputs["image_intermediates"], strict=True))

    @property
    def has_dense_text(self) -> bool:
        return self.has_text and can_be_dense(self.visual)

    def encode_dense(self, images: Tensor) -> Tensor:
        if not self.has_dense_text:
            return super().encode_dense(images)
        return encode_dense(self._at(images), images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        return cast(Any, self.model).encode_text(tokens)

    @functools.cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts → (N, context_length) int64 token ids, as the text tower was trained with.

        Raises:
            UserError: the tokenizer's files are on the hub and cannot be had.
        """
        return make_tokenizer(self.model_config, backbone=self.name)

    def _at(self, images: Tensor) -> Any:
        return self._sized.at(images.shape[-2], images.shape[-1]) if self._sized else self.visual


def make_tokenizer(
    model_config: Mapping[str, Any], *, backbone: str
) -> Callable[[list[str]], Tensor]:
    """The tokenizer of an open_clip model config: CLIP's byte-pair encoder, or the one it names.

    Raises:
        UserError: it is on the hub, and neither in the local cache nor reachable.
    """
    text = model_config["text_cfg"]
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    options = dict(text.get("tokenizer_kwargs", {}))
    repo = text.get("hf_tokenizer_name")
    if not repo:
        return SimpleTokenizer(context_length=length, **options)
    make = functools.partial(
        HFTokenizer,
        repo,
        context_length=length,
        tokenizer_mode=text.get("tokenizer_mode"),
        **options,
    )
    return load_tokenizer(make, repo, backbone)


def build(request: Request) -> Backbone:
    """The builder of ``open_clip/ARCH[/PRETRAINED]``, and of named entries whose ``architecture``
    is open_clip's.

    Settings: ``architecture`` (``open_clip/ARCH``), ``pretrained`` (tag), ``model_args`` (changes
    to open_clip's model config, by section), ``model_config`` (replaces it), ``layers``,
    ``size``.

    Raises:
        UserError: see ``backbones.create``.
    """
    settings, checkpoint = request.settings, request.checkpoint
    arch, _, tag = (
        settings.get("architecture", request.name).removeprefix("open_clip/").partition("/")
    )
    tag = settings.get("pretrained", tag)
    config = settings.get("model_config") or _library_config(arch, settings.get("model_args", {}))
    if tag:
        _check_tag(arch, tag, config)
    if checkpoint is not None:
        check_architecture(checkpoint, f"open_clip/{arch}", config)
    pretrained = cast(dict[str, Any], open_clip.get_pretrained_cfg(arch, tag)) if tag else {}
    file = None
    if tag and checkpoint is None and not request.random:
        # before the model is built, so that a missing network shows at once
        file = _pretrained_file(pretrained, request.name)
    model = build_model(config, backbone=request.name)
    has_text, source = True, ""
    if checkpoint is not None:
        has_text = load_open_clip(model, checkpoint, architecture=f"open_clip/{arch}")
    elif file is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_clip.load_checkpoint(cast(Any, model), str(file), weights_only=True)
        source = f"open_clip/{arch}/{tag}"
    data = checkpoint.data if checkpoint and checkpoint.data else _data(model, pretrained, settings)
    backbone = OpenClipBackbone(model, name=request.name, arch=arch, model_config=config, data=data)
    backbone.has_text = has_text
    state = backbone.model_state() if has_text else backbone.visual.state_dict()
    backbone.weights = request.weights(state, source)
    return backbone


# what files of weights are often of, beside the architectures of named backbones
COMMON = {"timm/resnet18", "timm/vit_small_patch16_224", "timm/convnext_tiny", "open_clip/ViT-B-32"}


def nearest_architectures(weights: Path) -> str:
    """The three architectures, of ``COMMON`` and the named backbones, whose tensors' shapes are
    most like those of a file. Raises ``UserError`` if it cannot be read."""
    state = load_checkpoint(weights).state
    shapes: Counter[torch.Size] = Counter(tensor.shape for tensor in state.values())
    named = (entry.settings.get("architecture", "") for entry in BACKBONES.values())
    without_tags = (architecture.partition(".")[0] for architecture in named)
    likeness = {}
    for architecture in {*COMMON, *filter(None, without_tags)}:
        family, _, name = architecture.partition("/")
        with torch.device("meta"):  # shapes alone
            is_timm = family == "timm"
            config = {} if is_timm else open_clip.get_model_config(name)
            model = timm.create_model(name) if is_timm else build_model(config)
        own: Counter[torch.Size] = Counter(tensor.shape for tensor in model.state_dict().values())
        likeness[architecture] = (own & shapes).total() / (own | shapes).total()
    best = sorted(likeness, key=lambda name: (-likeness[name], name))[:3]
    return ", ".join(f"{name} ({likeness[name]:.0%})" for name in best)


def build_model(model_config: Mapping[str, Any], *, backbone: str = "") -> nn.Module:
    """A randomly initialised open_clip model of a model config, on the CPU, in float32; also a
    custom one.

    Raises:
        UserError: its text tower's config is on the hub and cannot be had.
    """
    config = copy.deepcopy(dict(model_config))
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if "multimodal_cfg" in config:
        raise UserError(
            f"{backbone!r} is a CoCa model, whose captioning decoder is not supported; choose a"
            " CLIP model"
        )
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
        hub_file(
            config["text_cfg"]["hf_model_name"], ("config.json",), backbone=backbone, weights=False
        )
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    return (CustomTextCLIP if custom_text else CLIP)(**config)


def load_open_clip(model: nn.Module, checkpoint: Checkpoint, *, architecture: str) -> bool:
    """Load a checkpoint in open_clip's layout, or in one it can convert; returns whether it has a
    text tower.

    Raises:
        UserError: it does not fit.
    """
    state = dict(checkpoint.state)
    if checkpoint.architecture is None:
        state = convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)
    text = any("token_embedding" in name or name.startswith("text.") for name in state)
    target: nn.Module = model if text else cast(Any, model).visual
    fit_state(target, replace(checkpoint, state=state), architecture)
    return text


def _library_config(arch: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's own model config of ``arch`` with ``changes`` over it. Raises ``UserError``
    naming the nearest."""
    # names with a colon (local-dir:, hf-hub:) are not the library's own
    config = open_clip.get_model_config(arch) if ":" not in arch else None
    if config is None:
        raise UserError(
            f"open_clip has no model {arch!r}; {suggest(arch, open_clip.list_models())}"
        )
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
    return config


def _check_tag(arch: str, tag: str, config: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if there are no such weights, or they were trained with the other
    activation."""
    pretrained = open_clip.get_pretrained_cfg(arch, tag)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise UserError(
            f"open_clip has no weights {tag!r} of {arch}; known: {', '.join(tags) or 'none'}"
        )
    if (
        bool(pretrained.get("quick_gelu")) != bool(config.get("quick_gelu"))
        and "timm_model_name" not in config["vision_cfg"]
    ):
        base = arch.removesuffix("-quickgelu")
        fitting = base if config.get("quick_gelu") else f"{arch}-quickgelu"
        raise UserError(
            f"weights {tag!r} were trained with the other activation; ask for"
            f" open_clip/{fitting}/{tag}"
        )


def _pretrained_file(pretrained: Mapping[str, Any], backbone: str) -> Path:
    """The file of open_clip's own weights, downloaded unless it is in the local cache."""
    repo, _, file = pretrained["hf_hub"].rpartition("/")
    stem = file.rpartition(".")[0]
    return hub_file(repo, (f"{stem}.safetensors", file) if file else _HUB_FILES, backbone=backbone)


def _data(
    model: nn.Module, pretrained: Mapping[str, Any], settings: Mapping[str, Any]
) -> DataConfig:
    """open_clip's preprocessing of these weights, with the entry's own settings over it."""
    visual = cast(Any, model).visual
    return DataConfig(
        size=tuple(settings.get("size", native_size(visual))),
        mean=tuple(pretrained.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(pretrained.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=pretrained.get("interpolation") or "bicubic",
        crop_pct=1.0,
        squash=pretrained.get("resize_mode") == "squash",
        layers=tuple(settings.get("layers", ())) or default_layers(visual),
    )


def native_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels that an image tower was built for."""
    height, width = to_2tuple(visual.image_size)
    return height, width


def default_layers(visual: Any) -> tuple[int, ...]:
    """The layers that are read by default: evenly spaced blocks, or one stage for each stride."""
    if isinstance(visual, ModifiedResNet):
        return (1, 2, 3, 4)  # 0 is the stem
    if isinstance(visual, VisionTransformer):
        return evenly_spaced(len(visual.transformer.resblocks))
    return layers_of([layer["reduction"] for layer in visual.trunk.feature_info])


def feature_maps(visual: Any, layers: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, strides) of the feature maps of ``layers``."""
    if isinstance(visual, VisionTransformer):
        for layer in layers:
            visual.transformer.resblocks[layer]  # raises IndexError if there is no such block
        return (visual.transformer.width,) * len(layers), (visual.patch_size[0],) * len(layers)
    if isinstance(visual, ModifiedResNet):
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        widths = [visual.conv3.out_channels] + [stage[-1].conv3.out_channels for stage in stages]
    else:
        widths = [layer["num_chs"] for layer in visual.trunk.feature_info]
    strides = all_strides(visual)
    return tuple(widths[layer] for layer in layers), tuple(strides[layer] for layer in layers)


def normalizes(visual: Any) -> bool:
    """Whether feature maps pass the tower's final norm: not the stages of a pyramid, nor
    towers whose norm follows attentional pooling."""
    if isinstance(visual, VisionTransformer):
        return visual.attn_pool is None
    return len(set(all_strides(visual))) == 1


def all_strides(visual: Any) -> tuple[int, ...]:
    """The stride of each layer that maps can be read from."""
    if isinstance(visual, VisionTransformer):
        return (visual.patch_size[0],) * len(visual.transformer.resblocks)
    if isinstance(visual, ModifiedResNet):
        return (4, 4, 8, 16, 32)
    return tuple(layer["reduction"] for layer in visual.trunk.feature_info)


def set_image_size(visual: Any, size: tuple[int, int]) -> None:
    """Make an image tower take images of ``size`` (height, width), as open_clip's
    ``force_image_size`` does when it loads weights."""
    if isinstance(visual, TimmModel):
        visual.set_input_size(size)
    elif isinstance(visual, ModifiedResNet):
        pool = visual.attnpool
        side = math.isqrt(len(pool.positional_embedding) - 1)
        grid = (size[0] // 32, size[1] // 32)
        pool.positional_embedding = _resized(pool.positional_embedding, (side, side), grid)
    else:
        grid = (size[0] // visual.patch_size[0], size[1] // visual.patch_size[1])
        visual.positional_embedding = _resized(visual.positional_embedding, visual.grid_size, grid)
        visual.grid_size = grid


def _resized(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(resize_position(embedding, old, new), requires_grad=False)


def resize_position(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embedding (1 + rows·columns, width) of an ``old`` grid for a ``new`` one; the first
    token stays.

    Bicubic with antialiasing, as open_clip's ``resize_pos_embed``.
    """
    if old == new:
        return embedding
    grid = embedding[1:].T.reshape(1, -1, *old).float()
    grid = interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])


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
    """The forward pass of ``VisionTransformer``, with the last block's values in place of its
    attention."""
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
