"""ADE20K scene parsing (MIT Scene Parsing Benchmark): 150 classes; the stored 0 means unlabelled."""

from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mirrored
from probes.registry import register_dataset

# fmt: off
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand",
    "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge",
    "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove",
    "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver",
    "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet",
    "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
    "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier",
    "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on


def list_samples(root: Path, split: Split) -> list[Sample]:
    part = {"train": "training", "val": "validation"}[split]
    return mirrored(root, f"images/{part}", f"annotations/{part}")


register_dataset(
    DatasetSpec(
        name="ade20k",
        kind="segmentation",
        folder="ade/ADEChallengeData2016",
        list_samples=list_samples,
        expected={"train": 20210, "val": 2000},
        classes=CLASSES,
        ignore_index=255,
        label_offset=-1,
        about="ADE20K, 150 classes (ADEChallengeData2016.zip from data.csail.mit.edu/places/ADEchallenge)",
    )
)
