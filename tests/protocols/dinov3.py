"""DINOv3's linear probes of ADE20K and NYU Depth v2, by its code and by this suite.

The source needs omegaconf, pandas and torchmetrics beside this suite's packages.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from probes.dense.config import round_up
from probes.dense.ground_truth import read_labels
from probes.dense.metrics import class_areas, cropped, depth_scores, segmentation_scores
from probes.dense.objectives import DepthBins
from probes.runner.member import AUTOCAST
from tests.protocols import dense
from tests.protocols.dense import (
    CHANNELS,
    CLASSES,
    IMAGES,
    STEPS,
    UNEVEN,
    depths,
    labels,
    photograph,
    random,
    seeded,
    summary,
)

TOLERANCE = {"initial weights": 2e-4}  # of random values
ADE20K, NYU = "ade20k/linear", "nyu-depth/linear"
MAPS = [random(IMAGES, CHANNELS, 6, 6, seed=20 + step) for step in range(STEPS)]
LABELS = [labels(IMAGES, 24, 24, seed=40 + step) for step in range(STEPS)]
DEPTHS = [depths(IMAGES, 1, 24, 24, seed=60 + step) for step in range(STEPS)]
HEAD_PRECISION = "bfloat16" if "cuda" in AUTOCAST else "float32"  # on a GPU
STORED = [0, 1, 2, 150, 255]
SIZES = [(30, 40), (40, 30), (25, 70), (10, 50)]


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    return {
        "segmentation/linear": source_segmentation(checkout),
        "depth/linear": source_depth(checkout),
    }


def suite() -> dict[str, dict[str, Any]]:
    return {"segmentation/linear": suite_segmentation(), "depth/linear": suite_depth()}


def loaded(checkout: Path, structure: type, name: str) -> Any:
    """A config of the source as its launchers read it."""
    from omegaconf import OmegaConf

    file = OmegaConf.load(checkout / "dinov3/eval" / name)
    file.datasets.root = ""  # a user gives it
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(structure), file))


def adamw(config: Any, parameters: Any) -> torch.optim.Optimizer:
    options = config.optimizer
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=betas, weight_decay=options.weight_decay
    )


def source_settings(config: Any) -> dict[str, Any]:
    clip = float(config.optimizer.gradient_clip)
    return {
        "optimizer": "adamw",
        "rate": config.optimizer.lr,
        "beta 2": config.optimizer.beta2,
        "decay": config.optimizer.weight_decay,
        "clip": "never" if np.isinf(clip) else clip,
        "batch": config.bs * config.n_gpus,
        "iterations": config.scheduler.total_iter,
    }


# ---------------------------------------------------------------- segmentation


def source_segmentation(checkout: Path) -> dict[str, Any]:
    from dinov3.eval.segmentation import inference, loss, metrics, schedulers, train, transforms
    from dinov3.eval.segmentation.config import SegmentationConfig
    from dinov3.eval.segmentation.models import _get_backbone_out_indices
    from dinov3.eval.segmentation.models.heads.linear_head import LinearHead
    from torchvision.transforms import InterpolationMode

    config = loaded(
        checkout, SegmentationConfig, "segmentation/configs/config-ade20k-linear-training.yaml"
    )
    cut = config.transforms.train

    def scheduled(optimizer: Any, **changes: int) -> Any:
        options = {**config.scheduler.constructor_kwargs, **changes}
        total = options.pop("total_iter", config.scheduler.total_iter)
        return schedulers.build_scheduler(
            config.scheduler.type, optimizer, config.optimizer.lr, total, options
        )

    optimizer = adamw(config, [torch.zeros(1, requires_grad=True)])
    scheduler, count = scheduled(optimizer), iter(range(config.scheduler.total_iter))
    curves = dense.followed(
        optimizer,
        config.scheduler.total_iter,
        lambda: scheduler.step() if next(count) > 0 else None,
    )
    head = LinearHead([CHANNELS], CLASSES, dropout=config.decoder_head.dropout)
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
    whole = transforms.CustomResize(
        *(config.transforms.eval.img_size, InterpolationMode.BILINEAR, InterpolationMode.NEAREST),
        inference_mode=config.eval.mode,
    )
    sizes = [whole(Image.new("RGB", size), None)[0].size for size in SIZES]
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
        random(1, 3, 560, 640, seed=8),
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
        "padding": {"image": padded[0, 3, 3].item(), "label": target[0, 3, 3].item()},
        "labels": metrics.preprocess_nonzero_labels(torch.tensor(STORED)),
        "scores": [100 * scores[name].item() for name in ("mIoU", "acc", "aAcc")],
        "windows": summary(windows),
        "validations": config.scheduler.total_iter // config.eval.eval_interval,
        "head precision": config.model_dtype.value,
    }


def suite_segmentation() -> dict[str, Any]:
    config, settings = (
        dense.preset_config("dinov3", ADE20K),
        dense.preset_settings("dinov3", ADE20K),
    )
    head = dense.head(config, num_classes=CLASSES)
    output = head.eval()((MAPS[0],))
    packed = [dense.samples("gt_sem_seg", targets) for targets in LABELS]
    short = dense.preset_settings("dinov3", ADE20K, **dense.SHORT)
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
    whole = dense.part_of(config, "val", "Resize")
    images = [np.zeros((height, width, 3), np.uint8) for width, height in SIZES]
    shapes = [dense.transform(whole, image)["img"].shape for image in images]
    areas = [
        class_areas(prediction, stored_labels(target), CLASSES, 255)
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
        "padding": dense.padding(config),
        "labels": stored_labels(torch.tensor(STORED), 150),
        "scores": [scores[name] for name in ("mIoU", "mAcc", "aAcc")],
        "windows": summary(dense.slid(config, random(1, 3, 560, 640, seed=8))),
        "validations": 1,
        "head precision": HEAD_PRECISION,
    }


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
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(np.atleast_2d(stored.numpy()).astype(np.uint8)).save(file.name)
        read = read_labels(file.name, -1, 255, classes).astype(np.int64)
    return torch.from_numpy(read.reshape(stored.shape))


# ---------------------------------------------------------------- depth


def source_depth(checkout: Path) -> dict[str, Any]:
    from dinov3.eval.depth import loss, metrics, models, schedulers, transforms
    from dinov3.eval.depth.config import DepthConfig, make_depth_train_transforms_from_config
    from dinov3.eval.depth.datasets.datasets_utils import _EvalCropType, make_valid_mask
    from dinov3.eval.depth.models.encoder import CenterPadding, _get_backbone_out_indices
    from dinov3.eval.depth.models.linear_head import LinearHead
    from dinov3.eval.setup import ModelConfig, load_model_and_context

    config = loaded(checkout, DepthConfig, "depth/configs/config-nyu.yaml")
    model = SimpleNamespace(cuda=lambda: None, eval=lambda: None)
    with patch("torch.hub.load", return_value=model):
        _, backbone = load_model_and_context(ModelConfig(dino_hub="dinov3_vits16"), "")
    decoder, cut = config.decoder_head, config.transforms.train

    def scheduled(optimizer: Any, **changes: int) -> Any:
        options = {**config.scheduler.constructor_kwargs, **changes}
        total = options.pop("total_iter", config.scheduler.total_iter)
        return schedulers.build_scheduler(
            config.scheduler.type, optimizer, config.optimizer.lr, total, options
        )

    optimizer = adamw(config, [torch.zeros(1, requires_grad=True)])
    curves = dense.followed(optimizer, config.scheduler.total_iter, scheduled(optimizer).step)
    options = {"use_batchnorm": decoder.use_batchnorm, "use_cls_token": decoder.use_cls_token}
    initial = dense.spread(LinearHead([256], 256, **options).conv_depth)[::2]
    head = LinearHead([CHANNELS], decoder.n_output_channels, **options)
    dense.fill(dense.by_shape(head))
    to_depth = models.FeaturesToDepth(
        *(decoder.min_depth, decoder.max_depth, decoder.bins_strategy, decoder.norm_strategy)
    )
    output = to_depth(head.eval()([(MAPS[0], None)]))
    optimizer = adamw(config, head.parameters())
    scheduler, losses = scheduled(optimizer, total_iter=20, warmup_iters=4), []
    devices = [loss.MultiLoss(config.losses) for _ in range(IMAGES // config.bs)]
    head.train()
    for maps, targets in zip(MAPS, DEPTHS, strict=True):
        predicted = to_depth(head([(maps, None)]))
        predicted = F.interpolate(predicted, targets.shape[2:], mode="bilinear")
        groups = zip(devices, predicted.split(config.bs), targets.split(config.bs), strict=True)
        value = sum(
            device(part, target, make_valid_mask(target)) for device, part, target in groups
        ) / len(devices)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), config.optimizer.gradient_clip)
        optimizer.step()
        scheduler.step()
        losses.append(value.item())
    later, guess = loss.MultiLoss(config.losses), DEPTHS[0].flip(0).clamp(min=0.5)
    for _ in range(101):  # the variance comes in after 100 iterations
        last = later(guess, DEPTHS[0], make_valid_mask(DEPTHS[0]))
    prepared = make_depth_train_transforms_from_config(config).transforms
    named = {type(each).__name__: each for each in prepared}
    coloured = []
    for _ in seeded():
        image = torch.from_numpy(photograph(8, 9)).permute(2, 0, 1).float() / 255
        coloured.append(summary(255 * named["ColorAugV2"](image, None)[0].permute(1, 2, 0), 20))
    area = named["FixedCrop"](torch.from_numpy(PLACES), None)[0]
    turned = named["MaybeApply"]
    pair = random(2, 1, 4, 6, seed=12)
    predicted, target = 0.5 + 9 * torch.rand(1, 1, *FRAME, generator=generator()), frame_depths()
    valid = (target > config.eval.min_depth) & (target < config.eval.max_depth)
    masked = torch.where(valid, target, config.eval.ignored_value)
    mask = make_valid_mask(masked, _EvalCropType(config.transforms.eval.eval_mask))
    scores = metrics.calculate_depth_metrics(masked, predicted, mask)
    return {
        **curves,
        "settings": {
            **source_settings(config),
            "crop": list(cut.random_crop),
            "flip": named["RandomHorizontalFlip"].p,
        },
        "layers": {
            "blocks": _get_backbone_out_indices(
                SimpleNamespace(n_blocks=12), models.BackboneLayersSet(decoder.backbone_out_layers)
            ),
            "class token": decoder.use_cls_token,
        },
        "initial weights": initial,
        "head output": summary(output),
        "losses": losses,
        "loss after warm-up": last.item(),
        "weights after ten steps": dense.weights(dense.by_shape(head)),
        "trained pixels": make_valid_mask(torch.tensor(RANGE)[None, None, None])[0, 0, 0].tolist(),
        "colours": coloured,
        "area": [list(area.shape), area[:, 0, 0].tolist(), area[:, -1, -1].tolist()],
        "rotation": [turned._transform.transforms[0].degrees[1], turned._threshold],
        "mirror images": transforms.LeftRightFlipAug(flip=config.eval.use_tta).inverse(pair),
        "scores": [
            *(getattr(scores, name).item() for name in ("rmse", "abs_rel", "log_10")),
            *(100 * getattr(scores, name).item() for name in ("a1", "a2", "a3")),
        ],
        "padding to patches of 14": [CenterPadding(14)._get_pad(side) for side in FRAME],
        "head precision": str(config.model_dtype or backbone["autocast_dtype"])[6:],
    }


def suite_depth() -> dict[str, Any]:
    config, settings = dense.preset_config("dinov3", NYU), dense.preset_settings("dinov3", NYU)
    head = dense.head(config)
    output = head.eval()((MAPS[0],))
    packed = [dense.samples("gt_depth_map", targets) for targets in DEPTHS]
    short = dense.preset_settings("dinov3", NYU, **dense.SHORT)
    losses = dense.trained(head, short, [(maps,) for maps in MAPS], packed)
    objective: DepthBins = head.loss_decode
    objective.iterations.fill_(100)
    last = objective(DEPTHS[0].flip(0).clamp(min=0.5), DEPTHS[0])
    colours = dense.part_of(config, "train", "GammaDistortion")
    area = dense.transform(dense.part_of(config, "train", "ReadArea"), PLACES.transpose(1, 2, 0))
    area = area["img"].transpose(2, 0, 1)
    rotation = dense.part_of(config, "train", "RandomRotate")
    pair, target = random(2, 1, 4, 6, seed=12), frame_depths()
    predicted = 0.5 + 9 * torch.rand(1, 1, *FRAME, generator=generator())
    evaluator = config.val_evaluator
    maps = [cropped(each[0, 0], evaluator.crop) for each in (predicted, target)]
    valid = (maps[1] > evaluator.min_depth) & (maps[1] < evaluator.max_depth)
    scores = depth_scores(*maps, valid)
    pads = [round_up(side, 14) - side for side in FRAME]
    return {
        **dense.curves(settings),
        "settings": dense.plain_settings(settings),
        "layers": dense.read_layers(config),
        "initial weights": dense.initial_weights(config)[::2],
        "head output": summary(output),
        "losses": losses,
        "loss after warm-up": last.item(),
        "weights after ten steps": dense.weights(dense.by_shape(head)),
        "trained pixels": objective.valid(torch.tensor(RANGE)).tolist(),
        "colours": [
            summary(dense.transform(colours, photograph(8, 9))["img"], 20) for _ in seeded()
        ],
        "area": [list(area.shape), area[:, 0, 0].tolist(), area[:, -1, -1].tolist()],
        "rotation": [rotation["degree"], rotation["prob"]],
        "mirror images": (pair[:1] + objective.mirror(pair[1:])) / 2
        if config.model.test_cfg.flip
        else pair,
        "scores": [scores[name].item() for name in ("rmse", "abs_rel", "log10", *DELTAS)],
        "padding to patches of 14": [(0, pad) for pad in pads],
        "head precision": HEAD_PRECISION,
    }


FRAME = (480, 640)
DELTAS = ("delta1", "delta2", "delta3")
RANGE = [0.0, 0.0005, 5.0, 12.0]  # metres
# the row and the column of each pixel of a frame
PLACES = np.stack([*np.indices(FRAME), np.zeros(FRAME, int)]).astype(np.uint16)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def frame_depths() -> torch.Tensor:
    return depths(1, 1, *FRAME)
