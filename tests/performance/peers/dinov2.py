"""DINOv2's linear classification: 52 heads on one frozen pass; of theirs nothing is saved.

Theirs chooses the best head on val. Ours chooses on an image of each class of train, which it
encodes, too.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.performance import beside
from tests.performance.harness import Result, bench

SIZE = beside.Size(images=200, val=100, batch=16)
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@bench(size=beside.TOY, n=1)
def dinov2(size: beside.Size = SIZE, n: int = 3) -> list[Result]:
    """Top-1 of the best head after a training on random crops."""
    sides = ours, theirs
    title = (
        f"DINOv2's linear classification, {size.steps} batches of {size.batch}, and of ours"
        " held-out images of each class"
    )
    return beside.compare_sides(title, "top-1", "classification", sides, size, n, "dinov2")


def rates(size: beside.Size) -> tuple[float, ...]:
    """For a batch of 256; as they are then used, rounded, they name the heads of theirs."""
    return tuple(rate * 256 / size.batch for rate in RATES)


def ours(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    return beside.our_probe(
        "imagenet/linear",
        "dinov2",
        "top1",
        data,
        size,
        size=None,
        learning_rates=rates(size),
        epochs=1,
        epoch_length=size.steps,
        batch_size=size.batch,
        encode_batch_size=size.batch,
    )


def theirs(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    import numpy as np
    import torch

    import backbones
    from tests.protocols import sources

    beside.import_from(source, "omegaconf")
    beside.lasting.enter_context(sources.dinov2())
    from dinov2.data import transforms
    from dinov2.eval import linear

    backbone = backbones.create(size.model, seed=0)
    side = backbone.data.size[0]

    class Images(beside.Classified):
        def get_targets(self) -> np.ndarray:
            return np.array([kind for _, kind in self.files])

    class Model(torch.nn.Module):
        def get_intermediate_layers(self, images: Any, n: int, return_class_token: bool) -> Any:
            return [(patches, token) for token, patches in backbone.encode_tokens(images, n)]

    def load_alone(sampler_type: Any, **options: Any) -> Any:
        """In this process, without a group of processes."""
        if sampler_type == linear.SamplerType.DISTRIBUTED:
            sampler_type = None
        return load(**options | {"persistent_workers": False}, sampler_type=sampler_type)

    for name in ("make_classification_train_transform", "make_classification_eval_transform"):
        setattr(linear, name, partial(getattr(transforms, name), crop_size=side))
    load = linear.make_data_loader
    linear.make_dataset = lambda dataset_str, transform: Images(data, dataset_str, transform)
    linear.make_data_loader = load_alone
    linear.Checkpointer = linear.PeriodicCheckpointer = mock.MagicMock()
    linear.Checkpointer.return_value.resume_or_load.return_value = {}
    if not torch.cuda.is_available():
        beside.lasting.enter_context(sources.on_cpu())

    def evaluate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            results = linear.run_eval_linear(
                model=Model(),
                output_dir=folder,
                train_dataset_str="train",
                val_dataset_str="val",
                batch_size=size.batch,
                epochs=1,
                epoch_length=size.steps,
                num_workers=0,
                save_checkpoint_frequency=20,
                eval_period_iterations=size.steps,
                learning_rates=rates(size),
                autocast_dtype=torch.float32,
            )
        return results["val_accuracy"]

    return evaluate
