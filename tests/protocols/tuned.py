"""What the records of fine-tuning share: rate and decay of some weights of a ViT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope

ITERATIONS = (0, 1, 1000)
# names in timm's ViTs, of 12 blocks; in a record also ``head``, the weight of what is trained anew
WEIGHTS = {
    "token": "cls_token",
    "patches": "patch_embed.proj.weight",
    "norm": "blocks.0.norm1.weight",
    "bias": "blocks.0.mlp.fc1.bias",
    **{f"block {number}": f"blocks.{number}.mlp.fc1.weight" for number in (0, 5, 11)},
}


def groups(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Any], step: Callable[[int], Any]
) -> dict[str, Any]:
    """Weight decay, and the rates at ``ITERATIONS``, of some weights.

    Args:
        named: as the record calls them.
        step: called with the number of each iteration, before it.
    """
    own = {
        name: next(g for g in optimizer.param_groups if any(each is p for p in g["params"]))
        for name, each in named.items()
    }
    decays = {name: group["weight_decay"] for name, group in own.items()}
    rates: dict[str, list[float]] = {name: [] for name in named}
    for iteration in range(max(ITERATIONS) + 1):
        step(iteration)
        for name, group in own.items() if iteration in ITERATIONS else ():
            rates[name].append(group["lr"])
    return {"rates": rates, "decay": decays}


class Trained(BaseModule):
    """A backbone and a head, named as in the models of MMSegmentation and MMDetection."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.decode_head = backbone, torch.nn.Linear(2, 2)


def of_config(
    model: Trained, wrapper: Mapping[str, Any], parts: Sequence[Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """``groups`` of a model by the optimizer and the schedulers of a config of mmengine's."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = build_optim_wrapper(model, {**wrapper})
        schedulers = [PARAM_SCHEDULERS.build({**part, "optimizer": built}) for part in parts]
    parameters = dict(model.named_parameters())
    named = {kind: parameters[f"backbone.{name}"] for kind, name in names.items()}
    named["head"] = model.decode_head.weight

    def step(iteration: int) -> None:
        for scheduler in schedulers if iteration else ():
            scheduler.step()

    return groups(built.optimizer, named, step)


def of_suite(config: Any, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """``of_config`` of this suite: of its config, and of that of its tuned backbone."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = Trained(MODELS.build({**backbone}))
    names = {kind: f"trained.{name.replace('.', '/')}" for kind, name in WEIGHTS.items()}
    return of_config(model, config.optim_wrapper, config.param_scheduler, names)


def without(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in names}
