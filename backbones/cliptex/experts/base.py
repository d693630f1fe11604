"""What an expert is: a model of one task that writes hard labels for images, and knows exactly who
it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from backbones.base import state_sha256
from backbones.cliptex.data.augment import AXES
from backbones.cliptex.experts.data import ExpertData
from backbones.cliptex.experts.fit import FitRun
from common.errors import UserError, first_line
from common.files import atomic_write, read_json, write_json

BACKGROUND = "background"
# of a segmentation map with up to 255 classes; experts with more use IGNORE_WIDE and uint16
IGNORE = 255
IGNORE_WIDE = 65535
WEIGHTS, CONFIG = "weights.safetensors", "expert.json"


class Expert(nn.Module, ABC):
    """A model that labels images. Frozen and in eval mode, except while ``train_on`` runs.

    A subclass is one file. It gives ``name``, ``task`` and ``settings_type`` (a frozen dataclass of
    JSON-able fields that says how it is built and trained), builds itself from its settings, and
    implements ``predict``; those that can be trained here implement ``train_on``; those whose
    weights come from elsewhere override ``load`` to read them.

    Attributes:
        settings: instance of ``settings_type``.
        classes: names of the segmentation classes by index; empty for other tasks.
        source: where the weights came from.
        spent: what ``train_on`` took (``fit.Spent``); None where it does not say.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    settings_type: ClassVar[type]
    about: ClassVar[str] = ""
    settings: Any
    classes: tuple[str, ...] = ()
    source: str = "random"
    spent: Any = None

    @abstractmethod
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        """Hard labels of ``images`` (N, 3, H, W) uint8 RGB, at their own resolution; resizing and
        statistics are ours.

        Returns, by the name of its task: ``seg`` (N, H, W) uint8 or uint16, class or
        ``ignore_index``; ``depth`` (N, H, W) float32 relative inverse depth, larger is nearer, any
        affine scale; ``normal`` (N, 3, H, W) float32 unit vectors, x right, y up, z towards the
        camera; what ``Task.from_expert`` reads for others. What it says beside (``confidence`` (N,
        H, W) float32 κ > 0) is measured, not stored.
        """

    @classmethod
    def create(cls, settings: Any, classes: tuple[str, ...]) -> Self:
        """An expert to be trained; those whose parts start from pretrained weights load them
        here."""
        return cls(settings, classes)

    def train_on(self, data: ExpertData, run: FitRun) -> None:
        """Fit this expert to ``data``. Raises ``UserError`` if it cannot be."""
        raise UserError(
            f"expert {self.name!r} cannot be trained here; give its weights as {self.name}=PATH"
        )

    def identity(self) -> dict[str, Any]:
        """What makes two experts label alike: name, settings, classes and the weights' digest (not
        where they lie)."""
        return {
            "name": self.name,
            "task": self.task,
            "settings": asdict(self.settings),
            "classes": list(self.classes),
            "sha256": state_sha256(self.state_dict()),
            **({"axes": AXES} if self.task == "normal" else {}),
        }

    @property
    def ignore_index(self) -> int:
        """Value of ``seg`` where the expert is not sure."""
        return IGNORE if len(self.classes) <= IGNORE else IGNORE_WIDE

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def trunk(self) -> Iterable[nn.Module]:
        """The modules that may compute in bf16: the encoder and what follows it, but not the last
        layers, since eight bits are too few for a depth, a box or a normal. None unless a subclass
        names some."""
        return ()

    def freeze(self, device: torch.device | str = "cpu", *, bf16: bool | None = None) -> Self:
        """Eval mode, no gradients, on ``device``; the ``trunk`` in bf16 if asked for, by default on
        CUDA."""
        self.requires_grad_(False).eval().to(device)
        if torch.device(device).type == "cuda" if bf16 is None else bf16:
            for module in self.trunk():
                _run_in_bf16(module)
        return self

    def save(self, folder: Path, **extra: Any) -> None:
        """Write weights and then ``expert.json`` (name, settings, classes, digest, ``extra``) to
        ``folder``."""
        state = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()
        }
        with atomic_write(Path(folder) / WEIGHTS) as temporary:
            save_file(state, temporary)
        write_json(Path(folder) / CONFIG, {**self.identity(), "source": self.source, **extra})

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """An expert that ``save`` wrote, from its folder.

        Raises:
            UserError: the folder is not there, holds another expert, or its weights are damaged.
        """
        config = read_config(source, cls.name)
        if cls.task == "normal" and config.get("axes") != AXES:
            raise UserError(
                f"expert {cls.name!r} in {source} does not predict normals with {AXES}; train it"
                " again"
            )
        expert = cls.build(config)
        path = Path(source) / WEIGHTS
        try:
            expert.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{path} does not hold the weights of expert {cls.name!r} ({first_line(error)})"
            ) from error
        if state_sha256(expert.state_dict()) != config["sha256"]:
            raise UserError(
                f"{path} has changed since it was written; train or fetch the expert again"
            )
        expert.source = str(config.get("source", source))
        return expert.freeze(device)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Self:
        """A fresh expert from what ``save`` wrote to ``expert.json``; weights are to be loaded."""
        return cls(
            read_settings(cls.settings_type, config["settings"]), tuple(config.get("classes", ()))
        )

    def __init__(self, settings: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes


def read_config(folder: str | Path, name: str | None = None) -> dict[str, Any]:
    """``expert.json`` of a folder that ``Expert.save`` wrote. Raises ``UserError``."""
    path = Path(folder) / CONFIG
    try:
        config = read_json(path)
        found = config["name"]
    except FileNotFoundError:
        raise UserError(
            f"no expert in {folder} ({CONFIG} is missing); make one: python -m benchmark experts"
            " train"
        ) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not readable ({first_line(error)}); train or fetch the expert again"
        ) from error
    if name not in (None, found):
        raise UserError(f"{folder} holds expert {found!r}, not {name!r}")
    return config


def read_settings(kind: type, values: Mapping[str, Any]) -> Any:
    """A settings dataclass from JSON, whose lists are tuples. Raises ``UserError`` for fields it
    does not have."""
    try:
        return kind(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
        )
    except TypeError as error:
        raise UserError(
            f"{CONFIG} was written by another version ({first_line(error)}); train the expert again"
        ) from error


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) → (N, C, *size), bilinear, antialiased when it shrinks in any direction."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    shrinks = maps.shape[-2] > size[0] or maps.shape[-1] > size[1]
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def hard_classes(scores: Tensor, score_threshold: float, ignore: int) -> np.ndarray:
    """(N, C, H, W) class probabilities → (N, H, W) uint8/uint16: the likeliest, or ``ignore`` below
    ``score_threshold``."""
    best, index = scores.max(1)
    labels = torch.where(best >= score_threshold, index, ignore).cpu().numpy()
    return labels.astype(np.uint8 if ignore == IGNORE else np.uint16)


def _run_in_bf16(module: nn.Module) -> None:
    """From now on ``module`` computes under autocast; what it returns is fp32."""
    forward = module.forward

    def run(*args: Any, **more: Any) -> Any:
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            found = forward(*args, **more)
        return tree_map_only(Tensor, Tensor.float, found)

    module.forward = run
