"""DINOv2's linear classification: heads, their inputs, rates, steps and crops."""

from __future__ import annotations

import ast
import inspect
import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.protocols import sources

PROBE = "classification/linear"
CLASSES, WIDTH, PATCHES, IMAGES, BLOCKS = 3, 5, 7, 6, 4
STEPS, LENGTH = 10, 40
GPUS = (
    8  # of the published runs; with one, heads of close rates have one name and overwrite another
)


def tokens() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(patch tokens (N, L, C), class token (N, C)) of four blocks."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(IMAGES, PATCHES, WIDTH, generator=generator),
            torch.randn(IMAGES, WIDTH, generator=generator),
        )
        for _ in range(BLOCKS)
    ]


def labels() -> torch.Tensor:
    return torch.arange(IMAGES) % CLASSES


def weights(width: int) -> torch.Tensor:
    """(classes, width) initial weights of every head."""
    return torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(width)) / 10


def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).random((30, 40, 3)) * 255
    return Image.fromarray(pixels.astype(np.uint8)).resize((400, 300))


def summary(crop: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [0, 255] → (3, 4, 4) means."""
    return F.adaptive_avg_pool2d(crop.float(), 4)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    """The fields, by the source's code."""
    with sources.dinov2():
        from dinov2.data.transforms import (  # type: ignore[import-not-found]
            make_classification_eval_transform,
            make_classification_train_transform,
        )
        from dinov2.eval import linear  # type: ignore[import-not-found]
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    defaults = linear.get_args_parser().parse_args([])
    with sources.on_cpu(), mock.patch.object(linear.distributed, "get_global_size", lambda: GPUS):
        heads, groups = linear.setup_linear_classifiers(
            tokens(), [1, BLOCKS], defaults.learning_rates, defaults.batch_size, CLASSES
        )
    stds = [head.linear.weight.std().item() for head in heads.classifiers_dict.values()]
    names = [
        [head.use_n_blocks, head.use_avgpool, group["lr"]]
        for head, group in zip(heads.classifiers_dict.values(), groups, strict=True)
    ]
    with torch.no_grad():
        for head in heads.classifiers_dict.values():
            head.linear.weight.copy_(weights(head.out_dim))
    length = defaults.epochs * defaults.epoch_length
    optimizer, scheduler = optimizer_and_scheduler(linear.run_eval_linear, groups, LENGTH)
    losses, rates = [], []
    for _ in range(STEPS):
        outputs = heads(tokens())
        each = [F.cross_entropy(output, labels()) for output in outputs.values()]
        losses.append([loss.item() for loss in each])
        optimizer.zero_grad()
        torch.stack(each).sum().backward()
        optimizer.step()
        scheduler.step()
    group = {"params": [torch.zeros(1, requires_grad=True)], "lr": names[0][2]}
    full_optimizer, full_schedule = optimizer_and_scheduler(linear.run_eval_linear, [group], length)
    for iteration in range(length):
        if iteration % (length // 25) == 0:
            rates.append(full_optimizer.param_groups[0]["lr"])
        full_optimizer.step()
        full_schedule.step()
    train, evaluation = make_classification_train_transform(), make_classification_eval_transform()
    mean, std = (torch.tensor(getattr(train.transforms[-1], name)) for name in ("mean", "std"))
    crops = []
    for seed in range(3):
        torch.manual_seed(seed)
        crop = train(photograph()) * std[:, None, None] + mean[:, None, None]
        crops.append(summary(255 * crop))
    teacher = OmegaConf.load(checkout / "dinov2/configs/ssl_default_config.yaml")
    precision = teacher.compute_precision.teacher.backbone.mixed_precision.param_dtype
    keywords = call_keywords(linear.eval_linear, "evaluate_linear_classifiers")
    return {
        PROBE: {
            "heads": names,
            "inputs": [
                linear.create_linear_input(tokens(), blocks, pooled)[:2]
                for blocks, pooled in product((1, BLOCKS), (False, True))
            ],
            "initial_std": float(np.mean(stds)),
            "losses": losses,
            "weights": [head.linear.weight[0] for head in heads.classifiers_dict.values()],
            "rates": rates,
            "batch_size": GPUS * defaults.batch_size,
            "iterations": length,
            "crops": crops,
            "val_resize": [evaluation.transforms[0].size, evaluation.transforms[1].size[0]],
            "normalised black": -mean / std,
            "chosen_on": keywords["data_loader"],
            "precision": {"fp16": "float16", "bf16": "bfloat16"}[precision],
        }
    }


def optimizer_and_scheduler(function: Any, groups: list[dict], length: int) -> tuple[Any, Any]:
    """What the function makes of its lines ``optimizer = …`` and ``scheduler = …``."""
    names = {"torch": torch, "optim_param_groups": groups, "max_iter": length}
    tree = ast.parse(inspect.getsource(function))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "optimizer",
            "scheduler",
        ):
            exec(ast.unparse(node), names)
    return names["optimizer"], names["scheduler"]


def call_keywords(function: Any, name: str) -> dict[str, str]:
    """Keyword arguments, as text, of the last call of ``name`` in a function."""
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]
    return {str(each.arg): ast.unparse(each.value) for each in calls[-1].keywords}


def suite() -> dict[str, dict[str, Any]]:
    """The fields, by this suite."""
    import backbones
    from probes.image_level.encode import encoder
    from probes.image_level.linear import (
        LinearHeads,
        Standardiser,
        cosine,
        create_heads,
        crop_transform,
        sgd,
        train_step,
    )
    from probes.registry import find_preset, find_task

    spec, probe = find_task("imagenet/linear")
    settings = probe.settings_type(**find_preset("dinov2", spec, probe).settings)
    backbone: Any = SimpleNamespace(
        encode_tokens=lambda images, blocks: [(c, p) for p, c in tokens()[-blocks:]],
        data=SimpleNamespace(size=(224, 224)),
        divisor=14,
    )
    columns = encoder(backbone, settings.encoding("cpu"))(torch.empty(0))
    context: Any = SimpleNamespace(
        settings=settings,
        device=torch.device("cpu"),
        backbone=backbone,
        seed=0,
        data=SimpleNamespace(classes=tuple(range(CLASSES))),
    )
    grids = create_heads(context)
    stds = [weight.std().item() for heads in grids for weight in heads.weights]
    with torch.no_grad():
        for heads in grids:
            for weight in heads.weights:
                weight.copy_(weights(len(weight)).T)
    optimizer = sgd(grids, settings, settings.grid, settings.batch_size)
    losses = [
        train_step(grids, optimizer, columns, labels(), cosine(step, LENGTH))
        for step in range(STEPS)
    ]
    length = settings.epochs * settings.epoch_length
    rates = []
    probe_heads = LinearHeads(Standardiser.identity(1), [torch.zeros(1, 2)])
    single = sgd([probe_heads], settings, settings.grid[:1], settings.batch_size)
    for iteration in range(0, length, length // 25):
        train_step(
            probe_heads, single, torch.ones(1, 1), torch.zeros(1).long(), cosine(iteration, length)
        )
        rates.append(single.param_groups[0]["lr"])
    data = backbones.create("random/timm/vit_tiny_patch16_224", seed=0).data
    crops = []
    for seed in range(3):
        torch.manual_seed(seed)
        crops.append(summary(crop_transform((224, 224))(photograph())))
    return {
        PROBE: {
            "heads": [
                [blocks, pooled, rate * settings.batch_size / 256]
                for blocks, pooled in product(settings.blocks, settings.average_pool)
                for rate, _ in settings.grid
            ],
            "inputs": [columns[:2, heads.columns] for heads in grids],
            "initial_std": float(np.mean(stds)),
            "losses": losses,
            "weights": [weight[:, 0] for heads in grids for weight in heads.weights],
            "rates": rates,
            "batch_size": settings.batch_size,
            "iterations": length,
            "crops": crops,
            "val_resize": [math.floor(data.size[0] / data.crop_pct), data.size[0]],
            "normalised black": [-m / s for m, s in zip(data.mean, data.std, strict=True)],
            "chosen_on": "held-out part of train" if settings.holdout else "val_data_loader",
            "precision": {"fp32": "float32", "bf16": "bfloat16"}[settings.precision],
        }
    }


# crops are rounded to bytes here; 52 small random weights each
TOLERANCE = {"crops": 0.6, "initial_std": 5e-4, "losses": 1e-4, "weights": 1e-4}
