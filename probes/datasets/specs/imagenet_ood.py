"""Images of no class of ImageNet, for out-of-distribution detection: any number of ``near`` sets
(SSB-hard, NINCO …) and ``far`` ones (iNaturalist, Textures, OpenImage-O …)::

    imagenet-ood/near/SET/…/*.jpg       a folder of images, nested or not
    imagenet-ood/far/SET.txt            or a list: a path from imagenet-ood on each line, perhaps
                                        followed by a number, as in OpenOOD's lists
"""

from __future__ import annotations

from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import IMAGE_SUFFIXES, read_lines, walk
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    """The images of all sets; the target is ``near/SET`` or ``far/SET``."""
    samples = []
    for distance in ("near", "far"):
        folder = root / distance
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = f"{distance}/{path.stem}"
            if path.is_dir():
                images = [f"{name}/{image}" for image in walk(root, name, IMAGE_SUFFIXES)]
            elif path.suffix == ".txt":
                images = [_path(line) for line in read_lines(path)]
                if absent := next((each for each in images if not (root / each).is_file()), None):
                    raise UserError(f"{path} names {absent!r}, which is not in {root}")
            else:
                continue
            samples += [Sample(image, name) for image in images]
    if not samples:
        raise UserError(f"{root} has no sets; expected near/SET/, far/SET/ or lists near/SET.txt")
    return samples


def _path(line: str) -> str:
    """The path of a line, without a number that follows it."""
    path, _, number = line.rpartition(" ")
    return path if path and number.lstrip("-").isdecimal() else line


register_dataset(
    DatasetSpec(
        name="imagenet-ood",
        kind="unknown-images",
        folder="imagenet-ood",
        list_samples=list_samples,
        trained_on="imagenet",
        about=(
            "images of no class of ImageNet: near/SET/, far/SET/, or lists of them near/SET.txt"
            " (OpenOOD: SSB-hard, NINCO; iNaturalist, Textures, OpenImage-O)"
        ),
    )
)
