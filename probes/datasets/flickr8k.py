"""Flickr8k, 6,000 train and 1,000 test images, 5 captions each.

``dataset_flickr8k.json`` (Karpathy's) and the images in one folder. ``val`` is the test split, which retrieval is
scored on.
"""

from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import karpathy
from probes.registry import register_dataset

ANNOTATIONS = ("dataset_flickr8k.json", "annotations/dataset_flickr8k.json", "karpathy/dataset_flickr8k.json")
IMAGES = ("images", "flickr8k-images", "flickr8k_images", "Images", "Flicker8k_Dataset")


def list_samples(root: Path, split: Split) -> list[Sample]:
    return karpathy(root, ANNOTATIONS, IMAGES, {"train": "train", "val": "test"}[split])


register_dataset(
    DatasetSpec(
        name="flickr8k",
        kind="image-text",
        folder="flickr8k",
        list_samples=list_samples,
        expected={"train": 6000, "val": 1000},
        annotations={"train": ANNOTATIONS[0], "val": ANNOTATIONS[0]},
        extra={"captions_per_image": 5, "split": "Karpathy test"},
        about="Flickr8k with five captions an image, Karpathy's json (cs.stanford.edu/people/karpathy/deepimagesent)",
    )
)
