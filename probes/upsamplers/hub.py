"""Upsamplers with weights: code of torch.hub at a commit, and a file of weights with its sha256.

**This runs the code of their repositories**, see ``backbones.adapters.torch_hub``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from backbones.adapters.torch_hub import load_entry
from backbones.backbone import Backbone
from cliptex_common.errors import UserError, error_summary
from cliptex_common.files import content_key, sha256_file
from probes.upsamplers.names import HubSource, hub_source

QUERIES = 4096  # pixels that attend at once, of AnyUp


def load_upsampler(name: str, backbone: Backbone) -> HubOperators:
    """A published upsampler, as a ``MakeOperator``.

    Raises:
        UserError: it has none for this backbone; code or weights cannot be fetched, or are not
            those that were published.
    """
    source = hub_source(name, backbone)
    if source is None:
        raise UserError(f"upsampler={name} has no weights for {backbone.weights.source}")
    repository = f"{source.repository}:{source.commit}"
    module, _ = load_entry(repository, source.entry, {}, f"upsampler={name}", False, pinned=True)
    module.load_state_dict(_weights(name, source))
    kind = {"naf": Naf, "loftup": LoftUp}.get(name, AnyUp)
    return kind(module).eval().requires_grad_(False)


def _weights(name: str, source: HubSource) -> dict[str, Tensor]:
    key = source.sha256 or content_key(source.weights, 64)
    path = Path(torch.hub.get_dir(), "checkpoints", f"{name}-{key[:16]}.pth")
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.weights, str(path), progress=False)
    except OSError as error:
        raise UserError(
            f"cannot fetch the weights of upsampler={name} ({error_summary(error)}); download"
            f" {source.weights} to {path}"
        ) from error
    if source.sha256 and sha256_file(path) != source.sha256:
        raise UserError(f"{path} is not the published file of upsampler={name}; delete it")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def add_statistics(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a module ``mean`` and ``std`` of colours, (3, 1, 1), which move with it and are not
    stored."""
    for name, values in (("mean", mean), ("std", std)):
        module.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)


class HubOperators(nn.Module):
    """A ``MakeOperator`` by a published module.

    Attributes:
        is_linear: whether its operators are those of ``UpsampledMaps``; else they upsample the
            given map, whatever they are called with.
    """

    is_linear = False
    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        add_statistics(self, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def forward(self, colours: Tensor, features: Tensor, size: Any) -> Any:
        """See ``MakeOperator``."""
        return self.operator((colours - self.mean) / self.std, features, size)

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        """``guide``: images with ImageNet's mean and deviation."""
        raise NotImplementedError


class AnyUp(HubOperators):
    """AnyUp (Wimmer et al. 2025): attention over the cells of the map, whose values are the map
    itself. So it takes other values as well, and its weights sum to 1."""

    is_linear = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.attend: Any = self.module.cross_decode
        self.module.cross_decode = _QueriesAndKeys()

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        queries, keys = self.module(guide, features, output_size=size)

        def apply(values: Tensor) -> Tensor:
            upsampled: Tensor = self.attend(queries, keys, values, q_chunk_size=QUERIES)
            # it caches a mask of pixels × cells for each size of an image
            self.attend.forward.__globals__["compute_attention_mask"].cache_clear()
            return upsampled

        return apply


class _QueriesAndKeys(nn.Module):
    def forward(self, queries: Tensor, keys: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return queries, keys


class Naf(HubOperators):
    """NAF (2025): neighbourhood attention, each head over its own channels."""

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        return lambda _: self.module(guide, features, size)


class LoftUp(HubOperators):
    """LoftUp (Huang et al. 2025), which normalises channels first. One image at a time: it scales
    its guide, whose size is that of the result, over the batch."""

    def operator(self, guide: Tensor, features: Tensor, size: tuple[int, ...]) -> Any:
        guide = F.interpolate(guide, size, mode="bilinear")
        pairs = list(zip(features.split(1), guide.split(1), strict=True))
        return lambda _: torch.cat([self.module(*pair) for pair in pairs])
