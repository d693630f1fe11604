"""What a dense task is to CLIPTeX: how it is labelled, stored, augmented, predicted, learned,
measured and drawn.

A label is a map of one image, (H, W) or (C, H, W), as an expert says it or a person drew it. A
target is a batch of them as the loss compares them, after crop and flip, with the task's own value
where nothing is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from backbones.cliptex.data.augment import Geometry

Summed = tuple[Tensor, Tensor]


class Task(ABC):
    """One dense task. A subclass is one file, which ends in ``TASK = MyTask()``.

    Attributes:
        name: of the task, of its λ (``lambda_NAME``), of its files (``KEY.NAME.SUFFIX``) and of
            what its expert predicts.
        about: one line for lists, unless the registration has one.
        suffix: of the files that ``encode`` makes; viewers go by it.
        quantisation: what ``encode`` loses, in words.
        has_classes: whether labels are numbers of classes, whose names a label store keeps.
        missing: ``to_tensor`` of an image without a label.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    suffix: ClassVar[str] = "png"
    quantisation: ClassVar[str] = "none"
    has_classes: ClassVar[bool] = False
    missing: ClassVar[Tensor]

    # --- learning

    def channels(self, classes: Sequence[str]) -> int:
        """Output channels of the head."""
        return 1

    def activate(self, output: Tensor) -> Tensor:
        """What the head gave, (N, channels, H, W), as the loss wants it."""
        return output

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """(sum, count), not a mean, so that the mean over a global batch is the same however the
        batch is split over ranks and micro-batches. Where nothing is labelled: sum 0 with gradient
        0, and count 0."""

    @abstractmethod
    def count(self, target: Tensor) -> Tensor:
        """The count that ``loss`` will return, from the target alone; scalar float32."""

    @abstractmethod
    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        """Labels of N images, as ``to_tensor`` gives them, of any resolution → the target, (N, …,
        size, size)."""

    # --- labels

    def from_expert(self, output: np.ndarray) -> np.ndarray:
        """The label of one image from what its expert predicted for it."""
        return output.astype(np.float32) if output.dtype.kind == "f" else output

    def unusable(self, label: np.ndarray) -> str:
        """Why a label is of no use at all; empty when it is of use."""
        lost = label.dtype.kind == "f" and not np.isfinite(label).any()
        return f"no finite {self.name} from its expert" if lost else ""

    @abstractmethod
    def read(self, path: Path) -> np.ndarray:
        """A label that people made, from a file of the official layouts. Raises ``OSError`` or
        ``ValueError``."""

    @abstractmethod
    def encode(self, label: np.ndarray) -> bytes:
        """A label as a file of ``suffix``, which any viewer shows."""

    @abstractmethod
    def decode(self, data: bytes) -> np.ndarray:
        """The inverse of ``encode``, but for ``quantisation``. Raises ``OSError`` or ``ValueError``
        for other bytes."""

    @abstractmethod
    def to_tensor(self, label: np.ndarray) -> Tensor:
        """A label in the form that is kept in memory and sent between processes: small."""

    # --- measured and seen

    @abstractmethod
    def score(
        self, outputs: Mapping[str, np.ndarray], truth: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """How right an expert's predictions of N images are.

        Args:
            outputs: what the expert predicted, by name (this task's, and what it says beside it).
            truth: (N, …), classes from ``classes`` on are not scored.
        """

    @abstractmethod
    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 of a label, for people; ``image`` (H, W, 3) uint8 is what it labels.
        Black is unknown."""


def resize_nearest(label: np.ndarray, side: int) -> np.ndarray:
    """A label brought to ``side`` pixels on the short side, if it is larger and ``side`` is not 0:
    the value in the middle of each cell, for a mean over an edge would be a depth, a direction or a
    class that is not there."""
    height, width = label.shape[-2:]
    if not side or min(height, width) <= side:
        return label
    scale = side / min(height, width)
    rows, columns = (
        ((np.arange(max(side, round(n * scale))) + 0.5) * n / max(side, round(n * scale))).astype(
            int
        )
        for n in (height, width)
    )
    return label[..., rows[:, None], columns]


def grey(values: np.ndarray) -> np.ndarray:
    """(H, W) of any range as (H, W, 3) uint8 between its 1 % and 99 %; what is not finite is
    black."""
    known = np.isfinite(values)
    low, high = np.quantile(values[known], [0.01, 0.99]) if known.any() else (0.0, 1.0)
    scaled: Any = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-9), 0, 1) * 230 + 25
    return np.repeat((scaled * known)[..., None], 3, -1).astype(np.uint8)
