"""Labels as people would draw them: the exact ground truth of a part of the mini world's pairs."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from backbones.cliptex.labelling import LabelSettings, ManualLabels, make_labels
from backbones.cliptex.labels import MANIFEST
from backbones.cliptex.pairs import open_pairs
from benchmark.execution.exclusive import exclusive
from benchmark.execution.progress import reporter
from benchmark.mini.config import WorldConfig
from benchmark.mini.datasets import NAMES
from benchmark.mini.layout import VOC, dense_files
from benchmark.mini.render import draw_picture

SHARE = 0.1  # of the pairs, the first ones: their order has no meaning
FOLDERS = {  # task → where the official layouts have its ground truth
    "seg": f"{VOC}/SegmentationClass",
    "depth": "nyu/annotations/train",
    "normal": "nyu/normals/train",
}


def write_manual_labels(config: WorldConfig, pairs: str, out: Path) -> None:
    """Write the store ``out``, unless it exists; a unit of work.

    The scenes are rendered again, because the world keeps no ground truth of its pairs.
    """
    with exclusive(out), TemporaryDirectory() as folder:
        progress = reporter()
        if (out / MANIFEST).is_file():
            return
        count = round(SHARE * config.pairs)
        progress.start("drawing manual labels", count)
        for index in range(count):
            *_, target = draw_picture(Random(f"{config.seed}/pairs/{index}"), "home", config.size)
            for name, content in dense_files("train", f"{index:09d}", b"", target).items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            progress.advance()
        manual = [
            ManualLabels(task, Path(folder, files), NAMES if task == "seg" else ())
            for task, files in FOLDERS.items()
        ]
        make_labels(open_pairs(pairs), manual, out, LabelSettings(label_side=0), progress)
