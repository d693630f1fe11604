"""VisBench's linear classification, retrieval and linear segmentation; each suite with its own
defaults, images at one size."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.performance import beside
from tests.performance.harness import Result, bench

SIZE = beside.Size(images=200, val=100, steps=40, model="efficientnet-lite0")
TOY = replace(beside.TOY, images=40, val=20, steps=20)


@bench(size=TOY, n=1)
def visbench(size: beside.Size = SIZE, n: int = 3) -> list[Result]:
    """Scores of heads on features of whole images, encoded or stored, and of patches."""
    dense = replace(size, images=size.images * 4 // 25, val=size.val * 4 // 25)
    rows = []
    for title, metric, kind, sides, images in (
        ("linear classification", "top-1", "classification", linear(), size),
        ("linear classification, features stored", "top-1", "classification", linear(True), size),
        ("retrieval, ours k-NN", "recall@1, top-1", "classification", (our_knn, retrieval), size),
        ("linear segmentation", "mIoU", "segmentation", (our_segmentation, segmentation), dense),
    ):
        title = f"VisBench's {title}"
        rows += beside.compare_sides(title, metric, kind, sides, images, n, "visbench")
    return rows


def linear(stored: bool = False) -> tuple[beside.Prepare, beside.Prepare]:
    return partial(our_linear, stored=stored), partial(classification, stored=stored)


def our_linear(data: Path, source: Path, size: beside.Size, stored: bool) -> beside.Evaluate:
    return beside.our_probe(
        "imagenet/linear", "own", "top1", data, size, keep_store=stored, size=size.side
    )


def our_knn(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    return beside.our_probe("imagenet/knn", "own", "top1", data, size, size=size.side)


def our_segmentation(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    options = {"size": size.side, "max_iters": size.steps, "batch_size": size.batch}
    # as theirs does: each image is encoded once, as one square, and the last map is read
    options |= {"fixed_crops": 1, "flip": 0, "cache": "fp16", "layers": "last"}
    return beside.our_probe("ade20k/linear", "own", "mIoU", data, size, **options)


def classification(data: Path, source: Path, size: beside.Size, stored: bool) -> beside.Evaluate:
    return evaluation(source, size, "classification", "top1", *by_class(data), stored=stored)


def retrieval(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    """Each image among all others."""
    return evaluation(source, size, "retrieval", "recall@1", by_class(data, together=True)[0])


def segmentation(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    beside.import_from(source)
    from visbench.data.dense import DenseFolderDataset, load_label_map

    train, val = (
        partial(
            DenseFolderDataset,
            data,
            image_dir=f"images/{split}",
            target_dir=f"truth/{split}",
            image_size=size.side,
            target_loader=load_label_map,
        )
        for split in ("train", "val")
    )
    options = {"num_classes": 3, "epochs": max(2, size.steps * size.batch // size.images)}
    options["batch_size"] = size.batch
    return evaluation(source, size, "semantic_segmentation", "miou", train, val, **options)


def by_class(data: Path, together: bool = False) -> list[Any]:
    """Functions that open train and val in folders of classes, or both as one."""
    opened = []
    for split in ("train", "val"):
        folder = data / "by-class" / ("all" if together else split)
        for path, kind in beside.class_files(data, split):
            (folder / f"{kind:02}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{kind:02}" / f"{split}-{path.name}")
        opened.append(partial(_open_folder, folder))
    return opened


def _open_folder(folder: Path) -> Any:
    from visbench.data.image_folder import ImageFolderDataset

    return ImageFolderDataset(folder)


def evaluation(
    source: Path,
    size: beside.Size,
    task: str,
    metric: str,
    *splits: Any,
    stored: bool = False,
    **options: Any,
) -> beside.Evaluate:
    """A task of theirs on our backbone.

    Args:
        splits: functions that open what is trained on, if anything is, and what is scored.
        stored: keep the features from one evaluation to the next.
    """
    import backbones
    from backbones.backbone import Preprocessing

    beside.import_from(source)
    from visbench import run
    from visbench.backbones.custom import CustomBackbone
    from visbench.cache import FeatureCache

    backbone = backbones.create(size.model, seed=0)
    data = replace(backbone.data, size=(size.side, size.side))

    def last_map(module: Any, images: Any) -> Any:
        (*_, patches) = module(images)
        return patches.flatten(2).mT, None, patches.shape[-2:]

    theirs = CustomBackbone(
        backbone, Preprocessing(data), image_size=size.side, feature_fn=last_map
    )
    folder = beside.lasting.enter_context(tempfile.TemporaryDirectory())

    def evaluate() -> float:
        if not stored:
            shutil.rmtree(folder)
        *train, val = [split() for split in splits]
        cache = FeatureCache(Path(folder))
        result = run(theirs, task, val, *train, cache=cache, **options)
        return 100 * result.metrics[metric]

    return evaluate
