"""Flickr30k and Flickr8k, the Karpathy splits: 29,000 or 6,000 train and 1,000 test images, 5
captions each.

``dataset_flickr30k.json`` or ``dataset_flickr8k.json`` (Karpathy's) and the images in one folder,
in any of their usual places. ``val`` is the test split, which retrieval is scored on; a sample's
target is the list of its raw captions.
"""

from functools import partial
from pathlib import Path

from cliptex_common.errors import UserError, report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_annotations, require_file
from probes.registry import register_dataset


def samples_of(name: str, root: Path, split: Split) -> list[Sample]:
    """Samples of Flickr8k or Flickr30k."""
    path = require_file(
        root, *(f"{folder}dataset_{name}.json" for folder in ("", "annotations/", "karpathy/"))
    )
    images = ("images", f"{name}-images", f"{name}_images", "Images", "Flicker8k_Dataset")
    folder_name = next((folder for folder in images if (Path(root) / folder).is_dir()), None)
    if folder_name is None:
        raise UserError(f"image folder {' or '.join(images)} is missing in {root}")
    content, part = read_annotations(path), {"train": "train", "val": "test"}[split]
    with report_malformed(f"{path} is not a Karpathy caption file"):
        return [
            Sample(
                f"{folder_name}/{entry['filename']}",
                [str(sentence["raw"]) for sentence in entry["sentences"]],
            )
            for entry in content["images"]
            if entry["split"] == part
        ]


FLICKR30K, FLICKR8K = (
    register_dataset(
        DatasetSpec(
            name=title.lower(),
            kind="image-text",
            folder=title.lower(),
            list_samples=partial(samples_of, title.lower()),
            expected={"train": train, "val": 1000},
            extra={"captions_per_image": 5, "split": "Karpathy test"},
            about=(
                f"{title} with five captions an image, Karpathy's json"
                " (cs.stanford.edu/people/karpathy/deepimagesent)"
            ),
        )
    )
    for title, train in (("Flickr30k", 29000), ("Flickr8k", 6000))
)
