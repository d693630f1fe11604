"""Protocols of the probes on whole images: linear and zero-shot classification, retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from backbones.errors import UserError

RECALL_AT = (1, 5, 10)
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EncodeSettings:
    """How whole images are encoded: part of the protocol of every probe that stands on embeddings.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see ``probes.protocols``.
        size: side in pixels of the square that the backbone sees; None for its own size.
        precision: of the backbone's arithmetic, ``fp32`` or ``bf16``.
        encode_batch_size: images that the backbone sees at once.
    """

    protocol: str = "own"
    size: int | None = None
    precision: Precision = "fp32"
    encode_batch_size: int = 64

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"size={self.size} is not possible; it must be pixels, or none for the backbone's own size")
        if self.precision not in get_args(Precision):
            raise UserError(
                f"precision={self.precision!r} is not possible; it must be {' or '.join(get_args(Precision))}"
            )
        if self.encode_batch_size < 1:
            raise UserError(f"encode_batch_size={self.encode_batch_size} is not possible; it must be 1 or more")


@dataclass(frozen=True)
class LinearSettings(EncodeSettings):
    """Protocol of linear classification.

    Attributes:
        epochs, batch_size, momentum: of SGD on the features; a cosine takes the learning rate to zero.
        learning_rates, weight_decays: the grid, every pair of which is trained; rates are for a batch of 256.
        holdout: share of each class of train on which the pair is chosen; the rest of train is then used too.
        standardise: bring each feature to mean 0 and variance 1 over train, as a BatchNorm without affine does.
        size, precision, encode_batch_size: see ``EncodeSettings``.
    """

    epochs: int = 30
    batch_size: int = 256
    momentum: float = 0.9
    learning_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    weight_decays: tuple[float, ...] = (0.0,)
    holdout: float = 0.1
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rates or not self.weight_decays:
            raise UserError("linear: learning_rates and weight_decays need at least one value each")
        if min(self.learning_rates) <= 0 or min(self.weight_decays) < 0:
            raise UserError("linear: learning rates must be above 0, weight decays 0 or above")
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError("linear: epochs and batch_size must be at least 1")
        if not 0 < self.holdout < 1:
            raise UserError(f"linear: holdout is a share of train between 0 and 1, not {self.holdout:g}")


@dataclass(frozen=True)
class RetrievalSettings(EncodeSettings):
    """Protocol of retrieval.

    Attributes:
        template: what a caption is put into; ``{}`` is the caption as it stands in the dataset.
        size, precision, encode_batch_size: see ``EncodeSettings``.
    """

    template: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise UserError(f"retrieval: template {self.template!r} must hold one {{}} for the caption")


@dataclass(frozen=True)
class ZeroShotSettings(EncodeSettings):
    """Protocol of zero-shot classification.

    Attributes:
        templates: the prompts that a class's name is put into: ``openai`` (CLIP's 80 for ImageNet), ``openai-7`` (the
            seven of them that CLIP's authors found to be enough), ``photo`` (``a photo of a {}.``), or ``auto``:
            ``openai`` for imagenet and ``photo`` for everything else.
        size, precision, encode_batch_size: see ``EncodeSettings``.
    """

    templates: Literal["auto", "openai", "openai-7", "photo"] = "auto"
