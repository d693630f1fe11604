"""Settings of segmentation without training: what stands on the patches of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import UserError
from probes.base import MOST_PIXELS
from probes.dense.settings import KEPT


@dataclass(frozen=True)
class PatchSettings:
    """Protocol of a probe on patches; every field is part of the task's identity.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see
            ``probes.protocols``.
        size: short side of images in pixels, of train and of val. Scores are at the label's own
            resolution whatever the size.
        precision: of the backbone's arithmetic, ``fp32`` or ``bf16``.
        cache: features are kept in ``fp16``, ``bf16`` or ``fp32`` (and encoded each time where
            there is no room).
        layers: ``last`` of the backbone's feature maps, ``all``, or ``auto``: the last of a plain
            ViT, all of a pyramid. Several are brought to one stride, each of unit length at every
            place, and concatenated.
        feature_stride: that stride; none for the finest native one that is not below 8.
        memory: patches of train that are remembered at most, as many of each image, drawn by the
            seed.
    """

    protocol: str = "own"
    size: int = 512
    precision: str = "fp32"
    cache: str = "fp16"
    layers: Literal["auto", "last", "all"] = "auto"
    feature_stride: int | None = None
    memory: int = 2_000_000

    def __post_init__(self) -> None:
        self.must("size", 16 <= self.size <= MOST_PIXELS, f"16 to {MOST_PIXELS} pixels")
        self.must("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16")
        self.must("cache", self.cache in KEPT, " or ".join(KEPT))
        self.must("layers", self.layers in ("auto", "last", "all"), "auto, last or all")
        self.must(
            "feature_stride",
            self.feature_stride is None or self.feature_stride >= 1,
            "1 or more, or none",
        )
        self.must("memory", self.memory >= 1, "1 or more")

    def must(self, name: str, right: bool, wanted: str) -> None:
        """Raise ``UserError`` where a setting is not right."""
        if not right:
            raise UserError(f"{name}={getattr(self, name)!r} is not possible; it must be {wanted}")


@dataclass(frozen=True)
class PatchKnnSettings(PatchSettings):
    """k-NN of patches; the grid is CAPI's.

    Attributes:
        neighbours, distances: to choose from: how many vote, and by ``cosine`` or ``l2`` distance.
        standardise: bring each feature to mean 0 and variance 1 over the memory first.
    """

    neighbours: tuple[int, ...] = (1, 3, 10, 30)
    distances: tuple[str, ...] = ("cosine", "l2")
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neighbours", "distances"):
            object.__setattr__(
                self, name, tuple(getattr(self, name))
            )  # a list from JSON is the same protocol
        self.must(
            "neighbours",
            bool(self.neighbours) and min(self.neighbours) >= 1,
            "one number or more, 1 or above each",
        )
        self.must(
            "distances",
            bool(self.distances) and set(self.distances) <= {"cosine", "l2"},
            "cosine, l2 or both",
        )


@dataclass(frozen=True)
class LogregSettings(PatchSettings):
    """Logistic regression on patches by L-BFGS; the grid is CAPI's.

    Attributes:
        c: inverse strengths of the penalty to choose from, as scikit-learn's ``C``.
        iterations, tolerance: of L-BFGS: at most so many, or until the gradient's largest entry is
            below.
        standardise: see ``PatchKnnSettings``.
    """

    c: tuple[float, ...] = tuple(10.0 ** (-6 + 11 * step / 7) for step in range(8))
    iterations: int = 1000
    tolerance: float = 1e-5
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "c", tuple(self.c))
        self.must("c", bool(self.c) and min(self.c) > 0, "one number or more, above 0 each")
        self.must("iterations", self.iterations >= 1, "1 or more")
        self.must("tolerance", self.tolerance > 0, "above 0")


@dataclass(frozen=True)
class InContextSettings(PatchSettings):
    """Hummingbird's attention over its nearest neighbours; the defaults are its own.

    Attributes:
        neighbours: that are attended to.
        temperature: of the softmax over their cosines.
    """

    neighbours: int = 30
    temperature: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self.must("neighbours", self.neighbours >= 1, "1 or more")
        self.must("temperature", self.temperature > 0, "above 0")


# of a class called "background": what stands there (as later works list it for VOC); the best of
# its names counts
BACKGROUND = (
    *(
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
    ),
    *("window", "door", "bed", "cloud", "sand", "fence", "stairs"),
)


@dataclass(frozen=True)
class OpenVocabularySettings:
    """Protocol of segmentation by class texts alone; every field is part of the task's identity.

    Attributes:
        protocol, size, precision: see ``PatchSettings``.
        templates: see ``ZeroShotSettings``.
        background: names of what a class called ``background`` is; none to take it by its word.
            (Separated by commas.)
    """

    protocol: str = "own"
    size: int = 336
    precision: Literal["fp32", "bf16"] = "fp32"
    templates: Literal["openai", "openai-7", "photo"] = "openai"
    background: tuple[str, ...] = BACKGROUND

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", tuple(self.background))
        if not 16 <= self.size <= MOST_PIXELS:
            raise UserError(
                f"size={self.size!r} is not possible; it must be 16 to {MOST_PIXELS} pixels"
            )
        if self.precision not in ("fp32", "bf16"):
            raise UserError(
                f"precision={self.precision!r} is not possible; it must be fp32 or bf16"
            )
