"""What a backbone is: frozen multi-scale feature maps, an image embedding, perhaps a text
embedding, and who it is."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from backbones.versions import versions
from common.errors import UserError
from common.files import content_key


@dataclass(frozen=True)
class DataConfig:
    """How the backbone wants its images; travels with the weights.

    Attributes:
        size: (height, width) in pixels the weights were trained at; probes may feed other sizes.
        mean, std: per-channel RGB statistics of images scaled to [0, 1].
        interpolation: ``bilinear`` or ``bicubic``, for resizing whole images.
        crop_pct: share of the resized short side that the centre crop keeps when a whole image is
            embedded.
        squash: whole images are resized to ``size`` without keeping their shape (SigLIP), so
            nothing is cropped.
        layers: which blocks (ViT) or stages (CNN) the feature maps are read from, shallow to deep.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    squash: bool = False
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Weights:
    """Where the weights came from, and what they are.

    Attributes:
        source: ``timm/resnet18.a1_in1k``, a file path, ``random(seed=0)`` …
        sha256: hex digest over the state dict's names, dtypes, shapes and bytes.
        licence: SPDX-like name of the weights' licence, or ``unknown``.
    """

    source: str
    sha256: str
    licence: str = "unknown"


class Backbone(nn.Module, ABC):
    """A frozen image encoder. Construct through ``backbones.create``; always in eval mode, never
    asks for gradients.

    Attributes:
        name: its name in the registry (``clip``, ``timm/resnet18`` …).
        architecture: the library's own name of the architecture (``timm/resnet18``,
            ``open_clip/ViT-B-16-quickgelu``).
        channels: channels of each feature map, shallow to deep.
        strides: stride of each feature map with respect to the input, in pixels. A plain ViT gives
            one stride only.
        divisor: inputs' heights and widths are padded to a multiple of this by whoever calls
            ``forward``.
        embed_dim: length of the image embedding.
        has_text: whether ``encode_text`` works; ``has_dense_text``: whether ``encode_dense`` does.
        data: how images are prepared.
        weights: identity of the weights.
        model_config: what the architecture was built with, JSON-able, beyond its name.
        libraries: import names of those that compute it; their versions are part of its identity.
        version: of the adapter's code, raised whenever the same weights and settings would give
            other numbers.
    """

    name: str
    architecture: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    divisor: int
    embed_dim: int
    has_text: bool = False
    data: DataConfig
    weights: Weights
    model_config: Mapping[str, Any] = MappingProxyType({})
    libraries: tuple[str, ...] = ()
    version: int = 1

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of ``images`` (N, 3, H, W; normalised RGB float; H and W multiples of
        ``divisor``).

        Returns one (N, channels[i], H / strides[i], W / strides[i]) float map for each i.
        """

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """The global embedding, (N, embed_dim), not normalised to unit length."""

    def encode_features(self, images: Tensor) -> Tensor:
        """The image's features before they are projected to the space of texts, (N, D): what CLIP's
        authors trained linear classifiers on (Radford et al. 2021, appendix A.2). Without such a
        projection the embedding itself."""
        return self.encode_image(images)

    def encode_tokens(self, images: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        """(class token (N, C), patch tokens (N, L, C)) after each of the last ``blocks`` blocks,
        through the final norm; as DINOv2's ``get_intermediate_layers``. What has no class token
        gives the mean of its patches in its place; of a network without blocks the last of its
        feature maps are taken.

        Raises:
            UserError: there are not so many blocks.
        """
        maps = self(images)
        self._check_blocks(blocks, len(maps))
        patches = [one.flatten(2).transpose(1, 2) for one in maps[len(maps) - blocks :]]
        return [(each.mean(dim=1), each) for each in patches]

    def _check_blocks(self, wanted: int, there: int) -> None:
        if wanted > there:
            raise UserError(
                f"backbone {self.name!r} has {there} blocks or feature maps to read, not {wanted};"
                " ask for fewer"
            )

    @property
    def has_dense_text(self) -> bool:
        return False

    def encode_dense(self, images: Tensor) -> Tensor:
        """Each patch in the space of texts, (N, embed_dim, h, w), comparable with ``encode_text``
        by cosine.

        Raises:
            UserError: there is no such map (``has_dense_text`` is False).
        """
        raise UserError(
            f"the patches of backbone {self.name!r} have no place in a space of texts; choose one"
            " such as clip"
        )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings, (len(texts), embed_dim), comparable with ``encode_image`` by cosine.

        Raises:
            UserError: the backbone has no text tower (``has_text`` is False).
        """
        raise UserError(
            f"backbone {self.name!r} has no text tower; choose one that has, such as clip"
        )

    def train(self, mode: bool = True) -> Backbone:
        """Frozen means frozen: whatever is asked for, the backbone stays in eval mode."""
        return super().train(False)

    def freeze(self) -> Backbone:
        """Switch every gradient off and go to eval mode; called once by ``backbones.create``."""
        self.requires_grad_(False)
        return self.eval()

    def identity(self) -> dict[str, Any]:
        """What makes two backbones the same one: weights digest, the adapter's whole configuration
        and version, and the versions of the libraries below it (not the name)."""
        return {
            # names may be invented, and an activation leaves no trace in the weights
            "architecture": self.architecture,
            "model_config": dict(self.model_config),
            "sha256": self.weights.sha256,
            "data": asdict(self.data),
            "adapter": {"version": self.version, **versions(*self.libraries)},
        }

    def key(self) -> str:
        """A short hash of ``identity()``."""
        return content_key(self.identity())


def state_sha256(state: dict[str, Tensor]) -> str:
    """Digest of a state dict: names, dtypes, shapes and bytes, in name order; the same on every
    device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
