"""Pixio's dense probes, by its code (``pixio_source``) and by this suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cliptex_common.device import prefers_bf16
from cliptex_common.metrics import class_areas, confusion, depth_scores
from probes.dense.segmentation import segmentation_scores
from tests.protocols import dense, nearest, pixio_source
from tests.protocols.dense import (
    CHANNELS,
    CLASSES,
    STEPS,
    UNEVEN,
    depths,
    photograph,
    random,
    seeded,
    summary,
)
from tests.protocols.pixio_inputs import (
    DEPTHS,
    LABELS,
    LEVELS,
    PATCHES,
    POSITIONS,
    RANGE,
    TALL,
    TARGETS,
    WIDE,
    WIDTHS,
    generator,
    tokens,
)

# outputs of depth differ by up to a millimetre, and with them the losses
TOLERANCE = {"losses of depth": 2e-3, "weights after ten steps of depth": 2e-3}


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    return {**pixio_source.source(checkout), nearest.PROBE: nearest.pixio(checkout)}


def suite() -> dict[str, dict[str, Any]]:
    return {
        "segmentation/linear": suite_segmentation("linear"),
        "segmentation/dpt": suite_segmentation("dpt"),
        "depth/linear": suite_depth("linear"),
        "depth/dpt": suite_depth("dpt"),
        nearest.PROBE: nearest.suite("pixio"),
    }


def maps(step: int, head: str) -> tuple[Tensor]:
    """Maps with class tokens, as ``FrozenBackbone`` and ``ResizeConcat`` give them."""
    blocks = tokens(step)
    parts = []
    for level in LEVELS if head == "dpt" else LEVELS[-1:]:
        classes, patches = blocks[level]
        grid = patches.transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
        parts += [grid, classes.mean(dim=1)[:, :, None, None].expand_as(grid)]
    return (torch.cat(parts, dim=1),)


def suite_parameters(head: Any) -> list[Tensor]:
    """The parameters of a head in the order of the source's."""
    if not hasattr(head, "reassemble_blocks"):
        return dense.by_shape(head)
    blocks = head.reassemble_blocks
    parts = [each.conv for each in blocks.projects]
    parts += [layer for layer in blocks.resize_layers if list(layer.parameters())]
    parts += [each.conv for each in head.convs]
    for block in head.fusion_blocks:
        for unit in (block.res_conv_unit1, block.res_conv_unit2):
            parts += [unit.conv1.conv, unit.conv2.conv] if unit is not None else []
        parts.append(block.project.conv)
    parts += [head.project.conv, head.conv_seg]
    return [tensor for part in parts for tensor in (part.weight, part.bias) if tensor is not None]


def suite_fields(task: str, head: str, field: str, targets: list[Tensor]) -> dict[str, Any]:
    """Fields that segmentation and depth share."""
    name = f"{task}/{head}"
    config, settings = dense.preset_config("pixio", name), dense.preset_settings("pixio", name)
    changes: dict[str, Any] = {"num_classes": CLASSES} if field == "gt_sem_seg" else {}
    if head == "dpt":
        changes |= {"map_channels": [CHANNELS] * 4, "channels": CHANNELS, "widths": WIDTHS}
    changes["width"] = CHANNELS * (4 if head == "dpt" else 1)
    module = dense.head(config, **changes)
    initial = dense.initial_weights(config, **changes)
    dense.fill(suite_parameters(module))
    output = module.eval()(maps(0, head))
    output = nn.functional.interpolate(
        output, (24, 24), mode="bilinear", align_corners=module.align_corners
    )
    if field == "gt_depth_map":
        output = output.sigmoid()[:, 0]
    inputs = [maps(step, head) for step in range(STEPS)]
    packed = [dense.samples(field, each) for each in targets]
    losses = dense.trained(
        module, dense.preset_settings("pixio", name, max_iters=20), inputs, packed
    )
    suffix = " of depth" if field == "gt_depth_map" else ""
    tasks = ("ade20k", "voc") if field == "gt_sem_seg" else ("nyu-depth",)
    of_task = {task: dense.preset_settings("pixio", f"{task}/{head}") for task in tasks}
    shared = dense.plain_settings(settings)
    names = ("optimizer", "rate", "beta 2", "decay", "crop", "flip")
    fields = {
        "settings": {name: shared[name] for name in names},
        "lengths": {task: [each.max_iters, each.batch_size] for task, each in of_task.items()},
        "validations": 1,
        "backbone precision": settings.precision,
        "initial weights": initial,
        "head output": summary(output),
        f"losses{suffix}": losses,
        f"weights after ten steps{suffix}": dense.weights(suite_parameters(module)),
        "layers": dense.read_layers(config),
    }
    if head == "dpt":
        own = config.model.decode_head
        norm = own.norm_cfg is not None
        return fields | {
            "head": {"channels": own.channels, "widths": own.widths, "norm": norm},
        }
    return fields | dense.curves(settings)


def suite_segmentation(head: str) -> dict[str, Any]:
    fields = suite_fields("ade20k", head, "gt_sem_seg", LABELS)
    if head == "dpt":
        return fields
    config = dense.preset_config("pixio", f"ade20k/{head}")
    resize = dense.part_of(config, "train", "ScaleImage")
    crop = dense.part_of(config, "train", "RandomCrop") | {"crop_size": (9, 9)}
    crops, resized = [], []
    for _ in seeded(4):
        results = dense.transform(resize, photograph(20, 24), UNEVEN)
        image, target = results["img"], results["gt_seg_map"]
        resized.append([list(image.shape[1::-1]), summary(image, 8), target.tolist()])
        for height, width in (TALL, WIDE):
            results = dense.transform(crop, photograph(height, width), UNEVEN[:height, :width])
            crops.append([summary(results["img"], 4), int(results["gt_seg_map"].sum())])
    pad = dense.part_of(config, "train", "PadCrop")
    images = random(1, 3, 300, 420, seed=8)
    predicted = dense.slid(config, images).argmax(dim=1)
    _, ious = segmentation_scores(areas(predicted[0], TARGETS[0]))
    target = torch.where(TARGETS == 4, 255, TARGETS)[0]
    without = dense.slid(config, images, last=-1e3).argmax(dim=1)[0]
    scores, _ = segmentation_scores(areas(without, target))
    return {
        **fields,
        "resized": resized,
        "crops": crops,
        "normalised black": dense.black(config),
        "padding": [list(pad["image"]), pad["ground_truth"]],
        "windows": ious,
        "mIoU with an absent class": scores["mIoU"],
        "head precision": HEAD_PRECISION,
    }


HEAD_PRECISION = "bf16" if prefers_bf16("cuda") else "fp32"  # on a GPU


def areas(predicted: Tensor, target: Tensor) -> dict[str, np.ndarray]:
    counts = class_areas(confusion(predicted, target, CLASSES, 255))
    return {name: value.numpy() for name, value in counts.items()}


def suite_depth(head: str) -> dict[str, Any]:
    fields = suite_fields("nyu-depth", head, "gt_depth_map", [each[:, None] for each in DEPTHS])
    if head == "dpt":
        return fields
    config = dense.preset_config("pixio", f"nyu-depth/{head}")
    objective, evaluator = dense.head(config).loss_decode, config.val_evaluator
    target, predicted = depths(40, 50) + 0.01, 0.5 + 9 * torch.rand(40, 50, generator=generator())
    scores = depth_scores(predicted, target, target > 0)
    values = torch.tensor(RANGE)
    names = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3")
    cut = {}
    for split in ("train", "val"):
        read = dense.part_of(config, split, "ReadArea")
        depth = dense.transform(read, np.repeat(POSITIONS[..., None], 3, axis=2))["img"][..., 0]
        cut[split] = [list(depth.shape), depth[0, 0], depth[-1, -1]]
    return {
        **fields,
        "output": objective.decode(torch.tensor([-8.0, 0.0, 8.0])).tolist(),
        "windows": summary(dense.slid(config, random(1, 3, 300, 420, seed=8)).sigmoid()),
        "normalised black": dense.black(config),
        "trained pixels": objective.task.valid(values).tolist(),
        "scored pixels": ((values > evaluator.min_depth) & (values < evaluator.max_depth)).tolist(),
        "scores": [scores[name].item() for name in names],
        "area": cut,
        "head precision": HEAD_PRECISION,
    }
