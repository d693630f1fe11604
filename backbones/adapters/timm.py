"""Any timm model: CNN stages or ViT blocks as feature maps, timm's own pooled features as the
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from backbones.adapters.common import SizedCopies, gives_tokens, hub_file, layers_of, tokens_of
from backbones.backbone import Backbone, DataConfig
from backbones.checkpoint import Checkpoint, check_architecture, fit_state
from backbones.registry import Request
from cliptex_common.errors import UserError, error_summary, suggest

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmBackbone(Backbone):
    """A timm model, including its ImageNet head if it has one.

    Feature maps come from ``forward_intermediates``, in a plain ViT through the model's own final
    norm after each block read (as DINOv2's ``get_intermediate_layers`` does); the embedding is
    ``forward_head(…, pre_logits=True)``.

    Raises:
        UserError: the model's maps are not at integer strides, or it gives none.
    """

    libraries = ("timm",)

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
        self.model, self.name, self.data = model.eval(), name, data
        self.architecture, self.model_config = f"timm/{arch}", dict(model_config)
        info = cast(Any, model).feature_info
        self.strides = tuple(info[layer]["reduction"] for layer in data.layers)
        self.depth = len(info)
        self.token_blocks = self.depth if gives_tokens(model) else 0
        if not self.strides:
            raise UserError(
                f"{self.architecture} has no feature maps at strides 4 to 32; choose another"
                " architecture"
            )
        self.divisor = max(self.strides)
        self._norm = len({layer["reduction"] for layer in info}) == 1
        native = getattr(getattr(model, "patch_embed", None), "img_size", None)
        # CNNs take any size, as do ViTs built with dynamic_img_size; others are copied for each
        # size, but for those that ``_measure`` finds to take their own alone (``fixed_size``)
        self._sized = SizedCopies(model, native, lambda copy, size: copy.set_input_size(size))
        self._any_size = not hasattr(model, "set_input_size") or bool(
            getattr(model, "dynamic_img_size", False)
        )
        self.channels, self.embed_dim = self._measure()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._at(images).forward_intermediates(
            images,
            indices=list(self.data.layers),
            norm=self._norm,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return tuple(maps)

    def encode_image(self, images: Tensor) -> Tensor:
        model = self._at(images)
        return model.forward_head(model.forward_features(images), pre_logits=True)

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        return tokens_of(self._at(images), images, layers)

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        # the classifier is not used, and is part of the weights' digest
        identity["model_config"].pop("num_classes", None)
        return identity

    def _measure(self) -> tuple[tuple[int, ...], int]:
        """(channels, embed_dim) of the outputs, since some models differ from their declaration;
        sets ``fixed_size`` if the model takes no other size than its own."""
        native = tuple(resolve_model_data_config(self.model)["input_size"][-2:])
        reason = ""
        for size in ((4 * self.divisor, 6 * self.divisor), native):
            images = torch.zeros(1, 3, *size)
            try:
                with torch.inference_mode():
                    maps, embedding = self(images), self.encode_image(images)
            except Exception as error:  # each architecture refuses a size in its own way
                reason, self.fixed_size = error_summary(error), native
                continue
            shapes = [tuple(each.shape[-2:]) for each in maps]
            expected = [(size[0] // stride, size[1] // stride) for stride in self.strides]
            if shapes == expected and embedding.ndim == 2:
                self._sized.clear()
                return tuple(each.shape[1] for each in maps), embedding.shape[1]
            sides = ", ".join(f"{height}×{width}" for height, width in shapes)
            reason = f"maps of {size[0]}×{size[1]} are {sides}"
            break
        raise UserError(
            f"{self.architecture} gives no feature maps at integer strides ({reason}); choose"
            " another one"
        )

    def _at(self, images: Tensor) -> Any:
        self.check_size(images)
        if self._any_size or self.fixed_size:
            return self.model
        return self._sized.at(*images.shape[-2:])


def build(request: Request) -> Backbone:
    """The builder of ``timm/NAME[.TAG]``, and of every named entry whose ``architecture`` is one of
    timm's.

    Settings: ``architecture`` (``timm/NAME``), ``pretrained`` (tag), ``model_args`` (of
    ``create_model``), ``layers``, ``size``, ``mean``, ``std`` (over timm's data config)
    and, for weights in a package, ``state`` (returns the state dict and its source).

    Raises:
        UserError: see ``backbones.create``.
    """
    settings, checkpoint = request.settings, request.checkpoint
    arch, _, tag = settings.get("architecture", request.name).removeprefix("timm/").partition(".")
    tag = settings.get("pretrained", tag)
    _check_name(arch, tag)
    name = f"{arch}.{tag}" if tag else arch
    kwargs, source, licence = dict(settings.get("model_args", {})), "", "unknown"
    if checkpoint is not None:
        check_architecture(checkpoint, f"timm/{arch}")
        kwargs = {**_head(arch, checkpoint), **kwargs, **checkpoint.model_config}
        model = _create(name, kwargs)
        fit_state(model, checkpoint, f"timm/{arch}")
    elif request.random:
        model = _create(name, kwargs)
    elif "state" in settings:
        model = _create(name, kwargs)
        state, source = settings["state"]()
        model.load_state_dict(state)
    else:
        model, source, licence = _from_hub(name, kwargs, request.name)
    data = checkpoint.data if checkpoint and checkpoint.data else _data(model, settings)
    backbone = TimmBackbone(model, name=request.name, arch=arch, model_config=kwargs, data=data)
    backbone.weights = request.weights(backbone.model_state(), source, licence)
    return backbone


def _check_name(arch: str, tag: str) -> None:
    """Raises ``UserError`` with the nearest names if timm has no such model or weights."""
    if not timm.is_model(arch):
        raise UserError(f"timm has no model {arch!r}; {suggest(arch, timm.list_models())}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"timm has no weights {tag!r} of {arch}; known: {', '.join(tags) or 'none'}"
        )


def _head(arch: str, checkpoint: Checkpoint) -> dict[str, int]:
    """``num_classes`` of the checkpoint, which need not be timm's, as the head is not used."""
    classifier = cast(Any, timm.get_pretrained_cfg(arch)).classifier
    if not isinstance(classifier, str):
        return {}
    weights = [
        tensor for name, tensor in checkpoint.state.items() if name.endswith(f"{classifier}.weight")
    ]
    return {"num_classes": weights[0].shape[0] if weights else 0}


def _create(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The timm model with random weights, taking any image size where the architecture can.

    Raises:
        UserError: the model does not give feature maps.
    """
    try:
        model = timm.create_model(name, dynamic_img_size=True, **kwargs)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # it has no such argument
        model = timm.create_model(name, **kwargs)
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise UserError(f"timm model {name!r} gives no feature maps; choose another architecture")
    return model


def _from_hub(name: str, kwargs: Mapping[str, Any], backbone: str) -> tuple[nn.Module, str, str]:
    """(model, source, licence) of timm's own weights, converted by timm's own rules for the
    architecture."""
    config = cast(Any, timm.get_pretrained_cfg(name))
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"timm has no weights for {backbone!r}; pass --weights FILE, or ask for"
            f" random/{backbone}"
        )
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    overlay = {
        "file": str(hub_file(config.hf_hub_id, files, backbone=backbone)),
        "custom_load": bool(config.custom_load),
    }
    model = _create(name, {**kwargs, "pretrained": True, "pretrained_cfg_overlay": overlay})
    full = config.architecture + (f".{config.tag}" if config.tag else "")
    return model, f"timm/{full}", config.license or "unknown"


def _data(model: nn.Module, settings: Mapping[str, Any]) -> DataConfig:
    """timm's data config with the entry's own settings over it."""
    config = resolve_model_data_config(model)
    return DataConfig(
        size=tuple(settings.get("size", config["input_size"][-2:])),
        mean=tuple(settings.get("mean", config["mean"])),
        std=tuple(settings.get("std", config["std"])),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        crop_pct=settings.get("crop_pct", config["crop_pct"]),
        layers=tuple(settings.get("layers", ()))
        or layers_of([layer["reduction"] for layer in cast(Any, model).feature_info]),
    )
