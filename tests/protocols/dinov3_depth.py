"""DINOv3's linear probe of NYU Depth v2, by its code and by this suite."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from cliptex_common.metrics import depth_scores
from probes.dense.losses import TaskObjective
from probes.dense.settings import round_up
from probes.dense.task import cropped
from tests.protocols import dense
from tests.protocols.dense import (
    CHANNELS,
    IMAGES,
    STEPS,
    depths,
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

TASK = "nyu-depth/linear"
DEPTHS = [depths(IMAGES, 1, 24, 24, seed=60 + step) for step in range(STEPS)]
FRAME = (480, 640)
DELTAS = ("delta1", "delta2", "delta3")
# a smooth image
SMOOTH = np.stack([np.add.outer(2.0 * np.arange(46), np.arange(55)) + 9] * 3, axis=-1)
SMOOTH = SMOOTH.astype(np.float32)
RANGE = [0.0, 0.0005, 5.0, 12.0]  # metres
# the row and the column of each pixel of a frame
POSITIONS = np.stack([*np.indices(FRAME), np.zeros(FRAME, int)]).astype(np.uint16)


def source(checkout: Path) -> dict[str, Any]:
    from dinov3.eval.depth import loss, metrics, models, schedulers, transforms
    from dinov3.eval.depth.config import DepthConfig, make_depth_train_transforms_from_config
    from dinov3.eval.depth.datasets.datasets_utils import _EvalCropType, make_valid_mask
    from dinov3.eval.depth.models.encoder import CenterPadding, _get_backbone_out_indices
    from dinov3.eval.depth.models.linear_head import LinearHead
    from dinov3.eval.setup import ModelConfig, load_model_and_context
    from torchvision.transforms.v2.functional import rotate

    config = loaded(checkout, DepthConfig, "depth/configs/config-nyu.yaml")
    model = SimpleNamespace(cuda=lambda: None, eval=lambda: None)
    with patch("torch.hub.load", return_value=model):
        _, backbone = load_model_and_context(ModelConfig(dino_hub="dinov3_vits16"), "")
    decoder, cut = config.decoder_head, config.transforms.train

    scheduled = partial(scheduler_by, schedulers, config)
    optimizer = adamw(config, [torch.zeros(1, requires_grad=True)])
    curves = dense.followed(optimizer, config.scheduler.total_iter, scheduled(optimizer).step)
    options = {"use_batchnorm": decoder.use_batchnorm, "use_cls_token": decoder.use_cls_token}
    torch.manual_seed(0)
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
    area = named["FixedCrop"](torch.from_numpy(POSITIONS), None)[0]
    turned, depth = named["MaybeApply"], transforms.Depth(torch.from_numpy(SMOOTH[None, ..., 0]))
    (rotation,) = turned._transform.transforms
    bilinear = rotation.interpolation
    pair, (predicted, target) = random(2, 1, 4, 6, seed=12), frame_depths()
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
        "normalised black": named["Normalize"](torch.zeros(3, 1, 1)).flatten(),
        "area": [list(area.shape), area[:, 0, 0].tolist(), area[:, -1, -1].tolist()],
        "rotation": [rotation.degrees[1], turned._threshold],
        "turned image": rotate(torch.from_numpy(SMOOTH).permute(2, 0, 1), 2.0, bilinear)[
            0, ::9, ::9
        ],
        "turned depth": transforms.depth_rotate(depth, 2.0)[0, ::9, ::9],
        "mirror images": transforms.LeftRightFlipAug(flip=config.eval.use_tta).inverse(pair),
        "scores": [
            *(getattr(scores, name).item() for name in ("rmse", "abs_rel", "log_10")),
            *(100 * getattr(scores, name).item() for name in ("a1", "a2", "a3")),
        ],
        "padding to patches of 14": [CenterPadding(14)._get_pad(side) for side in FRAME],
        "head precision": str(config.model_dtype or backbone["autocast_dtype"])[6:],
    }


def suite() -> dict[str, Any]:
    config, settings = dense.preset_config("dinov3", TASK), dense.preset_settings("dinov3", TASK)
    head = dense.head(config)
    output = head.eval()((MAPS[0],))
    packed = [dense.samples("gt_depth_map", targets) for targets in DEPTHS]
    short = dense.preset_settings("dinov3", TASK, **dense.SHORT)
    losses = dense.trained(head, short, [(maps,) for maps in MAPS], packed)
    objective: TaskObjective = head.loss_decode
    objective.iterations.fill_(100)
    last = objective(DEPTHS[0].flip(0).clamp(min=0.5), DEPTHS[0])
    colours = dense.part_of(config, "train", "GammaDistortion")
    area = dense.transform(dense.part_of(config, "train", "ReadArea"), POSITIONS.transpose(1, 2, 0))
    area = area["img"].transpose(2, 0, 1)
    rotation = dense.part_of(config, "train", "RandomRotate")
    fixed = {**rotation, "prob": 1.0, "degree": (-2.0, -2.0)}  # mmcv turns clockwise
    results = dense.transform(fixed, SMOOTH, SMOOTH[..., 0])
    pair, (predicted, target) = random(2, 1, 4, 6, seed=12), frame_depths()
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
        "trained pixels": objective.task.valid(torch.tensor(RANGE)).tolist(),
        "colours": [
            summary(dense.transform(colours, photograph(8, 9))["img"], 20) for _ in seeded()
        ],
        "normalised black": dense.black(config),
        "area": [list(area.shape), area[:, 0, 0].tolist(), area[:, -1, -1].tolist()],
        "rotation": [rotation["degree"], rotation["prob"]],
        "turned image": results["img"][::9, ::9, 0],
        "turned depth": results["gt_seg_map"][::9, ::9],
        "mirror images": (pair[:1] + objective.mirror(pair[1:])) / 2
        if config.model.test_cfg.flip
        else pair,
        "scores": [scores[name].item() for name in ("rmse", "abs_rel", "log10", *DELTAS)],
        "padding to patches of 14": [(0, pad) for pad in pads],
        "head precision": HEAD_PRECISION,
    }


def frame_depths() -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted depths of a frame, and its own."""
    generator = torch.Generator().manual_seed(7)
    return 0.5 + 9 * torch.rand(1, 1, *FRAME, generator=generator), depths(1, 1, *FRAME)
