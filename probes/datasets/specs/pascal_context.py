"""PASCAL-Context (Mottaghi et al., CVPR 2014), the 59 most frequent classes, without or with
background, on VOC 2010 in MMSegmentation's layout.

``JPEGImages/NAME.jpg``, ``SegmentationClassContext/NAME.png`` (0 background, 1 to 59 the classes)
and ``ImageSets/SegmentationContext/{train,val}.txt``; MMSegmentation's
``tools/dataset_converters/pascal_context.py`` makes the label maps and lists of
``trainval_merged.json``.
"""

from functools import partial
from pathlib import Path

from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mmlab_classes, read_lines, require_file, require_folder
from probes.registry import register_dataset


def list_samples(root: Path, split: Split) -> list[Sample]:
    require_folder(root, "JPEGImages")
    require_folder(root, "SegmentationClassContext")
    names = read_lines(require_file(root, f"ImageSets/SegmentationContext/{split}.txt"))
    return [
        Sample(f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png") for name in names
    ]


for _classes, _class, _background in (
    (59, "PascalContextDataset59", "background ignored"),
    (60, "PascalContextDataset", "background is a class"),
):
    register_dataset(
        DatasetSpec(
            name=f"pascal-context-{_classes}",
            kind="segmentation",
            folder="VOCdevkit/VOC2010",
            list_samples=list_samples,
            expected={"train": 4998, "val": 5105},
            classes=partial(mmlab_classes, "mmseg.datasets", _class),
            label_offset=_classes - 60,
            about=(
                f"PASCAL-Context, {_classes} classes, {_background}: VOC 2010 with"
                " SegmentationClassContext/ (cs.stanford.edu/~roozbeh/pascal-context; mmseg's"
                " tools/dataset_converters/pascal_context.py)"
            ),
        )
    )
