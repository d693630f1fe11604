"""DINOv3's linear probe of ADE20K, by its code and by this suite."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from cliptex_common.images import read_labels
from cliptex_common.metrics import class_areas, confusion
from probes.dense.segmentation import segmentation_scores
from tests.protocols import dense, segmented
from tests.protocols.dense import (
    CHANNELS,
    CLASSES,
    IMAGES,
    STEPS,
    UNEVEN,
    labels,
    photograph,
    random,
    seeded,
    summary,
)
from tests.protocols.dinov3_config import (
    HEAD_PRECISION,
    MAPS,
    adamw,
    loaded,
    scheduler_by,
    source_settings,
)

TASK = "ade20k/linear"
LABELS = [labels(IMAGES, 24, 24, seed=40 + step) for step in range(STEPS)]
STORED = [0, 1, 2, 150, 255]
SCORED = [20, 21, 22, 23]  # pictures, lying and standing
SIZES = [(30, 40), (40, 30), (25, 70), (10, 50)]


def source(checkout: Path) -> dict[str, Any]:
    from dinov3.eval.segmentation import inference, loss, metrics, schedulers, train, transforms
    from dinov3.eval.segmentation.config import SegmentationConfig
    from dinov3.eval.segmentation.models import _get_backbone_out_indices
    from dinov3.eval.segmentation.models.heads.linear_head import LinearHead
    from torchvision.transforms import InterpolationMode

    config = loaded(
        checkout, SegmentationConfig, "segmentation/configs/config-ade20k-linear-training.yaml"
    )
    cut = config.transforms.train

    scheduled = partial(scheduler_by, schedulers, config)
    optimizer = adamw(config, [torch.zeros(1, requires_grad=True)])
    scheduler, count = scheduled(optimizer), iter(range(config.scheduler.total_iter))
    curves = dense.followed(
        optimizer,
        config.scheduler.total_iter,
        lambda: scheduler.step() if next(count) > 0 else None,
    )
    head = LinearHead([CHANNELS], CLASSES, dropout=config.decoder_head.dropout)
    torch.manual_seed(0)
    initial = dense.spread(LinearHead([256], 256).conv)[::2]
    dense.fill(dense.by_shape(head))
    output = head.eval()([MAPS[0]])
    optimizer = adamw(config, head.parameters())
    scheduler = scheduled(optimizer, total_iter=20, warmup_iters=4)
    model = Module(head.train())
    criterion = loss.MultiSegmentationLoss(config.train.diceloss_weight, config.train.celoss_weight)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        batch = MAPS[step], (None, LABELS[step][:, None])
        value = train.train_step(
            *(model, batch, "cpu", None, optimizer, float(config.optimizer.gradient_clip)),
            *(scheduler, criterion, None, step),
        )
        losses.append(value.item())
    distortion, coloured = transforms.PhotoMetricDistortion(), []
    for _ in seeded():
        image = torch.from_numpy(photograph(8, 9)).permute(2, 0, 1)
        coloured.append(summary(distortion(image, None)[0].permute(1, 2, 0), 20))
    crop, crops = transforms.RandomCropWithLabel((8, 12)), []
    for _ in seeded():
        image = torch.from_numpy(photograph(20, 24)).permute(2, 0, 1)
        cropped_image, target = crop(image, torch.from_numpy(UNEVEN)[None])
        crops.append([summary(cropped_image.permute(1, 2, 0), 4), int(target.sum())])
    resized = {}
    resize = transforms.CustomResize(
        16, InterpolationMode.BILINEAR, InterpolationMode.NEAREST, cut.random_img_size_ratio_range
    )
    for seed in seeded(4):
        picture, target = resize(
            Image.fromarray(photograph(20, 24)), torch.from_numpy(UNEVEN)[None]
        )
        resized[seed] = np.asarray(picture), target[0].numpy()
    test_resize = transforms.CustomResize(
        *(config.transforms.eval.img_size, InterpolationMode.BILINEAR, InterpolationMode.NEAREST),
        inference_mode=config.eval.mode,
    )
    sizes = [test_resize(Image.new("RGB", size), None)[0].size for size in SIZES]
    pad = transforms.PadTensor(pad_shape=(4, 4))
    padded, target = pad(torch.ones(3, 2, 2), torch.ones(1, 2, 2))
    areas = [
        metrics.calculate_intersect_and_union(
            *(prediction[None], target[None], CLASSES),
            reduce_zero_label=config.eval.reduce_zero_label,
        )
        for prediction, target in predictions()
    ]
    scores = metrics.calculate_segmentation_metrics(areas, ["mIoU", "dice", "fscore"])
    averager = dense.Averager()
    windows = inference.slide_inference(
        random(1, 3, 512, 683, seed=8),
        SimpleNamespace(predict=lambda crop, rescale_to: averager(crop)),
        n_output_channels=CLASSES,
        crop_size=(config.eval.crop_size,) * 2,
        stride=(config.eval.stride,) * 2,
    )
    blocks = _get_backbone_out_indices(
        SimpleNamespace(n_blocks=12), config.decoder_head.backbone_out_layers
    )
    return {
        **curves,
        "settings": {
            **source_settings(config),
            "crop": list(cut.crop_size),
            "flip": cut.flip_prob,
        },
        "layers": {"blocks": blocks, "class token": config.decoder_head.use_cls_token},
        "initial weights": initial,
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(dense.by_shape(head)),
        "colours": coloured,
        "crops": crops,
        "resized images": [[list(image.shape), summary(image, 8)] for image, _ in resized.values()],
        "resized labels": [target.tolist() for _, target in resized.values()],
        "test sizes": sizes,
        "normalised black": transforms.NormalizeImage(
            config.transforms.mean, config.transforms.std
        )(torch.zeros(3, 1, 1), None)[0].flatten(),
        "padding": {"image": padded[0, 3, 3].item(), "label": target[0, 3, 3].item()},
        "labels": metrics.preprocess_nonzero_labels(torch.tensor(STORED)),
        "scores": [100 * scores[name].item() for name in ("mIoU", "acc", "aAcc")],
        "windows": summary(windows),
        "validations": config.scheduler.total_iter // config.eval.eval_interval,
        "head precision": config.model_dtype.value,
        "from image to score": source_scores(config),
        **source_order(),
    }


def source_scores(config: Any) -> list[float]:
    """mIoU, mAcc and aAcc of the pictures of ``segmented`` by the source's evaluation."""
    from dinov3.eval.segmentation import eval as evaluation
    from dinov3.eval.segmentation.models import FeatureDecoder
    from dinov3.eval.segmentation.models.heads.linear_head import LinearHead
    from dinov3.eval.segmentation.transforms import make_segmentation_eval_transforms

    head = LinearHead([6], len(segmented.CLASSES))
    dense.fill(dense.by_shape(head), 0.5)
    backbone = nn.Module()
    backbone.forward = lambda images: [segmented.features(images)]
    prepare = make_segmentation_eval_transforms(
        img_size=config.transforms.eval.img_size,
        inference_mode=config.eval.mode,
        mean=config.transforms.mean,
        std=config.transforms.std,
    )
    batches = []
    for number in SCORED:
        images, target = prepare(*segmented.picture(number, 0))
        batches.append(([each[None] for each in images], (None, target[None])))
    scores = evaluation.evaluate_segmentation_model(
        Module(FeatureDecoder(nn.ModuleList([backbone, head]), nullcontext)),
        *(batches, "cpu", config.eval.crop_size, config.eval.stride, "linear"),
        *(len(segmented.CLASSES), torch.float32),
    )
    return [scores[name] for name in ("mIoU", "acc", "aAcc")]


def source_order() -> dict[str, Any]:
    """The order of seven images in batches of two."""
    from dinov3.data import SamplerType, make_data_loader
    from dinov3.eval.segmentation.train import InfiniteDataloader

    of_one_process = {"is_available": lambda: True, "get_world_size": lambda: 1}
    with mock.patch.multiple(torch.distributed, **of_one_process, get_rank=lambda: 0):
        loader = make_data_loader(
            dataset=list(range(7)),
            batch_size=2,
            num_workers=0,
            sampler_type=SamplerType.DISTRIBUTED,
        )
    endless, order = InfiniteDataloader(loader), list[int]()
    for _ in range(3):
        batches = [next(endless) for _ in range(len(loader))]
        order += loader.sampler  # as it was at the first batch
    return {
        "order": dense.order_of_passes(order, 7),
        "images that a pass leaves out": 7 - sum(map(len, batches)),
    }


def suite() -> dict[str, Any]:
    config, settings = (
        dense.preset_config("dinov3", TASK),
        dense.preset_settings("dinov3", TASK),
    )
    head = dense.head(config, num_classes=CLASSES)
    output = head.eval()((MAPS[0],))
    packed = [dense.samples("gt_sem_seg", targets) for targets in LABELS]
    short = dense.preset_settings("dinov3", TASK, **dense.SHORT)
    losses = dense.trained(head, short, [(maps,) for maps in MAPS], packed)
    colours = dense.part_of(config, "train", "RgbDistortion")
    coloured = [summary(dense.transform(colours, photograph(8, 9))["img"], 20) for _ in seeded()]
    crop, crops = dense.part_of(config, "train", "RandomCrop") | {"crop_size": (8, 12)}, []
    resize, resized = dense.part_of(config, "train", "RandomResize") | {"scale": (64, 16)}, []
    for _ in seeded():
        results = dense.transform(crop, photograph(20, 24), UNEVEN)
        crops.append([summary(results["img"], 4), int(results["gt_seg_map"].sum())])
    for _ in seeded(4):
        results = dense.transform(resize, photograph(20, 24), UNEVEN)
        resized.append((results["img"], results["gt_seg_map"]))
    test_resize = dense.part_of(config, "val", "PillowResize")
    images = [np.zeros((height, width, 3), np.uint8) for width, height in SIZES]
    shapes = [dense.transform(test_resize, image)["img"].shape for image in images]
    areas = [
        class_areas(confusion(prediction, stored_labels(target), CLASSES, 255))
        for prediction, target in predictions()
    ]
    totals = {name: np.stack([each[name] for each in areas]) for name in areas[0]}
    scores, _ = segmentation_scores(totals)
    return {
        **dense.curves(settings),
        "settings": dense.plain_settings(settings),
        "layers": dense.read_layers(config),
        "initial weights": dense.initial_weights(config, num_classes=256)[::2],
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(dense.by_shape(head)),
        "colours": coloured,
        "crops": crops,
        "resized images": [[list(image.shape), summary(image, 8)] for image, _ in resized],
        "resized labels": [target.tolist() for _, target in resized],
        "test sizes": [(width, height) for height, width, _ in shapes],
        "normalised black": dense.black(config),
        "padding": dense.padding(config),
        "labels": stored_labels(torch.tensor(STORED), 150),
        "scores": [scores[name] for name in ("mIoU", "mAcc", "aAcc")],
        "windows": summary(dense.slid(config, random(1, 3, 512, 683, seed=8))),
        "validations": 1,
        "head precision": HEAD_PRECISION,
        "from image to score": suite_scores(),
        "order": dense.order_of_passes(dense.order(settings), 7),
        "images that a pass leaves out": 0,
    }


def suite_scores() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        data = segmented.write(Path(folder), "golden-void-0", [0], SCORED)
        scores = dense.scored_images("dinov3", TASK, data)
    return [scores[name] for name in ("mIoU", "mAcc", "aAcc")]


class Module(nn.Module):
    """As DistributedDataParallel wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, maps: torch.Tensor) -> Any:
        return self.module([maps])


def predictions() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions and stored labels (1 is the first class) of images; class 4 is nowhere."""
    pairs = []
    for seed in range(3):
        predicted = labels(6, 7, classes=CLASSES - 1, ignored=0, seed=80 + seed)
        stored = labels(6, 7, classes=CLASSES, ignored=255, seed=90 + seed)
        pairs.append((predicted, stored))
    return pairs


def stored_labels(stored: torch.Tensor, classes: int = CLASSES) -> torch.Tensor:
    """Stored labels of ADE20K as the suite reads them."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(np.atleast_2d(stored.numpy()).astype(np.uint8)).save(file.name)
        read = read_labels(file.name, -1, 255, classes).astype(np.int64)
    return torch.from_numpy(read.reshape(stored.shape))
