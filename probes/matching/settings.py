"""Protocols of the probes that match patches; every field is part of a task's identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PositiveFloat, PositiveInt

from cliptex_common.settings import Axis, settings_dataclass
from probes.image_level.settings import EncodeSettings
from probes.layers import KeypointLayers


@settings_dataclass
class LabelPropagationSettings(EncodeSettings):
    """Protocol of label propagation; the defaults are DINO's.

    Attributes:
        size: short side of frames in pixels.
        resize: ``dino``: OpenCV's bilinear, the long side rounded down to 64 pixels (then both
            sides up to the backbone's divisor); ``dinov3``: Pillow's bicubic, both sides rounded up
            to that divisor.
        encode_batch_size: frames that the backbone sees at once.
        layers: whose feature map is matched: the ``last`` of the backbone's own, or one layer, by
            its number from 1 on or as a share of the depth (``50%``).
        previous_frames: whose labels are read, beside the first frame.
        neighbourhood, radius: patches at most ``radius`` away, in a ``square`` or a ``circle``.
        neighbours: so many most similar patches give a patch its label.
        temperature: a neighbour at cosine s counts exp(s / temperature).
        upsampling: of labels to the frame, before each pixel gets its best one.
    """

    size: Annotated[PositiveInt | None, Axis()] = 480
    resize: Literal["dino", "dinov3"] = "dino"
    encode_batch_size: PositiveInt | None = 8
    layers: KeypointLayers = "last"
    previous_frames: PositiveInt = 7
    neighbourhood: Literal["square", "circle"] = "square"
    radius: PositiveInt = 12
    neighbours: Annotated[PositiveInt, Axis("k")] = 5
    temperature: PositiveFloat = 0.1
    upsampling: Literal["bilinear", "nearest"] = "bilinear"

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """No: the size follows from that of the frames."""
        return False


@settings_dataclass
class SceneViewSettings(EncodeSettings):
    """Protocol of the matching of views of rooms; the defaults are probe3d's.

    Attributes:
        size: short side of images in pixels.
        encode_batch_size: views that the backbone sees at once.
        layers: whose feature map is matched, see ``LabelPropagationSettings``.
        matches: the clearest of a pair, which are scored; fewer where there are fewer points.
    """

    size: Annotated[PositiveInt, Axis()] = 480
    encode_batch_size: PositiveInt | None = 8
    layers: KeypointLayers = "last"
    matches: PositiveInt = 1000

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """No: images are not square."""
        return False


@settings_dataclass
class ObjectViewSettings(SceneViewSettings):
    """Protocol of the matching of views of objects; the defaults are probe3d's.

    Attributes:
        size: side in pixels of the square around the object.
        pairs: ``sampled``: to every fourth image another one at random, at most 120 degrees away;
            or those that are ``listed`` with the dataset.
    """

    size: Annotated[PositiveInt, Axis()] = 512
    pairs: Literal["sampled", "listed"] = "sampled"

    def feeds_only(self, size: tuple[int, int]) -> bool:
        """Whether the square is of ``size``."""
        return size == (self.size, self.size)
