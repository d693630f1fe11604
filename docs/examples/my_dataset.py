"""A dataset of your own: leaves, with masks of diseased spots. One declaration; nothing is
converted."""

from probes.datasets.base import DatasetSpec
from probes.datasets.layouts import mirrored

LEAVES = DatasetSpec(
    name="leaves",
    kind="segmentation",  # decides which probes it has
    folder="leaves",  # below --data-root; --data leaves=DIR places it elsewhere
    # images/train/a.jpg has its label map in masks/train/a.png; {part} is train or val
    list_samples=mirrored("images/{part}", "masks/{part}"),
    classes=("leaf", "spot"),  # what the values 0 and 1 in a mask stand for
    ignore_index=255,  # pixels with this value are neither trained on nor scored
    about="leaves with diseased spots: images/{train,val}, masks/{train,val} with 0, 1 and 255",
    module=__name__,  # configs import it
)
