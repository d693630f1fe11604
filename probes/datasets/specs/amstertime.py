"""AmsterTime (Yildiz et al., ICPR 2022): 1,231 old photographs of Amsterdam, and what a street view
of each place shows today.

``old/0000.jpg`` and ``new/0000.png``, as its archive unpacks. Each image is a query that searches
its place among those of the other time.
"""

from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import IMAGE_SUFFIXES, walk
from probes.registry import register_dataset

TIMES = {"new": "old", "old": "new"}


def list_samples(root: Path, split: Split) -> list[Sample]:
    if split == "train":
        return []
    images = {
        time: {Path(name).stem: f"{time}/{name}" for name in walk(root, time, IMAGE_SUFFIXES)}
        for time in TIMES
    }
    if single := images["new"].keys() ^ images["old"].keys():
        raise UserError(
            f"{root} has {min(single)} in only one of new and old; get the other image again or"
            " remove it"
        )
    return [
        Sample(image, {"gallery": time, "searches": gallery, **_only(images[gallery][name])})
        for time, gallery in TIMES.items()
        for name, image in images[time].items()
    ]


def _only(positive: str) -> dict[str, dict[str, list[str]]]:
    return {"positives": {"all": [positive]}, "junk": {"all": []}}


def places(root: Path) -> dict[str, str]:
    """Image → its place, which two images show."""
    return {sample.image: Path(sample.image).stem for sample in list_samples(root, "val")}


register_dataset(
    DatasetSpec(
        name="amstertime",
        kind="instance-retrieval",
        folder="AmsterTime",
        list_samples=list_samples,
        expected={"train": 0, "val": 2 * 1231},
        extra={"average_precision": "steps", "main_metric": "mAP_all"},
        units=places,
        about=(
            "AmsterTime, 1,231 places then and now: old/0000.jpg and new/0000.png"
            " (doi.org/10.4121/19580806)"
        ),
    )
)
