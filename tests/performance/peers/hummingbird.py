"""Open-Hummingbird's evaluation; without a GPU faiss searches on the CPU, as exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from tests.performance import beside
from tests.performance.harness import Result, bench

PASSES, BATCH = 2, 16


@bench(size=beside.TOY, n=1)
def hummingbird(size: beside.Size = beside.SIZE, n: int = 3) -> list[Result]:
    """mIoU after Hungarian matching, with a memory of half of the patches of two passes."""
    title, sides = "Open-Hummingbird's evaluation", (ours, theirs)
    return beside.compare_sides(title, "mIoU", "segmentation", sides, size, n, "hummingbird")


def memory(size: beside.Size, stride: int = 16) -> int:
    return PASSES * size.images * (size.side // stride) ** 2 // 2


def ours(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    return beside.our_probe(
        "camvid/in-context",
        "hummingbird",
        "mIoU_hungarian",
        data,
        size,
        size=size.side,
        score_size=size.side,
        memory=memory(size),
    )


def theirs(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    import faiss
    import torch

    import backbones
    from tests.protocols import sources

    beside.import_from(source)
    beside.lasting.enter_context(sources.hummingbird())
    from hbird import hbird_eval, models
    from hbird.utils import transforms
    from hbird.utils.image_transformations import CombTransforms

    if not torch.cuda.is_available():
        faiss.get_num_gpus = lambda: 1
        faiss.StandardGpuResources = faiss.GpuIndexFlatConfig = mock.MagicMock
        faiss.GpuIndexFlatIP = lambda resources, width, config: faiss.IndexFlatIP(width)
    backbone = backbones.create(size.model, seed=0)
    grid, colours = size.side // backbone.strides[-1], backbone.data

    def loader(split: str) -> Any:
        make = getattr(transforms, f"get_hbird_{split}_transforms")
        parts = make(size.side, img_mean=[*colours.mean], img_std=[*colours.std])
        both = CombTransforms(parts["img"], None, parts["shared"])
        images = beside.Dense(data, split, lambda image, labels: both(image.convert("RGB"), labels))
        return torch.utils.data.DataLoader(images, BATCH)

    def features(network: Any, images: torch.Tensor) -> Any:
        return network(images)[-1].flatten(2).mT, None

    def evaluate() -> float:
        evaluation = hbird_eval.HbirdEvaluation(
            models.FeatureExtractorSimple(backbone, features, grid, backbone.embed_dim),
            loader("train"),
            num_classes=3,
            n_neighbours=30,
            augmentation_epoch=PASSES,
            nn_method="faiss",
            memory_size=memory(size),
            dataset_size=size.images,
        )
        return 100 * float(evaluation.evaluate(loader("val"), grid))

    return evaluate
