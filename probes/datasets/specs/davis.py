"""DAVIS 2017 (Pont-Tuset et al. 2017): videos whose objects are outlined in every frame; 30 videos,
1,999 frames, are val.

``JPEGImages/480p/VIDEO/00000.jpg``, ``Annotations/480p/VIDEO/00000.png`` and the lists
``ImageSets/2017/{train,val}.txt``, as its archive unpacks.
"""

from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import read_lines, require_file, walk
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The frames of the videos of a split's list, in their order."""
    samples = []
    for video in read_lines(require_file(root, f"ImageSets/2017/{split}.txt")):
        frames, masks = f"JPEGImages/480p/{video}", f"Annotations/480p/{video}"
        present = {
            f"{folder}/{name}"
            for folder, suffix in ((frames, ".jpg"), (masks, ".png"))
            for name in walk(root, folder, (suffix,))
        }
        if wrong := [path for path in sorted(present) if not Path(path).stem.isdecimal()]:
            raise UserError(f"{root / wrong[0]} is no frame of DAVIS; frames are 00000, 00001 …")
        count = 1 + max((int(Path(path).stem) for path in present), default=-1)
        if count < 3:
            raise UserError(
                f"{root / frames} has {count} frames; the first and the last are not scored: get"
                " the video again"
            )
        pairs = [(f"{frames}/{i:05}.jpg", f"{masks}/{i:05}.png") for i in range(count)]
        if absent := [path for pair in pairs for path in pair if path not in present]:
            raise UserError(f"{root / absent[0]} is missing; get the video again")
        samples += [Sample(frame, mask, files=(mask,)) for frame, mask in pairs]
    return samples


register_dataset(
    DatasetSpec(
        name="davis",
        kind="video",
        folder="DAVIS",
        list_samples=list_samples,
        expected={"val": 1999},
        about="DAVIS 2017, 30 videos with masks of objects (davischallenge.org; `data get davis`)",
    )
)
