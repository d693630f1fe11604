"""Open-Hummingbird's evaluation; without a GPU faiss searches on the CPU, as exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from tests.performance.beside import (
    SIZE,
    TOY,
    Evaluate,
    Size,
    checkout,
    compare_sides,
    dense_files,
    import_from,
    our_probe,
    patches,
)
from tests.performance.harness import Result, bench

PASSES, BATCH = 2, 16


@bench(size=TOY, n=1)
def hummingbird(size: Size = SIZE, n: int = 3) -> list[Result]:
    """mIoU after Hungarian matching, with a memory of half of the patches of two passes."""
    source, sides = checkout("hummingbird"), (ours, theirs)
    title = "Open-Hummingbird's evaluation"
    return compare_sides(title, "mIoU", "segmentation", sides, size, n, source)


def memory(size: Size, stride: int = 16) -> int:
    return PASSES * size.images * (size.side // stride) ** 2 // 2


def ours(data: Path, source: Path, size: Size) -> Evaluate:
    from tests.probes.tiny_dense import prepared

    return our_probe(
        "camvid/in-context",
        "hummingbird",
        prepared(data, "segmentation"),
        size.model,
        "mIoU_hungarian",
        size=size.side,
        score_size=size.side,
        memory=memory(size),
    )


def theirs(data: Path, source: Path, size: Size) -> Evaluate:
    import faiss
    import torch
    from PIL import Image

    import backbones
    from tests.protocols import sources

    import_from(source)
    patches.enter_context(sources.hummingbird())
    from hbird import hbird_eval, models
    from hbird.utils import transforms
    from hbird.utils.image_transformations import CombTransforms

    if not torch.cuda.is_available():
        faiss.get_num_gpus = lambda: 1
        faiss.StandardGpuResources = faiss.GpuIndexFlatConfig = mock.MagicMock
        faiss.GpuIndexFlatIP = lambda resources, width, config: faiss.IndexFlatIP(width)
    backbone = backbones.create(size.model, seed=0)
    grid, colours = size.side // backbone.strides[-1], backbone.data

    class Images(torch.utils.data.Dataset):
        def __init__(self, split: str) -> None:
            make = getattr(transforms, f"get_hbird_{split}_transforms")
            parts = make(size.side, img_mean=[*colours.mean], img_std=[*colours.std])
            self.files = dense_files(data, split)
            self.transform = CombTransforms(parts["img"], None, parts["shared"])

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            image, labels = map(Image.open, self.files[index])
            return self.transform(image.convert("RGB"), labels)

    def features(network: Any, images: torch.Tensor) -> Any:
        return network(images)[-1].flatten(2).mT, None

    def evaluate() -> float:
        train, val = (
            torch.utils.data.DataLoader(Images(split), BATCH) for split in ("train", "val")
        )
        evaluation = hbird_eval.HbirdEvaluation(
            models.FeatureExtractorSimple(backbone, features, grid, backbone.embed_dim),
            train,
            num_classes=3,
            n_neighbours=30,
            augmentation_epoch=PASSES,
            nn_method="faiss",
            memory_size=memory(size),
            dataset_size=size.images,
        )
        return 100 * float(evaluation.evaluate(val, grid))

    return evaluate
