"""DINOv3's training of a linear segmentation head, and its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.performance import beside
from tests.performance.harness import Result, bench


@bench(size=beside.TOY, n=1)
def dinov3(size: beside.Size = beside.SIZE, n: int = 3) -> list[Result]:
    """mIoU of a linear head after a training on random crops, in windows."""
    sides = ours, theirs
    title = f"DINOv3's linear segmentation, {size.steps} batches of {size.batch}"
    return beside.compare_sides(title, "mIoU", "segmentation", sides, size, n, "dinov3")


def ours(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    return beside.our_probe(
        "ade20k/linear",
        "dinov3",
        "mIoU",
        data,
        size,
        size=size.side,
        crop=(size.side, size.side),
        slide=(size.side, 2 * size.side // 3),
        max_iters=size.steps,
        batch_size=size.batch,
    )


def theirs(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    import tempfile

    import numpy as np
    import torch
    from PIL import Image

    import backbones

    beside.import_from(source, "omegaconf")
    from dinov3.eval.segmentation import train
    from dinov3.eval.segmentation.config import SegmentationConfig
    from dinov3.eval.segmentation.models import BackboneLayersSet

    backbone = backbones.create(size.model, seed=0)

    def images(dataset_str: str, transforms: Any) -> Any:
        def pair(image: Image.Image, labels: Image.Image) -> Any:
            stored = Image.fromarray(np.asarray(labels) + np.uint8(1))  # 0 is ignored
            return transforms(image.convert("RGB"), stored)

        return beside.Dense(data, dataset_str.partition(":")[0], pair)

    class Model(torch.nn.Module):
        embed_dim = backbone.channels[-1]

        def get_intermediate_layers(self, images: torch.Tensor, **_: Any) -> list[torch.Tensor]:
            return [backbone(images)[-1]]

    class Alone(torch.nn.Module):
        """As DistributedDataParallel wraps a model."""

        def __init__(self, module: torch.nn.Module, device_ids: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.module(images)

    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: "cpu"
    torch.nn.parallel.DistributedDataParallel = Alone
    train.dist.barrier = lambda: None
    train.make_dataset = images
    load = train.make_data_loader
    # which needs loading processes
    train.make_data_loader = lambda **options: load(**options | {"persistent_workers": False})
    config = SegmentationConfig(bs=size.batch, num_workers=0)
    config.datasets.root, config.datasets.train, config.datasets.val = "", "train", "val"
    config.decoder_head.type, config.decoder_head.num_classes = "linear", 3
    config.decoder_head.backbone_out_layers = BackboneLayersSet.LAST
    config.scheduler.total_iter = config.eval.eval_interval = size.steps
    warmup = {"warmup_iters": max(1, round(size.steps * 1500 / 40_000)), "warmup_ratio": 1e-6}
    anneal = {"pct_start": 0, "anneal_strategy": "cos", "final_div_factor": float("inf")}
    momentum = {"use_beta1": False, "update_momentum": False}
    config.scheduler.constructor_kwargs = warmup | anneal | momentum
    config.optimizer.weight_decay, config.optimizer.gradient_clip = 1e-3, float("inf")
    crops, evaluated = config.transforms.train, config.transforms.eval
    crops.img_size = evaluated.img_size = size.side
    crops.random_img_size_ratio_range, crops.flip_prob = (0.5, 2.0), 0.5
    crops.crop_size = (size.side, size.side)
    config.transforms.mean = [255 * each for each in backbone.data.mean]
    config.transforms.std = [255 * each for each in backbone.data.std]
    config.eval.crop_size, config.eval.stride = size.side, 2 * size.side // 3

    def evaluate() -> float:
        with tempfile.TemporaryDirectory() as folder:
            config.output_dir = folder
            return train.train_segmentation(Model(), config)["mIoU"]

    return evaluate
