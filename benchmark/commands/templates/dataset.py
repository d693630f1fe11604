"""A dataset of your own, here images and label maps, which are read where they are. Try it:

python -m benchmark run --plugin leaves.py --backbone random --task leaves/linear \\
    --set max_iters=50 --set size=64 --data leaves=DIR
"""

from probes.datasets.base import DatasetSpec, mirrored
from probes.registry import register_dataset

register_dataset(
    DatasetSpec(
        name="leaves",
        # segmentation, depth, normals, detection, classification, multi-label, unknown-images,
        # image-text, triplets, association, correspondence, instance-retrieval, video,
        # warped-images, objects, object-views, scene-views or view-pose; decides what probes it has
        kind="segmentation",
        folder="leaves",  # below --data-root; --data leaves=DIR places it elsewhere
        # images/train/a.jpg has its label map in masks/train/a.png; {part} is train or val. For
        # another layout a function: (root, "train" or "val") → list of probes.datasets.base.Sample,
        # whose paths are text, relative to root: str(path.relative_to(root))
        list_samples=mirrored("images/{part}", "masks/{part}"),
        classes=("leaf", "spot"),  # what the values 0 and 1 in a mask stand for
        ignore_index=255,  # pixels with this value are neither trained on nor scored
        expected={},  # {"train": 9000, "val": 1000}: fewer samples then need --partial
        about="one line for `list datasets`: what it is, and where to get it",
    )
)
