"""JAFAR's linear probe, by its own loss, optimizer and schedule and by this suite."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from tests.protocols import dense
from tests.protocols.dense import CHANNELS, CLASSES, STEPS, summary

PROBE, TASK, ITERATIONS = "segmentation/linear", "voc/linear", 200
FILE = "evaluation/train_probes.py"
MAPS = [dense.random(2, CHANNELS, 12, 16, seed=seed) for seed in range(STEPS)]
LABELS = [dense.labels(2, 12, 16, seed=seed) for seed in range(STEPS)]


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    methods = {
        node.name: node
        for node in ast.walk(ast.parse((checkout / FILE).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    own = [methods["process_batch"], methods["set_optimizer"]]
    scope: dict[str, Any] = {"torch": torch, "F": F, "rearrange": rows, "instantiate": optimizer}
    exec(compile(ast.Module(own, []), FILE, "exec"), scope)
    folder = checkout / "config"
    config = yaml.safe_load((folder / "eval.yaml").read_text())
    options = yaml.safe_load((folder / "optimizer/adamw.yaml").read_text())
    options |= config["optimizer"]
    classifier = filled(nn.Conv2d(CHANNELS, CLASSES, 1))
    evaluator = SimpleNamespace(
        backbone=lambda images: (images, None),
        model=lambda images, tokens, size: tokens,
        classifier=classifier,
        cfg=SimpleNamespace(eval=SimpleNamespace(task="seg")),
        log_print=lambda text: None,
    )
    evaluator.model.parameters = list  # type: ignore[attr-defined]
    scope["set_optimizer"](
        evaluator, SimpleNamespace(optimizer=options, num_epochs=config["num_epochs"])
    )
    fields = trained(
        classifier,
        evaluator.optimizer,
        lambda maps, labels: F.cross_entropy(*scope["process_batch"](evaluator, maps, labels)),
    )
    curves = dense.followed(evaluator.optimizer, ITERATIONS, evaluator.scheduler.step)
    size, batch = config["img_size"], config["train_dataloader"]["batch_size"]
    settings = [size, batch, config["num_epochs"], options["betas"]]
    return {PROBE: {**fields, "schedule": curves["rates"], "settings": settings}}


def rows(values: Tensor, pattern: str) -> Tensor:
    """Of ``einops.rearrange``: a row for each pixel."""
    return values.movedim(1, -1).flatten(0, -2) if values.ndim == 4 else values.flatten()


def optimizer(options: dict[str, Any], params: Any) -> torch.optim.Optimizer:
    """Of hydra's ``instantiate``."""
    kind = getattr(torch.optim, options["_target_"].rpartition(".")[2])
    values = {name: each for name, each in options.items() if name != "_target_"}
    return kind(params, **{k: float(v) if isinstance(v, str) else v for k, v in values.items()})


def suite() -> dict[str, dict[str, Any]]:
    settings = dense.preset_settings("jafar", TASK)
    config = dense.preset_config("jafar", TASK)
    head = dense.head(config, num_classes=CLASSES)
    filled(head.conv_seg)
    wrapper = {**config.optim_wrapper.optimizer.to_dict()}
    own = getattr(torch.optim, wrapper.pop("type"))(head.parameters(), **wrapper)

    def loss(maps: Tensor, labels: Tensor) -> Tensor:
        losses = head.loss((maps,), dense.samples("gt_sem_seg", labels), None)
        return next(value for name, value in losses.items() if "loss" in name)

    fields = trained(head.train().conv_seg, own, loss)
    curves = dense.curves(dense.preset_settings("jafar", TASK, max_iters=ITERATIONS, epochs=0))
    (crop,) = [part for part in config.train_dataloader.dataset.pipeline if "crop" in part]
    values = [crop["crop"], settings.batch_size, int(settings.epochs), list(settings.betas)]
    return {PROBE: {**fields, "schedule": curves["rates"], "settings": values}}


def filled(convolution: nn.Conv2d) -> nn.Conv2d:
    dense.fill([convolution.weight, convolution.bias])
    return convolution


def trained(convolution: nn.Module, own: torch.optim.Optimizer, loss: Any) -> dict[str, Any]:
    """Losses and weights of a few steps at a constant rate."""
    losses = []
    for maps, labels in zip(MAPS, LABELS, strict=True):
        own.zero_grad()
        value = loss(maps, labels)
        value.backward()
        own.step()
        losses.append(value.item())
    parameters = [convolution.weight, convolution.bias]
    return {"losses": losses, "weights": [v for each in parameters for v in summary(each, 8)]}
