"""``hub/OWNER/REPO[:REF]:ENTRY``: a model of torch.hub, or of a local folder with a ``hubconf.py``.

**It runs the code of that repository**: torch.hub asks once, at the terminal, whether it is
trusted, and remembers the answer; without one nothing is run.

Three interfaces are supported: ``get_intermediate_layers`` of DINOv2, DINOv3 and their descendants
(Franca), CAPI's encoder, and the ``out_layers`` of V-JEPA 2's video encoder, which sees an image as
a clip of one frame, repeated. Of an entry point that returns several modules (V-JEPA 2's encoder
and predictor) the first is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from backbones.adapters.common import TokenBackbone, evenly_spaced, with_mean
from backbones.backbone import Backbone, DataConfig
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Request
from cliptex_common.errors import NotDownloaded, UserError, error_summary


class TorchHubBackbone(TokenBackbone):
    """A plain ViT of torch.hub. The embedding is the class token of the last block, CAPI's global
    feature, or the mean of V-JEPA 2's patches.

    Args:
        code_sha256: digest of the repository's Python files, part of the identity.

    Raises:
        UserError: it has none of the interfaces.
    """

    libraries = ("torch",)

    def __init__(
        self, model: nn.Module, *, name: str, entry: str, code_sha256: str, data: DataConfig
    ) -> None:
        super().__init__()
        self.model: Any
        self.model = model.eval()
        self.name, self.architecture, self.code_sha256 = name, f"hub/{entry}", code_sha256
        self.is_capi = hasattr(model, "prepare_tokens_and_drop")
        self.is_video = hasattr(model, "out_layers") and hasattr(model, "tubelet_size")
        patch: Any = getattr(model, "patch_size", 0)
        self.divisor = patch[0] if isinstance(patch, tuple | list) else int(patch)
        is_dino = hasattr(model, "get_intermediate_layers")
        if not self.divisor or not (self.is_capi or self.is_video or is_dino):
            raise UserError(
                f"{name!r} has the interface neither of DINOv2 (get_intermediate_layers) nor of"
                " CAPI nor of V-JEPA 2; write a module (`new backbone`)"
            )
        blocks = self.model.encoder.blocks if self.is_capi else self.model.blocks
        self.depth = self.token_blocks = len(blocks)
        self.data = data.with_layers(data.layers or evenly_spaced(self.depth))
        self._check_blocks(max(self.data.layers) + 1, self.depth)
        with torch.inference_mode():
            image = torch.zeros(1, 3, 2 * self.divisor, 3 * self.divisor)
            maps, embedding = self(image), self.encode_image(image)
        self.strides = (self.divisor,) * len(maps)
        self.channels, self.embed_dim = tuple(each.shape[1] for each in maps), embedding.shape[1]

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model(images)[0] if self.is_capi else super().encode_image(images)

    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        model = self.model
        if self.is_video:
            return [with_mean(tokens) for tokens in self._clip_tokens(images, layers)]
        if not self.is_capi:
            outputs = model.get_intermediate_layers(images, list(layers), return_class_token=True)
            return [(token, patches) for patches, token in outputs]
        tokens, coords, _ = model.prepare_tokens_and_drop(images, None)
        after = model.encoder(tokens, coords=coords, return_layers={layer + 1 for layer in layers})
        normed = [model.enc_norm(after[layer + 1]) for layer in layers]
        return [with_mean(tokens[:, model.num_prefix_tokens :]) for tokens in normed]

    def _clip_tokens(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """(N, patches, C) after each of these blocks, normed. Raises ``UserError`` if the model has
        no norm for one of them (V-JEPA 2.1 has four)."""
        model = self.model
        readable = getattr(model, "hierarchical_layers", range(self.depth))
        if unreadable := sorted(set(layers) - set(readable)):
            raise UserError(
                f"{self.name!r} can be read after blocks {', '.join(map(str, readable))} only, not"
                f" after {unreadable[0]}; ask for fewer blocks"
            )
        # V-JEPA 2.1 takes images as they are, V-JEPA 2 takes as many frames as are one token
        frames = getattr(model, "img_temporal_dim_size", None) or model.tubelet_size
        model.out_layers = list(layers)
        return model(images.unsqueeze(2).expand(-1, -1, frames, -1, -1))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "code": self.code_sha256}


def build(request: Request) -> Backbone:
    """The builder of ``hub/REPO:ENTRY``; REPO is ``OWNER/NAME[:REF]`` on GitHub, or a local folder.

    Settings: ``entry`` (``REPO:ENTRY``), ``model_args`` (of the entry point), ``layers``, ``size``,
    ``mean``, ``std``, ``crop_pct``. The defaults are what DINOv2's authors evaluate at; a model
    that remembers the height and width of its images (V-JEPA 2) gets these.

    Raises:
        UserError: see ``backbones.create``; the repository is not trusted, or cannot be fetched.
    """
    settings, checkpoint = request.settings, request.checkpoint
    architecture = settings.get("architecture", "")
    entry = settings.get("entry") or (architecture or request.name).removeprefix("hub/")
    repo, _, function = entry.rpartition(":")
    if not repo or not function:
        raise UserError(f"{request.name!r} names no entry point; write hub/OWNER/REPO:ENTRY")
    arguments = dict(settings.get("model_args", {}) | settings.get("model_config", {}))
    pretrained = checkpoint is None and not request.random
    model, code_sha256 = load_entry(repo, function, arguments, repr(request.name), pretrained)
    native = (getattr(model, "img_height", 224), getattr(model, "img_width", 224))
    data = DataConfig(
        size=tuple(settings.get("size", native)),
        mean=tuple(settings.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(settings.get("std", IMAGENET_DEFAULT_STD)),
        crop_pct=settings.get("crop_pct", 0.875),
        layers=tuple(settings.get("layers", ())),
    )
    if checkpoint is not None:
        check_architecture(checkpoint, f"hub/{entry}")
        fit_state(model, checkpoint, f"hub/{entry}")
        data = checkpoint.data or data
    backbone = TorchHubBackbone(
        model, name=request.name, entry=entry, code_sha256=code_sha256, data=data
    )
    backbone.model_config = arguments
    backbone.weights = request.weights(backbone.model_state(), f"hub/{entry}")
    return backbone


def load_entry(
    repo: str,
    function: str,
    arguments: Mapping[str, Any],
    subject: str,
    pretrained: bool,
    pinned: bool = False,
) -> tuple[nn.Module, str]:
    """(model, digest of the code). The entry point gets ``pretrained=False`` if its weights are not
    wanted.

    Args:
        repo, function: see ``build``.
        subject: what it is loaded for, for messages.
        pinned: REF is a commit by its full hash, which GitHub need not confirm.

    Raises: as ``build``.
    """
    arguments = dict(arguments) if pretrained else {**arguments, "pretrained": False}
    try:
        folder = Path(repo) if Path(repo).is_dir() else _fetch_code(repo, subject, pinned)
        model = torch.hub.load(str(folder), function, source="local", verbose=False, **arguments)
    except UserError:
        raise
    except EOFError as error:
        raise UserError(
            f"{subject} runs the code of github.com/{repo}, which you have not said you trust;"
            f" answer once, at a terminal: python -c \"import torch; torch.hub.list('{repo}',"
            f" trust_repo='check', skip_validation={pinned})\""
        ) from error
    except Exception as error:  # whatever the network and the repository's code raise
        raise UserError(
            f"torch.hub cannot build {subject} ({error_summary(error)}); check the name, the"
            " network and the packages that its code needs"
        ) from error
    if isinstance(model, tuple | list) and model:
        model = model[0]
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{subject} returns a {type(model).__name__}, not a module; name an entry point that"
            " returns a model"
        )
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return model, digest.hexdigest()


def _fetch_code(repo: str, subject: str, pinned: bool) -> Path:
    """The folder of a repository's code, fetched if missing; torch.hub asks for trust first."""
    name = repo.partition(":")[0].replace("/", "_")
    if constants.HF_HUB_OFFLINE and not any(Path(torch.hub.get_dir()).glob(f"{name}_*")):
        raise NotDownloaded(
            f"no network for the code of {subject}: fetch github.com/{repo} where there is one"
            f" (by torch.hub), and copy its folder to {torch.hub.get_dir()}"
        )
    options = {"verbose": False, "skip_validation": pinned}
    return Path(torch.hub._get_cache_or_reload(repo, False, "check", **options))
