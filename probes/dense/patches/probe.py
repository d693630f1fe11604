"""Segmentation without a trained decoder, by neighbours in a memory of patches, by a classifier of
patches, by class texts: the settings and the probes.

Importing this does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.settings import Axis, Precision, settings_dataclass
from probes.base import FeatureProbe, PatchLayers
from probes.dense.settings import ImageSize
from probes.dense.tasks import DENSE_TASKS
from probes.registry import register_probe
from probes.upsamplers.names import UpsamplerName
from reports.records import Metric


@settings_dataclass
class ImageSettings:
    """How images become patches, and predictions label maps.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see
            ``probes.protocols``.
        size: of images in pixels, of train and of val.
        resize: ``short-side`` is ``size``, and the aspect stays (OpenCV, bilinear), likewise
            ``short-side-bicubic`` (Pillow; the long side is rounded down);
            ``square-bicubic`` and ``square-bilinear`` squeeze images to ``size`` × ``size``
            (Pillow), rounded down to a multiple of the backbone's patch.
        score_size: side of the squares that label maps of train and val are resized to (nearest),
            and that predictions are scored on, rounded likewise; none for each label map's own
            resolution.
        precision: of the backbone's arithmetic: ``fp32``, ``bf16``, or ``auto``, which a plan
            replaces by one of them.
    """

    protocol: str = "own"
    size: Annotated[ImageSize, Axis()] = 512
    resize: Literal["short-side", "short-side-bicubic", "square-bicubic", "square-bilinear"] = (
        "short-side"
    )
    score_size: ImageSize | None = None
    precision: Precision = "fp32"

    @property
    def is_square(self) -> bool:
        """Whether images are squeezed to squares."""
        return self.resize.startswith("square")

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only."""
        return self.is_square and (self.size, self.size) == size


@settings_dataclass
class PatchSettings(ImageSettings):
    """Protocol of a probe on patches.

    Attributes:
        cache: precision in which features are cached; they are encoded each time where the disk has
            no room.
        layers: ``last`` of the backbone's feature maps, ``all``, or ``auto``: the last of a plain
            ViT, all of a pyramid; or one layer, by its number from 1 on or as a share of the depth
            (``50%``). Several are brought to one stride, each of unit length at every
            position, and concatenated.
        feature_stride: that stride; none for the finest native one that is not below 8.
        upsampler: see ``DenseSettings``. Features are cached after it.
        memory: patches of train that are remembered at most, as many of each image, sampled by the
            seed.
        void: pixels of train without a label. ``ignore``: they have no part in a patch, and patches
            of which less than half is labelled are left out. ``background``: they are of the first
            class. ``class``: they are one more class, which may be predicted and is always wrong.
            ``vote``: the same, but patches with more of it than of any class do not vote.
    """

    cache: Literal["fp16", "bf16", "fp32"] = "fp16"
    layers: PatchLayers = "auto"
    feature_stride: Annotated[PositiveInt | None, Axis()] = None
    upsampler: Annotated[UpsamplerName, Axis()] = "bilinear"
    memory: Annotated[PositiveInt, Axis()] = 2_000_000
    void: Literal["ignore", "background", "class", "vote"] = "ignore"


def has_void_class(settings: ImageSettings) -> bool:
    """Whether void is one more class."""
    return getattr(settings, "void", "ignore") in ("class", "vote")


@settings_dataclass
class ChosenSettings(PatchSettings):
    """Protocol of a probe that chooses a setting on held-out images.

    Attributes:
        votes: ``shares``: a patch's scores of classes are resized (bilinear) to the label map.
            ``pixels``: each pixel of a patch is predicted by itself, by the pixels at its position
            in the neighbours, of which the most frequent label wins; a classifier's label holds for
            all pixels of its patch. Needs squares that the patches divide.
        held_out: images to choose on at most, of a tenth of train that follows from the images'
            content; none for all of the tenth.
    """

    votes: Literal["shares", "pixels"] = "shares"
    held_out: PositiveInt | None = 200

    def __post_init__(self) -> None:
        if self.votes == "pixels" and (not self.is_square or not self.score_size):
            raise UserError(
                "votes=pixels: images need equal patches; set resize=square-bicubic and score_size"
            )


@settings_dataclass
class PatchKnnSettings(ChosenSettings):
    """k-NN of patches, whose features are standardised over the memory; the grid is CAPI's.

    Attributes:
        neighbours, distances: to choose from: how many vote, and by ``cosine`` or ``l2`` distance.
    """

    neighbours: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Axis("k")] = (1, 3, 10, 30)
    distances: Annotated[tuple[Literal["cosine", "l2"], ...], Field(min_length=1)] = (
        "cosine",
        "l2",
    )


@settings_dataclass
class LogregSettings(ChosenSettings):
    """Logistic regression on standardised patches by L-BFGS; the grid is CAPI's.

    Attributes:
        c: inverse strengths of the penalty to choose from, as scikit-learn's ``C``.
        iterations, tolerance: of L-BFGS: at most so many, or until the gradient's largest entry is
            below the tolerance, or a step changes the loss by less than its ten-thousandth.
        warm_start: each fit begins where that of the next stronger penalty ended, not at zero.
    """

    c: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = tuple(
        10.0 ** (-6 + 11 * step / 7) for step in range(8)
    )
    iterations: PositiveInt = 1000
    tolerance: PositiveFloat = 1e-5
    warm_start: bool = True


@settings_dataclass
class InContextSettings(PatchSettings):
    """Hummingbird's attention over its nearest neighbours.

    Attributes:
        neighbours: that are attended to.
        temperature: of the softmax over their cosines.
        passes: crops of each image of train, in changed colours, that fill the memory in place of
            the image; see ``probes.dense.patches.images``. They need square images.
        sampling: of an image's patches where not all are remembered: ``even``, or ``rare``: those
            of classes that few of its patches show are the more likely.
    """

    neighbours: Annotated[PositiveInt, Axis("k")] = 30
    temperature: Annotated[PositiveFloat, Axis()] = 0.02
    passes: NonNegativeInt = 0
    sampling: Literal["even", "rare"] = "even"

    def __post_init__(self) -> None:
        if self.passes and not self.is_square:
            raise UserError(f"passes={self.passes}: crops are squares; set resize=square-bilinear")


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
class OpenVocabularySettings(ImageSettings):
    """Protocol of segmentation by class texts alone.

    Attributes:
        templates: see ``ZeroShotSettings``.
        background: names that stand for a class called ``background``; empty to use the word
            itself.
        slide: (side, stride) in pixels of square windows that the backbone sees one by one. Their
            scores are resized (bilinear) to the window, become probabilities by a softmax over
            classes without temperature, and are averaged where windows overlap. Empty for the
            complete image.
    """

    size: Annotated[ImageSize, Axis()] = 336
    templates: Literal["openai", "openai-7", "photo", "tcl"] = "openai"
    background: tuple[str, ...] = BACKGROUND
    slide: tuple[()] | tuple[ImageSize, PositiveInt] = ()

    def __post_init__(self) -> None:
        if self.slide and self.slide[0] < self.slide[1]:
            raise UserError(f"slide={self.slide}: the side must be no smaller than the stride")


METRICS = DENSE_TASKS["segmentation"].metrics
HUNGARIAN = {**METRICS, "mIoU_hungarian": Metric()}
ON_TEXT: Any = {"splits": ("val",), "needs_text": True, "needs_dense_text": True}

for _name, _module, _settings, _metrics, _options in (
    ("patch-knn", "knn", PatchKnnSettings, METRICS, {"version": 3}),
    ("logreg", "logreg", LogregSettings, METRICS, {"version": 4}),
    ("in-context", "knn:run_in_context", InContextSettings, HUNGARIAN, {"version": 2}),
    ("open-vocabulary", "open_vocabulary", OpenVocabularySettings, METRICS, ON_TEXT),
):
    _path = f"probes.dense.patches.{_module}"
    register_probe(FeatureProbe(_name, "segmentation", _settings, _metrics, _path, **_options))
