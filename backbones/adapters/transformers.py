"""``hf/REPO``: any image encoder of transformers, a network of stages or a plain ViT, by its config
alone; code that a repository carries is never run.

Of a plain ViT the tokens after each block are read. What remains beside the patches are registers,
whose number the config has, and class tokens or none. Which kinds were tried, and what is read of
each, is in ``docs/guide/encoders.md``.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig, AutoTokenizer

from backbones.adapters.common import (
    TokenBackbone,
    evenly_spaced,
    hub_file,
    layers_of,
    load_tokenizer,
    with_mean,
)
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
    native = trained_size(vision)
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


ADVICE = "take it from timm or open_clip, or write a module (`new backbone`)"
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)  # of inputs that a model does not take


class HfStages(Backbone):
    """A network of stages. The embedding is the mean of the last map.

    Raises:
        UserError: it takes images neither of any size nor of its own.
    """

    libraries = ("transformers",)

    def __init__(self, model: nn.Module, data: DataConfig, *, name: str) -> None:
        super().__init__()
        self.model, self.name = model.eval(), name
        maps, side = self._measure(data.size)
        strides = [side // each.shape[-1] for each in maps]
        layers = data.layers or layers_of(strides)
        self.data, self.depth = data.with_layers(layers), len(maps)
        self.strides = tuple(strides[layer] for layer in layers)
        self.channels = tuple(maps[layer].shape[1] for layer in layers)
        self.divisor, self.embed_dim = max(self.strides), self.channels[-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.check_size(images)
        maps = self.model(images).feature_maps
        return tuple(maps[layer] for layer in self.data.layers)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode_tokens(images, 1)[0][0]

    def _measure(self, native: tuple[int, int]) -> tuple[Sequence[Tensor], int]:
        """(all maps of an image, its width); sets ``fixed_size`` if it takes its own size only."""
        reason = ""
        for size in ((128, 128), native):
            try:
                with torch.inference_mode():
                    return self.model(torch.zeros(1, 3, *size)).feature_maps, size[1]
            except REFUSALS as error:
                reason, self.fixed_size = first_line(error), native
        raise UserError(f"{self.name!r} gives no feature maps ({reason}); {ADVICE}")


class HfBackbone(TokenBackbone):
    """A plain ViT of transformers.

    The embedding is, of a model with a text tower, what it compares with texts; else the model's
    own summary or attention pool of the patches, if it has one; else the class token, or the mean
    of the patches. A video encoder sees an image as a clip of one frame, repeated.

    Raises:
        UserError: its tokens are not patches, registers and class tokens.
    """

    libraries = ("transformers",)

    def __init__(
        self, model: nn.Module, config: Any, data: DataConfig, *, name: str, repo: str
    ) -> None:
        super().__init__()
        self.model: Any
        self.model, self.name = model.eval(), name
        self.repo = repo  # of the tokenizer
        vision_config = getattr(config, "vision_config", config)
        self.vision = image_tower(self.model)
        # architectures name their blocks differently; everywhere they are the longest list
        lists = [module for module in self.vision.modules() if isinstance(module, nn.ModuleList)]
        self.blocks = max(lists, key=len, default=nn.ModuleList())
        self.depth = self.token_blocks = len(self.blocks)
        self.divisor = patch_side(vision_config)
        layers = data.layers or evenly_spaced(vision_config.num_hidden_layers)
        self._check_blocks(max(layers) + 1, self.depth)
        self.data = data.with_layers(layers)
        self.strides = (self.divisor,) * len(layers)
        self.channels = (vision_config.hidden_size,) * len(layers)
        self.frames = getattr(vision_config, "tubelet_size", 1)
        # RADIO's field is the second
        registers = getattr(vision_config, "num_register_tokens", 0)
        self.registers = getattr(vision_config, "num_registers", registers)
        self.class_tokens = getattr(vision_config, "n_cls_tokens", 1)  # Pixio's mean of eight
        # no pooler of its own, so that its class token is not used (BEiT has one)
        self.mean_pooled = getattr(vision_config, "use_mean_pooling", False) and not hasattr(
            self.vision, "pooler"
        )
        self.prefix = self._count_prefix(trained_size(vision_config))
        self.pooled = ""  # field of the output that has the embedding
        self._choose_embedding()
        if self.has_text:
            self.text_length = config.text_config.max_position_embeddings

    @property
    def norm(self) -> nn.Module:
        """The final norm: the last one that is a child of the image tower itself."""
        norms = [module for module in self.vision.children() if "Norm" in type(module).__name__]
        return norms[-1] if norms else nn.Identity()

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        outputs = [self.norm(tokens) for tokens in self._after_blocks(images, layers)]
        if self.mean_pooled or self.prefix == self.registers:  # no class token
            return [with_mean(tokens[:, self.prefix :]) for tokens in outputs]
        return [
            (tokens[:, : self.class_tokens].mean(dim=1), tokens[:, self.prefix :])
            for tokens in outputs
        ]

    def encode_image(self, images: Tensor) -> Tensor:
        if not self.has_text:
            return self.encode_features(images)
        return pooled(self.model.get_image_features(**self._inputs(images)))

    def encode_features(self, images: Tensor) -> Tensor:
        if not self.pooled:
            return super().encode_image(images)
        return self.vision(**self._inputs(images))[self.pooled]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        # SigLIP, which has a logit bias, was trained on lower-cased texts, and without a mask
        is_siglip = hasattr(self.model, "logit_bias")
        tokens: Any = self.tokenizer(
            [text.lower() for text in texts] if is_siglip else list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        names = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
        device = next(self.model.parameters()).device
        inputs = {name: tokens[name].to(device) for name in names}
        return pooled(self.model.get_text_features(**inputs))

    @functools.cached_property
    def tokenizer(self) -> Callable[..., Mapping[str, Tensor]]:
        """Raises ``UserError`` if the tokenizer is neither in the local cache nor reachable."""
        load = functools.partial(AutoTokenizer.from_pretrained, self.repo, trust_remote_code=False)
        return load_tokenizer(load, self.repo, self.name)

    def _after_blocks(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """(N, prefix + patches, C) after each of these blocks, before the final norm: by hooks,
        since ``hidden_states`` have passed that norm in some models and not in others."""
        outputs: dict[int, Tensor] = {}

        def store(layer: int, output: Any) -> None:
            outputs[layer] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.blocks[i].register_forward_hook(lambda _, __, out, i=i: store(i, out))
            for i in layers
        ]
        try:
            self.vision(**self._inputs(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[layer] for layer in layers]

    def _inputs(self, images: Tensor) -> dict[str, Any]:
        """Arguments of the image tower, by what it declares. Raises ``UserError`` if it does not
        take images of this size."""
        self.check_size(images)
        parameters = inspect.signature(self.vision.forward).parameters
        if "pixel_values_videos" in parameters:
            clip = images.unsqueeze(1).expand(-1, self.frames, -1, -1, -1)
            return {"pixel_values_videos": clip}
        if "spatial_shapes" in parameters:  # SigLIP 2 of any aspect ratio takes patches in rows
            patches = nn.functional.pixel_unshuffle(images, self.divisor).unflatten(1, (3, -1))
            rows = patches.flatten(3).permute(0, 3, 2, 1).flatten(2)
            grid = [side // self.divisor for side in images.shape[-2:]]
            return {
                "pixel_values": rows,
                "pixel_attention_mask": torch.ones_like(rows[..., 0], dtype=torch.int64),
                "spatial_shapes": torch.tensor([grid] * len(images), device=images.device),
            }
        inputs: dict[str, Any] = {"pixel_values": images}
        if "interpolate_pos_encoding" in parameters:
            inputs["interpolate_pos_encoding"] = True
        if "noise" in parameters:  # masked autoencoders keep the patches of least noise, in order
            patches = images[0, 0].numel() // self.divisor**2
            inputs["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        return inputs

    def _count_prefix(self, native: tuple[int, int]) -> int:
        """Number of tokens before the patches: registers, and class tokens or none; finds out
        whether it takes images of its own size only."""
        side, reason = self.divisor, ""
        attempts = [[(4 * side, 6 * side), (6 * side, 2 * side)], [native]]
        if "pixel_values_videos" in inspect.signature(self.vision.forward).parameters:
            del attempts[0]  # a clip's positions count the patches of its own size
        for sizes in attempts:
            try:
                shapes = [self._token_shape(size) for size in sizes]
            except REFUSALS as error:
                height, width = sizes[0]
                reason = f"does not take images of {height}×{width}: {first_line(error)}"
                continue
            self.fixed_size = native if sizes == [native] else None
            patches = [height * width // side**2 for height, width in sizes]
            prefixes = {shape[1] - count for shape, count in zip(shapes, patches, strict=True)}
            prefix = prefixes.pop()
            are_tokens = all(len(shape) == 3 and shape[0] == 2 for shape in shapes)
            if are_tokens and not prefixes and prefix >= self.registers:
                return prefix
            reason = (
                f"gives {tuple(shapes[0])} for two images of {patches[0]} patches, which are no"
                f" tokens of patches after {self.registers} registers"
            )
            break
        raise UserError(f"{self.name!r} {reason}; {ADVICE}")

    def _token_shape(self, size: tuple[int, int]) -> torch.Size:
        """Of the tokens of two images after the first block."""
        with torch.inference_mode():
            (tokens,) = self._after_blocks(torch.zeros(2, 3, *size), [0])
        return tokens.shape

    def _choose_embedding(self) -> None:
        """Find out what the model offers: a text tower, and an embedding of the image."""
        images = torch.zeros(1, 3, *(self.fixed_size or (4 * self.divisor, 6 * self.divisor)))
        with torch.inference_mode():
            outputs = self.vision(**self._inputs(images))
            self.has_text = self._embeds_texts(images)
            if "summary" in outputs:  # RADIO's class tokens
                self.pooled = "summary"
            elif self.has_text or hasattr(self.vision, "head"):  # an attention pool
                self.pooled = "pooler_output"
            self.embed_dim = self.encode_image(images).shape[1]

    def _embeds_texts(self, images: Tensor) -> bool:
        """Whether the model has embeddings of texts and images that can be compared."""
        model = self.model
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
            return False
        try:
            text = pooled(model.get_text_features(input_ids=torch.zeros(1, 2, dtype=torch.int64)))
            image = pooled(model.get_image_features(**self._inputs(images)))
        except REFUSALS:
            return False
        return text.shape == image.shape


def pooled(output: Any) -> Tensor:
    """The embedding in what ``get_text_features`` or ``get_image_features`` returns."""
    return output.pooler_output


def image_tower(model: Any) -> Any:
    """The part of a model that encodes images: of V-JEPA 2, all but its predictor."""
    for name in ("vision_model", "vision_tower"):
        if hasattr(model, name):
            return getattr(model, name)
    return model.encoder if hasattr(model, "predictor") else model


def patch_side(vision_config: Any) -> int:
    """Side of a patch in pixels."""
    side = vision_config.patch_size
    return side[0] if isinstance(side, list | tuple) else side


def trained_size(vision_config: Any) -> tuple[int, int]:
    """(height, width) in pixels that the model was trained at, by its config."""
    side = getattr(vision_config, "image_size", None) or getattr(vision_config, "crop_size", 224)
    return tuple(side) if isinstance(side, list | tuple) else (side, side)
