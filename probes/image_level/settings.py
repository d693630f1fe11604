"""Protocols of the probes on whole images; every field is part of a task's identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.process import is_accelerator_name
from cliptex_common.settings import Axis, Fraction, Precision, Share, settings_dataclass
from probes.base import ImageFeatures, KeypointLayers, requested_layer
from probes.settings import TuneSettings

RECALL_AT = (1, 5, 10)
OOD_SCORES = ("energy", "msp", "knn")
# top-1 error in percent of AlexNet on each corruption of ImageNet-C, mean of its five levels
# (Hendrycks and Dietterich 2019)
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.264,
    "defocus_blur": 81.988,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.836,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.784,
    "jpeg_compression": 60.65,
}
Features = Literal["projected", "pre_projection", "layers"]

Rates = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Decays = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
Neighbours = Annotated[tuple[PositiveInt, ...], Field(min_length=1), Axis("k")]


@dataclass(frozen=True)
class Encoding:
    """How whole images are encoded; all of it decides the numbers.

    Attributes:
        size: (height, width) in pixels that the backbone sees; None for its own.
        features: ``projected``: the global embedding; ``pre_projection``: what comes before CLIP's
            projection; ``layers``: the class tokens of all layers that the backbone reads.
        blocks: where it is not 0, the class tokens of so many last blocks, shallow to deep, and the
            mean of the last patch tokens take the place of ``features``.
        border: pixels that are cut off at each side of an image first.
        squash: images become squares without a crop.
        upright: turned as their EXIF orientation says.
    """

    size: tuple[int, int] | None = None
    precision: Precision = "fp32"
    batch_size: int = 64
    features: Features = "projected"
    blocks: int = 0
    border: int = 0
    squash: bool = False
    upright: bool = False


@settings_dataclass
class EncodeSettings:
    """How whole images are encoded: part of the protocol of every probe on whole images.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see
            ``probes.protocols``.
        size: side in pixels of the square that the backbone sees; None for its own size.
        precision: of the backbone's arithmetic: ``fp32``, ``bf16``, or ``auto``, which a plan
            replaces by one of them.
        encode_batch_size: most images that the backbone sees at once; None for 256 on a GPU and 64
            elsewhere. On a CPU fewer, where its activations are large (``Halving``).
    """

    protocol: str = "own"
    size: Annotated[PositiveInt | None, Axis()] = None
    precision: Precision = "fp32"
    encode_batch_size: PositiveInt | None = None

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the backbone sees images of ``size`` only, which is its own."""
        return self.size is None or (self.size, self.size) == size

    def encoding(self, device: str) -> Encoding:
        """How images are encoded on a type of device."""
        batch_size = self.encode_batch_size or (256 if is_accelerator_name(device) else 64)
        return Encoding((self.size, self.size) if self.size else None, self.precision, batch_size)


@settings_dataclass
class EmbeddingSettings(EncodeSettings):
    """Protocol of a probe on global embeddings.

    Attributes:
        features: ``projected``, the global embedding; or ``pre_projection``, what comes before
            CLIP's projection to the space of texts (its authors' linear probe; the embedding itself
            where there is no such projection); or the class token (without one the mean of the map)
            of one layer, by its number from 1 on or as a share of the depth (``50%``).
    """

    features: ImageFeatures = "projected"

    def encoding(self, device: str) -> Encoding:
        features: Any = self.features if requested_layer(self) is None else "layers"
        return replace(super().encoding(device), features=features)


@settings_dataclass
class LinearSettings(EmbeddingSettings, TuneSettings):
    """Protocol of linear classification. Where the backbone is tuned, ``epochs`` and ``batch_size``
    are those of random crops, too, on which it is trained by AdamW with the one decay.

    Attributes:
        solver: ``sgd``, whose learning rate a cosine takes to zero; or ``adamw``, with one rate
            throughout, where biases decay too.
        epochs: passes over the features.
        batch_size: features of a step.
        momentum: of SGD.
        learning_rates: of the grid, every pair of which is trained; of SGD for a batch of 256.
        weight_decays: of the grid.
        holdout: share of each class of train on which the pair is chosen; the rest of train is then
            used too.
        standardise: bring each feature to mean 0 and variance 1 over train, as a BatchNorm without
            affine does.
        random_crops: train on fresh random crops of each image instead of its one embedding, with
            one frozen pass for all heads; see ``probes.image_level.linear``. The next three
            settings need it.
        epoch_length: iterations of an epoch; 0 for a pass over train.
        blocks: heads read the class tokens of so many last blocks; every pair of ``blocks`` and
            ``average_pool`` is trained.
        average_pool: heads read these without, and with the mean of the last patch tokens.
    """

    solver: Literal["sgd", "adamw"] = "sgd"
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 256
    momentum: float = 0.9
    learning_rates: Rates = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    weight_decays: Decays = (0.0,)
    holdout: Fraction = 0.1
    standardise: bool = True
    random_crops: bool = False
    epoch_length: NonNegativeInt = 0
    blocks: tuple[PositiveInt, ...] = ()
    average_pool: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.is_tuned and (self.random_crops or len(self.weight_decays) > 1):
            raise UserError(
                f"linear: tune={self.tune} begins with the classifier of one embedding, and has one"
                " weight decay; set random_crops=false and weight_decays=0"
            )
        if self.random_crops and not (self.blocks and self.average_pool):
            raise UserError(
                "linear: random_crops needs blocks and average_pool; protocol=dinov2 sets all of it"
            )
        if self.random_crops and (self.standardise or self.features != "projected"):
            raise UserError(
                "linear: random_crops reads tokens, which are not standardised; set"
                " standardise=false and leave features"
            )
        if self.random_crops and self.solver != "sgd":
            raise UserError(f"linear: random_crops trains by sgd; leave solver={self.solver}")
        if not self.random_crops and (self.blocks or self.average_pool or self.epoch_length):
            raise UserError(
                "linear: blocks, average_pool and epoch_length apply to random_crops=true only"
            )

    @property
    def trains_on_crops(self) -> bool:
        """Whether training sees random crops (``linear.RandomCrops``)."""
        return self.random_crops or self.is_tuned

    @property
    def grid(self) -> list[tuple[float, float]]:
        """Every pair of learning rate and weight decay."""
        return list(product(self.learning_rates, self.weight_decays))

    def encoding(self, device: str) -> Encoding:
        return replace(super().encoding(device), blocks=max(self.blocks, default=0))


@settings_dataclass
class RetrievalSettings(EncodeSettings):
    """Protocol of retrieval.

    Attributes:
        template: of the text; ``{}`` is the caption as it stands in the dataset.
    """

    template: str = "{}"

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise UserError(f"template={self.template!r} must hold one {{}} for the caption")


@settings_dataclass
class ZeroShotSettings(EncodeSettings):
    """Protocol of zero-shot classification.

    Attributes:
        templates: the prompts of a class: ``openai`` (CLIP's 80 for ImageNet), ``openai-7`` (the
            seven of them that CLIP's authors found to be enough), ``photo`` (``a photo of a {}.``),
            ``tcl`` (TCL's nine for segmentation),
            ``dataset`` (the dataset's own), or ``auto``: the dataset's own where it has some,
            ``openai`` for imagenet and ``photo`` for everything else.
    """

    templates: Literal["auto", "openai", "openai-7", "photo", "tcl", "dataset"] = "auto"


@settings_dataclass
class CorrespondenceSettings(EncodeSettings):
    """Protocol of keypoint matching.

    Attributes:
        size: side of the square that images are resized to without keeping their shape, rounded up
            to the backbone's divisor.
        layers: whose feature map is matched: the ``last`` of the backbone's own, or one layer, by
            its number from 1 on or as a share of the depth (``50%``).
        positions: of a match: ``interpolated`` between the centres of patches, or, as probe3d's
            (El Banani et al. 2024) on SPair-71k, upper left ``corners`` of patches.
    """

    size: Annotated[PositiveInt | None, Axis()] = 512
    layers: KeypointLayers = "last"
    positions: Literal["interpolated", "corners"] = "interpolated"


@settings_dataclass
class AttentiveSettings(EncodeSettings, TuneSettings):
    """Protocol of attentive classification.

    Attributes:
        pool: ``latent``, SigLIP's attention pool on normalised class and patch tokens; or
            ``query``, CAPI's: one learned query attends to the patch tokens, without an output
            projection.
        epochs: passes over random crops of train.
        batch_size: images of an iteration.
        epoch_length: iterations of an epoch; 0 for a pass over train.
        learning_rates: of AdamW; a head is trained with each pair of rate and decay. Where the
            backbone is tuned, the head has the one rate that is given, else that of the backbone.
        weight_decays: of AdamW.
        warmup: share of all iterations in which the rates rise from zero; a cosine then takes them
            back.
        beta2: of AdamW.
        epsilon: of AdamW.
        decay_biases: whether biases decay, too.
        holdout: share of each class of train on which the pair is chosen; no head is trained on it.
    """

    pool: Literal["latent", "query"] = "latent"
    epochs: PositiveInt = 10
    epoch_length: NonNegativeInt = 0
    batch_size: PositiveInt = 256
    learning_rates: Rates = (0.0001, 0.0003, 0.001, 0.003)
    weight_decays: Decays = (0.01,)
    warmup: Share = 0.0
    beta2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8
    decay_biases: bool = True
    holdout: Fraction = 0.1
    trains_on_crops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.is_tuned and len(self.weight_decays) > 1:
            raise UserError(
                f"attentive: tune={self.tune} has one weight decay; set weight_decays=0.01"
            )

    @property
    def grid(self) -> list[tuple[float, float]]:
        """Every pair of learning rate and weight decay."""
        return list(product(self.learning_rates, self.weight_decays))


@settings_dataclass
class KnnSettings(EmbeddingSettings):
    """Protocol of k-NN classification; the defaults are DINO's.

    Attributes:
        neighbours: the numbers of neighbours to choose from.
        temperature: a neighbour at cosine s counts exp(s / temperature).
        holdout: share of each class of train on which the number is chosen; all of train then
            votes.
    """

    neighbours: Neighbours = (10, 20, 100, 200)
    temperature: PositiveFloat = 0.07
    holdout: Fraction = 0.1


@settings_dataclass
class FewShotSettings(EmbeddingSettings):
    """Protocol of few-shot classification in closed form.

    Attributes:
        shots: training images of each class, sampled by the seed; all of a class that has fewer.
        l2: strengths of the penalty to choose from; big_vision fixes 2¹⁰.
    """

    shots: Annotated[PositiveInt, Axis()] = 10
    l2: Rates = tuple(4.0**power for power in range(-5, 11))
