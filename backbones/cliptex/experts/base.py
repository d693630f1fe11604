"""An expert: a model of one task that writes hard labels for images, with an exact identity; and
the images with ground truth that one is trained and measured on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from backbones.backbone import state_sha256
from backbones.cliptex.ground_truth import LabelledImage
from backbones.cliptex.tasks import find_label_map, ordered
from cliptex_common.device import prefers_bf16
from cliptex_common.errors import UserError, first_line, report_malformed
from cliptex_common.files import atomic_write, content_key, read_json, write_json
from cliptex_common.images import IMAGE_ERRORS, UNKNOWN_CLASS, open_image, to_rgb
from cliptex_common.process import cores
from cliptex_common.progress import Progress
from cliptex_common.registry import Registry, instance_of
from cliptex_common.settings import ShareRange, one_line_errors, settings_dataclass

# of images (B, 3, S, S) in [0, 1] and their target, as ``LabelMap.warp`` gives it: a scalar
Loss = Callable[[Tensor, Tensor], Tensor]
BACKGROUND = "background"
WEIGHTS, CONFIG = "weights.safetensors", "expert.json"


@settings_dataclass
class FitSettings:
    """How an expert is trained.

    Attributes:
        size: side of its square input in pixels.
        epochs: passes over the training set.
        batch_size: images a step.
        lr: peak learning rate of AdamW; warmed up over the first tenth, then a cosine to 0.
        weight_decay: of AdamW.
        crop_scale: share of the image that a random crop keeps, by area.
        color_jitter: strength of the colour augmentation (0: none), which helps an expert on images
            of another domain.
    """

    size: PositiveInt = 384
    epochs: PositiveFloat = 30.0
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    crop_scale: ShareRange = (0.5, 1.0)
    color_jitter: NonNegativeFloat = 0.4


class Expert(nn.Module, ABC):
    """A model that labels images. Frozen and in eval mode, except while it is trained.

    A subclass gives ``name``, ``task`` and ``settings_type`` (a frozen dataclass of
    JSON-able fields that says how it is built and trained), builds itself from its settings, and
    implements ``predict``; those that can be trained here implement ``loss``; those whose
    weights come from elsewhere override ``load`` to read them.

    Attributes:
        settings: instance of ``settings_type``.
        classes: names of the segmentation classes by index; empty for other tasks.
        source: where the weights came from.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    settings_type: ClassVar[type]
    about: ClassVar[str] = ""
    settings: Any
    classes: tuple[str, ...] = ()
    source: str = "random"

    def __init__(self, settings: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes

    @abstractmethod
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        """Hard labels of ``images`` (N, 3, H, W) uint8 RGB, at their own resolution.

        Resizing and normalisation are the expert's own.

        Returns:
            by the name of its task: ``seg`` (N, H, W) uint8 or uint16, class or ``ignore_index``;
            ``depth`` (N, H, W) float32 relative inverse depth, larger is nearer, any affine scale;
            ``normal`` (N, 3, H, W) float32 unit vectors, x right, y up, z towards the camera; for
            others what ``LabelMap.from_expert`` reads. A ``confidence`` (N, H, W) float32 κ > 0 is
            measured, not stored.
        """

    @classmethod
    def create(cls, settings: Any, classes: tuple[str, ...]) -> Self:
        """An expert to be trained, its encoder with pretrained weights where it has some."""
        return cls(settings, classes)

    def loss(self, data: ExpertData) -> Loss:
        """What an expert that is trained here learns from ``data``, or from other images of the
        same classes."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What makes two experts label alike: name, settings, classes, the weights' digest, and the
        plugin that registered its class, if any."""
        return {
            "name": self.name,
            "task": self.task,
            "settings": asdict(self.settings),
            "classes": list(self.classes),
            "sha256": state_sha256(self.state_dict()),
            **EXPERTS.origin(self.name),
        }

    @property
    def ignore_index(self) -> int:
        """Value of ``seg`` where the expert is not sure."""
        return UNKNOWN_CLASS if len(self.classes) <= UNKNOWN_CLASS else 65535

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def trunk(self) -> Iterable[nn.Module]:
        """The modules that may compute in bf16: the encoder and what follows it.

        Not the last layers: eight bits are too few for a depth, a box or a normal.
        """
        return ()

    def share_with(self, earlier: Expert) -> None:
        """Compute once what both experts compute of one batch, where that is the same."""

    def freeze(self, device: torch.device | str = "cpu", *, bf16: bool | None = None) -> Self:
        """Eval mode, no gradients, on ``device``; ``trunk`` in bf16 (default: ``prefers_bf16``)."""
        self.requires_grad_(False).eval().to(device)
        if prefers_bf16(device) if bf16 is None else bf16:
            for module in self.trunk():
                _run_in_bf16(module)
        return self

    def save(self, folder: str | Path, **extra: Any) -> None:
        """Write weights, then ``expert.json`` (identity, source, ``extra``) to ``folder``."""
        folder = Path(folder)
        state = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()
        }
        with atomic_write(folder / WEIGHTS) as temporary:
            save_file(state, temporary)
        write_json(folder / CONFIG, {**self.identity(), "source": self.source, **extra})

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """An expert that ``save`` wrote, from its folder.

        Raises:
            UserError: no such folder, another expert's, or damaged weights.
        """
        config = read_expert_config(source, cls.name)
        with one_line_errors():
            expert = cls(cls.settings_type(**config["settings"]), tuple(config["classes"]))
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
        expert.source = str(config["source"])
        return expert.freeze(device)


EXPERTS: Registry[type[Expert]] = Registry("expert", "experts", instance_of(Expert, subclass=True))
find_expert = EXPERTS.find


def load_experts(specs: list[str], device: torch.device | str = "cpu") -> list[Expert]:
    """Experts from ``NAME=WHERE`` (a folder, a checkpoint, a hub name), ready to label.

    Raises:
        UserError: an unknown name, no WHERE, two experts for one task, or weights that an expert
            cannot use.
    """
    experts: dict[str, Expert] = {}
    for spec in specs:
        name, _, where = spec.partition("=")
        kind = EXPERTS.find(name.strip())
        if not where.strip():
            raise UserError(
                f"expert {name!r} needs its weights, as in {name}=FOLDER; make them with: experts"
                " train"
            )
        expert = kind.load(where.strip(), device)
        if twin := experts.get(expert.task):
            raise UserError(
                f"experts {twin.name!r} and {name!r} both label {expert.task}; choose one of them"
            )
        for earlier in experts.values():
            expert.share_with(earlier)
        experts[expert.task] = expert
    if not experts:
        raise UserError(
            "no experts given; --experts takes NAME=WHERE, with names such as"
            f" {', '.join(sorted(EXPERTS.descriptions()))}"
        )
    return [experts[task] for task in ordered(experts)]


def read_expert_config(folder: str | Path, name: str | None = None) -> dict[str, Any]:
    """``expert.json`` of a folder that ``Expert.save`` wrote.

    Raises:
        UserError: it is missing or malformed, or of another expert than ``name``.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise UserError(
            f"no expert in {folder} ({CONFIG} is missing); make one: python -m benchmark experts"
            " train"
        )
    with report_malformed(f"{path} is not an expert's", "train or fetch the expert again"):
        config = read_json(path)
        stored = config["name"]
    if name not in (None, stored):
        raise UserError(f"{folder} holds expert {stored!r}, not {name!r}")
    return config


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) → (N, C, *size), bilinear, antialiased when it shrinks in any direction."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    shrinks = maps.shape[-2] > size[0] or maps.shape[-1] > size[1]
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def _run_in_bf16(module: nn.Module) -> None:
    """Make ``module`` compute under autocast and return fp32."""
    forward = module.forward

    def run(*args: Any, **options: Any) -> Any:
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            output = forward(*args, **options)
        return tree_map_only(Tensor, Tensor.float, output)

    module.forward = run


MEMORY = 2 * 2**30


@dataclass
class ExpertData:
    """A split with ground truth.

    Decoded samples stay in memory up to ``memory`` bytes; the others are decoded when needed.

    Attributes:
        task: its name.
        size: S, the side of images and targets in pixels.
        classes: names of the classes by number, of maps of classes.
        fingerprint: digest of all images and targets.
        pixels: (256,) int64, of maps of classes: how often each value occurs in all targets.
    """

    task: str
    samples: Sequence[LabelledImage]
    size: int
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    pixels: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    memory: int = MEMORY
    _cached: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) uint8 RGB and their targets (B, S, S) or (B, C, S, S), the labels as
        their task reads them.

        Raises:
            UserError: a file is missing or damaged.
        """
        indices = list(indices)
        pairs = {index: self._cached[index] for index in indices if index in self._cached}
        missing = sorted(set(indices) - set(pairs))
        with ThreadPoolExecutor(min(cores(), 16)) as pool:
            for index, pair in zip(missing, pool.map(self._decode, missing), strict=True):
                pairs[index] = pair
                if (len(self._cached) + 1) * sum(tensor.nbytes for tensor in pair) <= self.memory:
                    self._cached[index] = pair
        images, targets = zip(*(pairs[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(targets)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, as ``read`` gives them."""
        for start in range(0, len(self), batch_size):
            yield self.read(range(start, min(start + batch_size, len(self))))

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        path, read_label = self.samples[index]
        try:
            with open_image(path) as image:
                photo = np.asarray(to_rgb(image))
            label = read_label()
            if photo.shape[:2] != label.shape[-2:]:
                sizes = [f"{x}×{y}" for y, x in (label.shape[-2:], photo.shape[:2])]
                raise ValueError(f"it has {sizes[0]} px, and the image {sizes[1]}")
            pixels = square(photo, self.size, nearest=False)
            target = square(label if label.ndim == 2 else np.moveaxis(label, 0, -1), self.size)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"cannot read {path} or its ground truth ({error}); repair or remove it"
            ) from error
        if target.ndim == 3:
            target = np.ascontiguousarray(np.moveaxis(target, -1, 0), np.float32)
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        return torch.from_numpy(pixels), torch.from_numpy(target)


def load_data(root: Path, task: str, split: str, size: int, progress: Progress) -> ExpertData:
    """The ``train`` or ``val`` split of ``LabelMap.ground_truth`` of a task in ``root``.

    Every file is decoded once, for the fingerprint, and so that damage is reported before hours of
    work.

    Raises:
        UserError: a folder or annotation file is missing or malformed, an image has no ground
            truth, or its ground truth has a class without a name.
    """
    classes, samples = find_label_map(task).ground_truth(root, split)
    data = ExpertData(task, samples, size, classes)
    progress.start(f"reading {split} images of {task}", len(data))
    digests = hashlib.sha256(), hashlib.sha256()
    for batch in data.batches(32):
        for digest, tensor in zip(digests, batch, strict=True):
            digest.update(tensor.numpy().tobytes())
        if classes:
            data.pixels += torch.bincount(batch[1].flatten().long(), minlength=256)[:256]
        progress.advance(len(batch[0]))
    numbers = data.pixels[:UNKNOWN_CLASS].nonzero().flatten().tolist()
    if numbers and numbers[-1] >= len(classes):
        raise UserError(
            f"the {split} maps of {task} have class {numbers[-1]}, but only {len(classes)} names"
        )
    data.fingerprint = content_key([task, classes, *(digest.hexdigest() for digest in digests)], 32)
    return data


def square(array: np.ndarray, size: int, *, nearest: bool = True) -> np.ndarray:
    """The largest centred square of (H, W[, C]), brought to ``size``: bicubic, or each pixel from
    its ``nearest``, which keeps values as they are."""
    height, width = array.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    array = array[y : y + side, x : x + side]
    if side == size:
        return np.ascontiguousarray(array)
    if nearest:
        positions = ((np.arange(size) + 0.5) * side / size).astype(int)
        return array[positions[:, None], positions[None]]
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
