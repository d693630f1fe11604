"""What adapters share: which layers are read by default and the tokens of plain ViTs, copies of a
model for other input sizes, and weights from the Hugging Face hub (the local cache first, and
without network one clear line, quickly).
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from backbones.backbone import Backbone
from backbones.weights import READ_FILES
from cliptex_common.errors import NotDownloaded, UserError, first_line


class TokenBackbone(Backbone):
    """A plain ViT: feature maps are the patch tokens after the blocks read, through the model's own
    final norm, as DINOv2's ``get_intermediate_layers`` does. ``divisor`` is the patch size."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for _, each in self.encode_layers(images))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encode_tokens(images, 1)[0][0]

    @abstractmethod
    def read_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """See ``Backbone``."""


def with_mean(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Patch tokens with their mean as the class token."""
    return patches.mean(dim=1), patches


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Indices of ``count`` evenly spaced blocks of ``depth``, the last one included: depth 12 gives
    (2, 5, 8, 11)."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def layers_of(strides: Sequence[int]) -> tuple[int, ...]:
    """The last layer of each stride 4, 8, 16, 32 of a pyramid; four evenly spaced blocks if there
    is one stride."""
    if len(set(strides)) == 1:
        return evenly_spaced(len(strides))
    last = {stride: layer for layer, stride in enumerate(strides)}
    return tuple(last[stride] for stride in (4, 8, 16, 32) if stride in last)


def gives_tokens(model: Any) -> bool:
    """Whether a timm model is a plain ViT, whose tokens can be read after each block."""
    strides = {layer["reduction"] for layer in model.feature_info}
    parameters = inspect.signature(model.forward_intermediates).parameters
    return len(strides) == 1 and "return_prefix_tokens" in parameters


def tokens_of(model: Any, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """``Backbone.read_tokens`` of a timm ViT."""
    outputs = model.forward_intermediates(
        images,
        indices=list(layers),
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    if getattr(model, "cls_token", None) is None:  # none, or only registers
        return [with_mean(each[0] if isinstance(each, tuple) else each) for each in outputs]
    return [(prefix[:, 0], patches) for patches, prefix in outputs]


MAX_COPIES = 4  # a copy shares its parameters with the original, except position tables


class SizedCopies:
    """Copies of a model, each set to another input size, always from the original.

    Not a module: the copies are not part of the state dict. They are recreated after the model has
    moved to another device.

    Args:
        native: (height, width) that ``model`` itself takes; None if unknown.
        resize: sets a copy to a (height, width).
    """

    def __init__(
        self,
        model: nn.Module,
        native: tuple[int, int] | None,
        resize: Callable[[Any, tuple[int, int]], None],
    ) -> None:
        self.model, self.native, self.resize = model, native, resize
        self._copies: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._device: tuple[torch.device, torch.dtype] | None = None

    def at(self, height: int, width: int) -> Any:
        """The model for images of ``height`` × ``width`` pixels."""
        size = (height, width)
        if size == self.native:
            return self.model
        first = next(self.model.parameters())
        if self._device != (first.device, first.dtype):
            self.clear()
            self._device = (first.device, first.dtype)
        if size not in self._copies:
            # parameters are shared; buffers are not, since timm fills them in place
            shared = {id(parameter): parameter for parameter in self.model.parameters()}
            with torch.inference_mode(False), torch.no_grad():
                resized: Any = copy.deepcopy(self.model, memo=shared)
                self.resize(resized, size)
            for parameter in resized.parameters():
                if id(parameter) not in shared:
                    parameter.requires_grad_(False)
            self._copies[size] = resized
            while len(self._copies) > MAX_COPIES:
                self._copies.popitem(last=False)
        self._copies.move_to_end(size)
        return self._copies[size]

    def clear(self) -> None:
        """Drop the copies; they are recreated on demand."""
        self._copies.clear()


T = TypeVar("T")
TIMEOUT = 3.0  # seconds until the hub counts as unreachable


def hub_file(repo: str, files: Sequence[str], *, backbone: str, weights: bool = True) -> Path:
    """The first of ``files`` that the hub repository has, from the local cache or downloaded.

    Args:
        weights: whether the user may pass the file as ``--weights FILE`` instead.

    Raises:
        UserError: the hub cannot be reached or refuses; says which file to put where.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{backbone!r}: {first_line(error)}") from error
    # which of its revisions the cache has
    folder = f"models--{repo.replace('/', '--')}"
    READ_FILES.append(Path(constants.HF_HUB_CACHE, folder, "refs", "main"))
    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    or_pass = "pass it with --weights FILE, or " if weights else ""
    advice = (
        f"fetch {files[0]} of https://huggingface.co/{repo} elsewhere and {or_pass}copy the hub"
        f" cache to {constants.HF_HUB_CACHE}"
    )
    if not hub_reachable():
        raise NotDownloaded(f"no network for the files of {backbone!r}: {advice}")
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, etag_timeout=TIMEOUT))
        except LocalEntryNotFoundError as error:  # the network failed; an EntryNotFoundError too
            raise NotDownloaded(f"no network for the files of {backbone!r}: {advice}") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"the hub refuses the files of {backbone!r} ({type(error).__name__}): {advice}"
            ) from error
    raise UserError(
        f"hub repository {repo} has none of {', '.join(files)} for {backbone!r}; pass weights with"
        " --weights FILE"
    )


def load_tokenizer(load: Callable[..., T], repo: str, backbone: str) -> T:
    """``load`` a tokenizer from the local cache, else from the hub.

    Args:
        load: takes ``local_files_only``.

    Raises:
        UserError: it is neither in the local cache nor reachable.
    """
    try:
        return load(local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        if Path(repo).is_dir() or not hub_reachable():
            raise NotDownloaded(
                f"no tokenizer for {backbone!r} ({first_line(error)}): copy the hub cache of"
                f" {repo} to {constants.HF_HUB_CACHE}"
            ) from error
    return load()


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds; its own client would retry for half a
    minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # the client's exceptions differ between its versions
        return False
    return True
