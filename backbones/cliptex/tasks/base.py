"""A dense task of CLIPTeX: how it is labelled, stored, augmented, learned, measured and drawn.
``shapes`` has bases for a class, a number or a direction for each pixel.

A label is a map of one image, (H, W) or (C, H, W), that an expert predicted or a person drew. A
target is a batch of them as the loss compares them, after crop and flip, with the task's own value
where unknown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backbones.cliptex.data.augment import Geometry
from backbones.cliptex.ground_truth import LabelledImage, MapFolders
from cliptex_common.weighted import Arrays, mean_of_images

Summed = tuple[Tensor, Tensor]


class Task(ABC):
    """One dense task. A subclass is one file, which ends in ``TASK = MyTask()``.

    Attributes:
        name: of the task, its λ (``lambda_NAME``), its files (``KEY.NAME.SUFFIX``) and its
            expert's predictions.
        about: one line for lists, unless the registration has one.
        suffix: of the files that ``encode`` makes; viewers go by it.
        quantisation: what ``encode`` loses, in words.
        has_classes: whether labels are numbers of classes, whose names a label store keeps.
        missing: ``to_tensor`` of an image without a label.
        folders: of ground truth; None: ``NAME/images`` and ``NAME/annotations``.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    suffix: ClassVar[str] = "png"
    quantisation: ClassVar[str] = "none"
    has_classes: ClassVar[bool] = False
    missing: ClassVar[Tensor]
    folders: ClassVar[MapFolders | None] = None

    # --- learning

    def output_channels(self, classes: Sequence[str]) -> int:
        """Output channels of a head."""
        return 1

    def activate(self, output: Tensor) -> Tensor:
        """A head's output, (N, channels, H, W), in the form that the loss takes."""
        return output

    def predict(self, output: Tensor) -> Tensor:
        """The labels of N images in a head's output."""
        return self.activate(output)

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Summed:
        """(sum, count), not a mean, so that ranks and micro-batches can be added up.

        Where nothing is labelled: sum 0 with gradient 0, and count 0.
        """

    @abstractmethod
    def count(self, target: Tensor) -> Tensor:
        """The count that ``loss`` will return, from the target alone; scalar float32."""

    @abstractmethod
    def warp(self, maps: Sequence[Tensor], geometry: Geometry, size: int) -> Tensor:
        """Labels of N images, from ``to_tensor`` (or, when an expert learns, as they are), of any
        resolution → target (N, …, size, size)."""

    # --- labels

    def ground_truth(self, root: Path, split: str) -> tuple[tuple[str, ...], list[LabelledImage]]:
        """What ``experts train`` learns from: names of the classes, and the samples of the
        ``train`` or ``val`` split in a data root; by default the files of ``folders``.

        Raises:
            UserError: it is missing or malformed.
        """
        folders = self.folders or MapFolders(self.name)
        names = folders.classes(root) if self.has_classes else ()
        return names, folders.samples(root, split, self.read)

    def from_expert(self, output: np.ndarray) -> np.ndarray:
        """The label of one image from what its expert predicted for it."""
        return output.astype(np.float32) if output.dtype.kind == "f" else output

    @abstractmethod
    def read(self, path: Path) -> np.ndarray:
        """A manual label, from a file of the official layouts.

        Raises:
            OSError, ValueError: it is no such file.
        """

    @abstractmethod
    def encode(self, label: np.ndarray) -> bytes:
        """A label as a file of ``suffix``, which any viewer shows."""

    @abstractmethod
    def decode(self, data: bytes) -> np.ndarray:
        """The inverse of ``encode``, up to ``quantisation``. Raises ``OSError``, ``ValueError``."""

    @abstractmethod
    def to_tensor(self, label: np.ndarray) -> Tensor:
        """A label in the form that is kept in memory and sent between processes: small."""

    # --- measured and seen

    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Statistics of one image, from which ``summary`` computes metrics.

        Args:
            prediction, target: (1, H, W), or (3, H, W) of vectors.
        """
        raise NotImplementedError

    def summary(self, arrays: Arrays, weights: np.ndarray) -> dict[str, Any]:
        """The metrics of sets of images: here the mean of each statistic, without NaN.

        Args:
            arrays: the statistics of N images.
            weights: (R, N) how often each image is in each set.

        Returns:
            metric → (R,).
        """
        return {name: mean_of_images(values, weights) for name, values in arrays.items()}

    def accuracy(
        self, outputs: Mapping[str, np.ndarray], target: np.ndarray, classes: int = 0
    ) -> dict[str, float]:
        """The metrics of an expert's predictions of N images.

        Args:
            outputs: the expert's predictions by name (this task's, and a confidence if any).
            target: (N, …); classes from ``classes`` on are not scored.
        """
        scores = [
            self.score(*(torch.from_numpy(each).reshape(-1, *each.shape[-2:]) for each in pair))
            for pair in zip(outputs[self.name], target, strict=True)
        ]
        arrays = {name: np.stack([each[name].numpy() for each in scores]) for name in scores[0]}
        metrics = self.summary(arrays, np.ones((1, len(scores))))
        return {name: float(values[0]) for name, values in metrics.items()}

    @abstractmethod
    def picture(self, label: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 picture of the label of ``image`` (H, W, 3) uint8. Black is unknown."""


def resize_nearest(label: np.ndarray, side: int) -> np.ndarray:
    """A label shrunk to ``side`` pixels on the short side; 0 keeps its size.

    It takes the value in the middle of each cell: a mean over an edge would be a depth, a direction
    or a class that does not occur.
    """
    height, width = label.shape[-2:]
    if not side or min(height, width) <= side:
        return label
    scale = side / min(height, width)

    def centres(length: int) -> np.ndarray:
        cells = max(side, round(length * scale))
        return ((np.arange(cells) + 0.5) * length / cells).astype(int)

    return label[..., centres(height)[:, None], centres(width)]
