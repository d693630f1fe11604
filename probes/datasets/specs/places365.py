"""Places365-Standard in its 'easy directory' form: ``train/<scene>/`` and ``val/<scene>/``, 365
scenes."""

from pathlib import Path

from probes.datasets.base import DatasetSpec
from probes.datasets.specs.imagefolder import folder_names, list_samples
from probes.registry import register_dataset


def classes(root: Path) -> tuple[str, ...]:
    return tuple(name.replace("_", " ").replace("-", " ") for name in folder_names(root))


register_dataset(
    DatasetSpec(
        name="places365",
        kind="classification",
        folder="places365",
        list_samples=list_samples,
        expected={"train": 1803460, "val": 36500},
        classes=classes,
        about=(
            "Places365-Standard, 365 scenes, 256 px (places365standard_easyformat.tar from"
            " places2.csail.mit.edu)"
        ),
    )
)
