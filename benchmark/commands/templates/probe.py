"""A probe of your own: an image is of the class whose mean training embedding is nearest. Try it:

python -m benchmark run --plugin nearest-mean.py --backbone random --suite own \\
    --task imagefolder/nearest-mean --set centre=false --data imagefolder=DIR
"""

from torch.nn.functional import normalize, one_hot

from cliptex_common.settings import settings_dataclass
from probes.base import Context, FeatureProbe, Metric, TaskResult
from probes.image_level.classification import score, targets
from probes.image_level.encode import encode_split
from probes.image_level.settings import EncodeSettings
from probes.registry import register_probe


@settings_dataclass
class Settings(EncodeSettings):
    """Every field is part of a number's identity, and ``--set`` changes it.

    Attributes:
        centre: subtract the mean of all training images first.
    """

    centre: bool = True


def run(context: Context) -> TaskResult:
    """All that a probe gets is ``context``: the frozen backbone, the checked dataset, its settings,
    seed and device. Choose hyper-parameters on a held-out part of train: val is scored once."""
    # (N, D); read from the cache where another probe has encoded the same images
    train, val = (encode_split(context, split) for split in ("train", "val"))
    if context.settings.centre:
        centre = train.mean(dim=0)
        train, val = train - centre, val - centre
    members = one_hot(targets(context, "train"), len(context.data.classes)).float()  # (N, classes)
    means = normalize(members.T @ normalize(train, dim=1), dim=1)
    # the metrics, and what they are computed from image by image, which a report resamples
    result = score(context, normalize(val, dim=1) @ means.T)
    empty = int((members.sum(dim=0) == 0).sum())
    result.notes = [f"{empty} classes have no training image"] * bool(empty)
    return result


register_probe(
    FeatureProbe(
        name="nearest-mean",
        kind="classification",  # of the datasets that have it
        settings_type=Settings,
        # the main metric first; the default is a percentage of which more is better
        metrics={"top1": Metric(label="top-1"), "top5": Metric()},
        module=__name__,  # where ``run`` is
        splits=("train", "val"),  # ("val",) if nothing is trained
        needs_text=False,
    )
)
