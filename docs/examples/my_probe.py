"""A probe of your own: an image is of the class whose mean training image is nearest, by cosine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.nn.functional import normalize, one_hot

from common.settings import settings_dataclass
from probes.base import Context, Metric, TaskResult, settings_json
from probes.datasets.base import Kind, Split
from probes.image_level.classification import score, targets
from probes.image_level.embeddings import encode_split
from probes.image_level.settings import EncodeSettings


@settings_dataclass
class NearestMeanSettings(EncodeSettings):
    """Every field is part of a number's identity, and ``--set`` changes it.

    Attributes:
        centre: subtract the mean of all training images first.
    """

    centre: bool = True


@dataclass
class NearestMean:
    """See ``probes.base.Probe``."""

    name: str = "nearest-mean"
    kind: Kind = "classification"
    version: int = 1  # raise it whenever the same settings would give other numbers
    settings_type: type = NearestMeanSettings
    # the main metric first; the default of Metric is a percentage of which more is better
    metrics: Mapping[str, Metric] = field(
        default_factory=lambda: {"top1": Metric(label="top-1"), "top5": Metric()}
    )
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")

    def config(self, context: Context) -> str:
        """All that the number follows from, as JSON."""
        return settings_json(self.name, context)

    def run(self, context: Context) -> TaskResult:
        """Means of train, scores of val. Embeddings are read from the cache where another probe has
        made them; ``context.cost`` counts what is encoded."""
        train, val = (encode_split(context, split) for split in ("train", "val"))
        if context.settings.centre:
            centre = train.mean(dim=0)
            train, val = train - centre, val - centre
        # (N, classes)
        members = one_hot(targets(context, "train"), len(context.data.classes)).float()
        means = normalize(members.T @ normalize(train, dim=1), dim=1)
        # metrics, and the rank of each image's class
        result = score(context, normalize(val, dim=1) @ means.T)
        empty = int((members.sum(dim=0) == 0).sum())
        result.notes = [f"{empty} classes have no training image"] * bool(empty)
        return result


NEAREST_MEAN = NearestMean()
