"""ImageNet-1k (ILSVRC 2012): ``train/<wnid>/``, ``val/<wnid>/``, or a flat ``val/`` with
``meta/val.txt``."""

from pathlib import Path

from cliptex_common.errors import report_malformed
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import image_folder, read_lines, require_file, require_folder
from probes.registry import register_dataset


def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids, sorted: the usual class order."""
    from timm.data import ImageNetInfo  # timm is slow to import: only when ImageNet is used

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def classes(root: Path) -> tuple[str, ...]:
    """Readable names in the order of ``wnids()``, as cleaned up for prompts by the authors of CLIP
    (from open_clip)."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def list_samples(root: Path, split: Split) -> list[Sample]:
    """Of folders, or of the flat layout: lines ``ILSVRC2012_val_00000001.JPEG 65`` in
    ``meta/<split>.txt``."""
    if any(entry.is_dir() for entry in require_folder(root, split).iterdir()):
        return image_folder(root, split, wnids())
    path = require_file(root, f"meta/{split}.txt")
    with report_malformed(f"{path} needs lines of a file and its class, 0 to 999"):
        pairs = [line.rsplit(" ", 1) for line in read_lines(path)]
        return [Sample(f"{split}/{name}", int(label)) for name, label in pairs]


register_dataset(
    DatasetSpec(
        name="imagenet",
        kind="classification",
        folder="imagenet",
        list_samples=list_samples,
        expected={"train": 1281167, "val": 50000},
        classes=classes,
        about=(
            "ImageNet-1k, ILSVRC 2012: train/<wnid>, val/<wnid> or flat val with meta/val.txt"
            " (image-net.org)"
        ),
    )
)
