"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, 2048 × 1024, 19 classes.

``leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png`` and
``gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png``, which ``csCreateTrainIdLabelImgs`` of the
package cityscapesscripts makes of the annotations as they are downloaded.
"""

from functools import partial
from pathlib import Path

from cliptex_common.errors import UserError
from probes.datasets.base import DatasetSpec, Sample, Split
from probes.datasets.layouts import mmlab_classes, require_folder, walk
from probes.registry import register_dataset

IMAGE, LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


def list_samples(root: Path, split: Split) -> list[Sample]:
    images, labels = f"leftImg8bit/{split}", f"gtFine/{split}"
    names = [name[: -len(IMAGE)] for name in walk(root, images, (IMAGE.lower(),))]
    if not any(require_folder(root, labels).glob(f"*/*{LABELS}")):
        raise UserError(
            f"{root / labels} has no *{LABELS}; make them with csCreateTrainIdLabelImgs of the"
            " package cityscapesscripts"
        )
    return [Sample(f"{images}/{name}{IMAGE}", f"{labels}/{name}{LABELS}") for name in names]


register_dataset(
    DatasetSpec(
        name="cityscapes",
        kind="segmentation",
        folder="cityscapes",
        list_samples=list_samples,
        expected={"train": 2975, "val": 500},
        classes=partial(mmlab_classes, "mmseg.datasets", "CityscapesDataset"),
        about=(
            "Cityscapes streets, 19 classes: leftImg8bit/ and gtFine/ with labelTrainIds"
            " (cityscapes-dataset.com, login; own terms)"
        ),
    )
)
