"""clip-benchmark's zero-shot classification and linear probe; it is an installed package."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.performance import beside
from tests.performance.harness import Result, bench

CLIP = beside.Size(images=200, val=200, batch=64, model="open_clip/ViT-B-32")
EPOCHS = 10


@bench(size=replace(beside.TOY, model="open_clip/ViT-S-32"), n=1)
def clip_benchmark(size: beside.Size = CLIP, n: int = 3) -> list[Result]:
    """Top-1 by texts, and by a linear probe whose grid each chooses from on a tenth of train."""
    rows = []
    for title, sides in (
        ("zero-shot", (our_zero_shot, their_zero_shot)),
        ("linear probe", (our_linear, their_linear)),
    ):
        rows += beside.compare_sides(
            f"clip-benchmark's {title}", "top-1", "classification", sides, size, n
        )
    return rows


def our_zero_shot(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    batch = size.batch
    return beside.our_probe(
        "imagenet/zero-shot", "own", "top1", data, size, encode_batch_size=batch
    )


def our_linear(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    options = {"epochs": EPOCHS, "batch_size": size.batch, "encode_batch_size": size.batch}
    return beside.our_probe("imagenet/linear", "own", "top1", data, size, **options)


class Texts(list):
    """Of a tokenizer: backbones of this suite take texts."""

    def to(self, device: Any) -> Texts:
        return self


class Anywhere(str):
    """The name of a device that passes for a GPU's."""

    def __eq__(self, other: object) -> bool:
        return other in (str(self), "cuda")

    __hash__ = str.__hash__


def loaded(data: Path, size: beside.Size) -> tuple[Any, Any, str]:
    """A backbone, split → its images, and the device."""
    import torch
    from open_clip import image_transform

    import backbones

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = backbones.create(size.model, seed=0).to(device)
    images = backbone.data
    transform = image_transform(images.size, is_train=False, mean=images.mean, std=images.std)

    def loader(split: str, tenths: Collection[int] = range(10)) -> Any:
        images: Any = beside.Classified(data, split, transform)
        images.files = [each for i, each in enumerate(images.files) if i % 10 in tenths]
        return torch.utils.data.DataLoader(images, size.batch)

    return backbone, loader, device


def their_zero_shot(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    from clip_benchmark.metrics.zeroshot_classification import evaluate as zero_shot

    backbone, loader, device = loaded(data, size)

    def evaluate() -> float:
        images = loader("val")
        names = [f"class {kind}" for kind in images.dataset.classes]
        scores = zero_shot(backbone, images, Texts, names, [*beside.TEMPLATES], device, amp=False)
        return 100 * scores["acc1"]

    return evaluate


def their_linear(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    from clip_benchmark.metrics import linear_probe

    from tests.protocols import sources

    backbone, loader, device = loaded(data, size)
    if device == "cpu":
        device = Anywhere(device)
        beside.lasting.enter_context(sources.on_cpu())

    def evaluate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            scores = linear_probe.evaluate(
                backbone,
                loader("train", range(1, 10)),
                loader("val"),
                fewshot_k=-1,
                batch_size=size.batch,
                num_workers=0,
                lr=0.1,
                epochs=EPOCHS,
                model_id="bench",
                seed=0,
                feature_root=folder,
                device=device,
                val_dataloader=loader("train", [0]),
                amp=False,
            )
        return 100 * scores["lp_acc1"]

    return evaluate
