"""Settings of segmentation without a trained decoder; every field is part of a task's identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from common.settings import settings_dataclass

Size = Annotated[int, Field(ge=16)]


@settings_dataclass
class PatchSettings:
    """Protocol of a probe on patches.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see
            ``probes.protocols``.
        size: short side of images in pixels, of train and of val. Scores are at the label's own
            resolution whatever the size.
        precision: of the backbone's arithmetic, ``fp32`` or ``bf16``.
        cache: precision in which features are cached; they are encoded each time where the disk has
            no room.
        layers: ``last`` of the backbone's feature maps, ``all``, or ``auto``: the last of a plain
            ViT, all of a pyramid. Several are brought to one stride, each of unit length at every
            position, and concatenated.
        feature_stride: that stride; none for the finest native one that is not below 8.
        memory: patches of train that are remembered at most, as many of each image, sampled by the
            seed.
    """

    protocol: str = "own"
    size: Size = 512
    precision: Literal["fp32", "bf16"] = "fp32"
    cache: Literal["fp16", "bf16", "fp32"] = "fp16"
    layers: Literal["auto", "last", "all"] = "auto"
    feature_stride: PositiveInt | None = None
    memory: PositiveInt = 2_000_000


@settings_dataclass
class PatchKnnSettings(PatchSettings):
    """k-NN of patches, whose features are standardised over the memory; the grid is CAPI's.

    Attributes:
        neighbours, distances: to choose from: how many vote, and by ``cosine`` or ``l2`` distance.
    """

    neighbours: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 3, 10, 30)
    distances: Annotated[tuple[Literal["cosine", "l2"], ...], Field(min_length=1)] = (
        "cosine",
        "l2",
    )


@settings_dataclass
class LogregSettings(PatchSettings):
    """Logistic regression on standardised patches by L-BFGS; the grid is CAPI's.

    Attributes:
        c: inverse strengths of the penalty to choose from, as scikit-learn's ``C``.
        iterations, tolerance: of L-BFGS: at most so many, or until the gradient's largest entry is
            below.
    """

    c: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = tuple(
        10.0 ** (-6 + 11 * step / 7) for step in range(8)
    )
    iterations: PositiveInt = 1000
    tolerance: PositiveFloat = 1e-5


@settings_dataclass
class InContextSettings(PatchSettings):
    """Hummingbird's attention over its nearest neighbours; the defaults are its own.

    Attributes:
        neighbours: that are attended to.
        temperature: of the softmax over their cosines.
    """

    neighbours: PositiveInt = 30
    temperature: PositiveFloat = 0.02


# what a class called "background" shows, as later works list it for VOC; the best name counts
BACKGROUND = (
    "sky",
    "wall",
    "floor",
    "ground",
    "grass",
    "tree",
    "road",
    "sea",
    "river",
    "mountain",
    "building",
    "ceiling",
    "curtain",
    "window",
    "door",
    "bed",
    "cloud",
    "sand",
    "fence",
    "stairs",
)


@settings_dataclass
class OpenVocabularySettings:
    """Protocol of segmentation by class texts alone.

    Attributes:
        protocol, size, precision: see ``PatchSettings``.
        templates: see ``ZeroShotSettings``.
        background: names that stand for a class called ``background``; empty to use the word
            itself.
    """

    protocol: str = "own"
    size: Size = 336
    precision: Literal["fp32", "bf16"] = "fp32"
    templates: Literal["openai", "openai-7", "photo"] = "openai"
    background: tuple[str, ...] = BACKGROUND
