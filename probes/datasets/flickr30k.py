"""Flickr30k, the Karpathy split: 29,000 train and 1,000 test images, 5 captions each.

``dataset_flickr30k.json`` (Karpathy's) and the images in one folder. ``val`` is the test split, which retrieval is
scored on.
"""

from functools import partial
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import karpathy
from probes.registry import register_dataset

IMAGES = ("images", "{name}-images", "{name}_images", "Images", "Flicker8k_Dataset")


def samples_of(name: str, root: Path, split: Split) -> list[Sample]:
    """Samples of Flickr8k or Flickr30k."""
    annotations = [f"{folder}dataset_{name}.json" for folder in ("", "annotations/", "karpathy/")]
    images = [folder.format(name=name) for folder in IMAGES]
    return karpathy(root, annotations, images, {"train": "train", "val": "test"}[split])


def declare(name: str, title: str, train: int) -> DatasetSpec:
    """Register Flickr8k or Flickr30k."""
    file = f"dataset_{name}.json"
    return register_dataset(
        DatasetSpec(
            name=name,
            kind="image-text",
            folder=name,
            list_samples=partial(samples_of, name),
            expected={"train": train, "val": 1000},
            annotations={"train": file, "val": file},
            extra={"captions_per_image": 5, "split": "Karpathy test"},
            about=f"{title} with five captions an image, Karpathy's json (cs.stanford.edu/people/karpathy/deepimagesent)",
        )
    )


ANNOTATIONS = declare("flickr30k", "Flickr30k", 29000).annotations
list_samples = partial(samples_of, "flickr30k")
