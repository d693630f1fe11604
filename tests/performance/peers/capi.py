"""CAPI's k-NN and logistic regression of patches; scikit-learn's takes the place of cuML's, and
nothing is compiled."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

CLASSIFIERS = {"knn": ("patch-knn", "k-NN"), "logreg": ("logreg", "logistic regression")}


@bench(size=TOY, n=1)
def capi(size: Size = SIZE, n: int = 3) -> list[Result]:
    """mIoU with the best candidate on a tenth of train."""
    source, rows = checkout("capi"), []
    for name, (probe, title) in CLASSIFIERS.items():
        sides = partial(ours, f"voc/{probe}"), partial(theirs, name)
        rows += compare_sides(f"CAPI's {title}", "mIoU", "segmentation", sides, size, n, source)
    return rows


def ours(task: str, data: Path, source: Path, size: Size) -> Evaluate:
    from tests.probes.tiny_dense import prepared

    options = {"size": size.side, "score_size": size.side}
    return our_probe(task, "capi", prepared(data, "segmentation"), size.model, "mIoU", **options)


def theirs(classifier: str, data: Path, source: Path, size: Size) -> Evaluate:
    import torch
    from PIL import Image

    import backbones
    from tests.protocols import sources

    import_from(source, "omegaconf", "jaxtyping")
    if sources.missing("einops"):
        from functorch.einops.rearrange import rearrange

        sys.modules["einops"] = SimpleNamespace(rearrange=rearrange)
    patches.enter_context(sources.capi())
    import eval_segmentation as code

    backbone = backbones.create(size.model, seed=0)

    class Images(torch.utils.data.Dataset):
        def __init__(self, split: str, transform: Any, target_transform: Any) -> None:
            self.files, self.transforms = dense_files(data, split), (transform, target_transform)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            pair = zip(self.transforms, self.files[index], strict=True)
            return tuple(transform(Image.open(path)) for transform, path in pair)

    class Model(torch.nn.Module):
        patch_size = backbone.strides[-1]

        def forward(self, images: torch.Tensor) -> tuple[None, None, torch.Tensor]:
            return None, None, backbone(images)[-1].permute(0, 2, 3, 1)

    code.make_dataset = lambda dataset_str_or_path, **options: Images(
        dataset_str_or_path, **options
    )
    options = {} if torch.cuda.is_available() else {"knn": {"device": "cpu"}}

    def evaluate() -> float:
        results = code.eval_model(
            Model(),
            train_dataset_name="train",
            test_dataset_name="val",
            classifiers=(classifier,),
            classifiers_kwargs=options,
            num_workers=0,
            resolution=size.side,
            ignore_labels=(255,),
        )
        return 100 * results[f"labels_{classifier}_mIoU"]

    return evaluate
