"""CAPI's k-NN and logistic regression of patches; scikit-learn's takes the place of cuML's, and
nothing is compiled."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.performance import beside
from tests.performance.harness import Result, bench

CLASSIFIERS = {"knn": ("patch-knn", "k-NN"), "logreg": ("logreg", "logistic regression")}


@bench(size=beside.TOY, n=1)
def capi(size: beside.Size = beside.SIZE, n: int = 3) -> list[Result]:
    """mIoU with the best candidate on a tenth of train."""
    rows = []
    for name, (probe, title) in CLASSIFIERS.items():
        sides = partial(ours, f"voc/{probe}"), partial(theirs, name)
        rows += beside.compare_sides(
            f"CAPI's {title}", "mIoU", "segmentation", sides, size, n, "capi"
        )
    return rows


def ours(task: str, data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    sides = {"size": size.side, "score_size": size.side}
    return beside.our_probe(task, "capi", "mIoU", data, size, **sides)


def theirs(classifier: str, data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    import torch

    import backbones
    from tests.protocols import sources

    beside.import_from(source, "omegaconf", "jaxtyping")
    if sources.missing("einops"):
        from functorch.einops.rearrange import rearrange

        sys.modules["einops"] = SimpleNamespace(rearrange=rearrange)
    beside.lasting.enter_context(sources.capi())
    import eval_segmentation as code

    backbone = backbones.create(size.model, seed=0)

    def images(dataset_str_or_path: str, transform: Any, target_transform: Any) -> Any:
        pair = lambda image, labels: (transform(image), target_transform(labels))
        return beside.Dense(data, dataset_str_or_path, pair)

    class Model(torch.nn.Module):
        patch_size = backbone.strides[-1]

        def forward(self, images: torch.Tensor) -> tuple[None, None, torch.Tensor]:
            return None, None, backbone(images)[-1].permute(0, 2, 3, 1)

    code.make_dataset = images
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
