"""Weights on disk: safetensors that remember their architecture, and any file of a user, never
unpickled."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from backbones.backbone import Backbone, DataConfig, state_sha256
from cliptex_common.errors import UserError, first_line
from cliptex_common.files import atomic_write

FORMAT_VERSION = 1
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SUBMODULES = ("", "visual.trunk.", "visual.", "backbone.", "encoder.", "model.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a file, and what is needed to rebuild the model.

    Attributes:
        path: of the file, usually ``*.safetensors``.
        state: name → tensor, as the library's model names them.
        architecture: ``timm/NAME`` or ``open_clip/NAME`` (which may be invented: ``model_config``
            decides); None if the file does not store it.
        model_config: what builds the architecture: open_clip's complete model config
            (``quick_gelu`` included), or keyword arguments of ``timm.create_model``.
        data: how images are prepared, and which layers are read; None if the file does not store
            it.
        licence, source: of the weights.
        extra: anything else (recipe, λs, steps …), JSON.
        sha256: ``state_sha256(state)`` as stored in the file, checked; empty if there is none.
    """

    path: Path
    state: dict[str, Tensor]
    architecture: str | None = None
    model_config: dict[str, Any] = field(default_factory=dict)
    data: DataConfig | None = None
    licence: str = "unknown"
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def save_checkpoint(checkpoint: Checkpoint) -> str:
    """Write weights with their architecture, model config and data config atomically to
    ``checkpoint.path``.

    Returns:
        the digest of the state dict (``state_sha256``), which is stored and checked on loading.

    Raises:
        UserError: the disk is full or the folder cannot be written.
        ValueError: the architecture or the data config is missing.
    """
    if checkpoint.architecture is None or checkpoint.data is None:
        raise ValueError("weights are saved with their architecture, model_config and data")
    # safetensors refuses tensors that share memory (tied weights); each is written in full
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in checkpoint.state.items()
    }
    digest = state_sha256(state)
    metadata = {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "architecture": checkpoint.architecture,
        "model_config": json.dumps(checkpoint.model_config),
        "data": json.dumps(asdict(checkpoint.data)),
        "licence": checkpoint.licence,
        "source": checkpoint.source,
        "extra": json.dumps(checkpoint.extra),
        "sha256": digest,
    }
    with atomic_write(checkpoint.path) as temporary:
        save_file(state, temporary, metadata=metadata)
    return digest


def save_backbone(path: Path, backbone: Backbone) -> str:
    """Write the weights of a backbone, such as the tuned one of a predictor, as ``--weights`` takes
    them. Returns and raises as ``save_checkpoint``."""
    return save_checkpoint(
        Checkpoint(
            path,
            backbone.model_state(),
            backbone.architecture,
            dict(backbone.model_config),
            backbone.data,
            backbone.weights.licence,
            backbone.weights.source,
        )
    )


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a weights file.

    Raises:
        UserError: it is missing, truncated or damaged, would have to be unpickled, holds no
            tensors, tensors that are not dense, or NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}; check its path")
    checkpoint = (
        _read_safetensors(path) if _is_safetensors(path) else Checkpoint(path, _read_torch(path))
    )
    if not checkpoint.state:
        raise UserError(
            f"{path} holds no tensors; --weights takes a state dict (safetensors or torch.save)"
        )
    for name, tensor in checkpoint.state.items():
        is_dense = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
        is_float8 = tensor.is_floating_point() and tensor.itemsize == 1
        if not is_dense or tensor.is_complex() or is_float8:
            raise UserError(
                f"{path} has {name!r} as {tensor.dtype}, {tensor.layout} on {tensor.device}; save"
                " dense numbers of 16 bits or more"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{path} has NaN or infinite values in {name!r}; use weights from before training"
                " broke"
            )
    return checkpoint


def fit_state(model: nn.Module, checkpoint: Checkpoint, architecture: str) -> None:
    """Load a checkpoint's state into ``model``, every tensor or none.

    Names may have the prefix of a larger model (``visual.``, ``backbone.`` …), which is removed.
    BatchNorm's ``num_batches_tracked`` may be missing, and scalars may be one-element vectors.

    Raises:
        UserError: names or shapes differ; the message has the first differences.
    """
    own, state = model.state_dict(), checkpoint.state
    needed = {name for name in own if not name.endswith("num_batches_tracked")}

    def matches(prefix: str) -> int:
        names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        return len(needed & names)

    prefix = max(_SUBMODULES, key=matches)
    fitted = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            is_scalar = name in own and tensor.numel() == own[name].numel() == 1
            fitted[name] = tensor.reshape(own[name].shape) if is_scalar else tensor
    problems = [f"no {name}" for name in own if name in needed and name not in fitted]
    problems += [f"unknown {name}" for name in fitted if name not in own]
    problems += [
        f"{name} is {tuple(fitted[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in fitted and fitted[name].shape != own[name].shape
    ]
    # copying them would cut off what a quantised file has beside them
    problems += [
        f"{name} is {fitted[name].dtype}, not {tensor.dtype}"
        for name, tensor in own.items()
        if name in fitted and tensor.is_floating_point() > fitted[name].is_floating_point()
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{checkpoint.path} does not fit {architecture}: {'; '.join(problems[:3])}{more};"
            " name the architecture it was made with"
        )
    model.load_state_dict({name: fitted.get(name, tensor) for name, tensor in own.items()})


def check_architecture(
    checkpoint: Checkpoint, architecture: str, model_config: Mapping[str, Any] | None = None
) -> None:
    """Raises ``UserError`` if the checkpoint is of another architecture, or has another model
    config than a given one; names the first differences."""
    remembered = checkpoint.architecture
    if remembered is None:
        return
    differences = []
    if model_config is not None and remembered.split("/")[0] == architecture.split("/")[0]:
        stored, expected = _flat(checkpoint.model_config), _flat(model_config)
        differences = [
            f"{key} is {stored.get(key)}, not {expected.get(key)}"
            for key in sorted(stored.keys() | expected.keys())
            if stored.get(key) != expected.get(key)
        ]
    if remembered == architecture and not differences:
        return
    details = f" ({'; '.join(differences[:3])})" if differences else ""
    raise UserError(
        f"{checkpoint.path} holds {remembered}, not {architecture}{details}; ask for a backbone of"
        " that architecture, or for cliptex or clip-ft, which take what the file remembers"
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as ``{"vision_cfg.width": 64 …}``; settings that say nothing are left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, False):
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_safetensors(path: Path) -> bool:
    """By suffix, or by content: eight bytes of header length, then a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({first_line(error)}); copy or download it again"
        ) from error
    if "format_version" not in metadata:
        return Checkpoint(path, _unwrap(state))
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise UserError(f"{path} has a newer format; update the suite")
    try:
        remembered = Checkpoint(
            path,
            state,
            architecture=metadata["architecture"],
            model_config=json.loads(metadata["model_config"]),
            data=DataConfig(**json.loads(metadata["data"])),
            licence=metadata["licence"],
            source=metadata["source"],
            extra=json.loads(metadata["extra"]),
            sha256=metadata["sha256"],
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # UserError too
        raise UserError(
            f"{path} is damaged ({first_line(error)}); copy or download it again"
        ) from error
    if state_sha256(state) != remembered.sha256:
        raise UserError(
            f"{path} is damaged (its tensors are not those it was saved with); copy or download it"
            " again"
        )
    return remembered


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of ``torch.save``, loaded with ``weights_only=True``; training
    scripts save their options with it, an ``argparse.Namespace``."""
    try:
        with warnings.catch_warnings(), safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # a damaged file may have any pickle protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} would have to be unpickled, which can run any code; save its state_dict()"
            " alone, as safetensors"
        ) from error
    except Exception as error:  # whatever a damaged file makes torch, zip and the unpickler raise
        raise UserError(
            f"{path} is truncated, damaged or no weights file ({first_line(error)}); get it again"
        ) from error
    return _unwrap(loaded)


def _unwrap(loaded: Any) -> dict[str, Tensor]:
    """The state dict inside what training scripts save around it, without the prefixes of
    wrappers."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping):
        return {}
    state = {
        name: tensor
        for name, tensor in loaded.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
