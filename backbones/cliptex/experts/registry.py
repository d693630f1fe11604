"""Experts with their weights, as a command names them."""

from __future__ import annotations

import torch

from backbones.cliptex.experts.base import EXPERTS, Expert
from backbones.cliptex.tasks import ordered
from cliptex_common.errors import UserError


def load_experts(specs: list[str], device: torch.device | str = "cpu") -> list[Expert]:
    """Experts from ``NAME=WHERE`` (a folder, a checkpoint, a hub name), ready to label.

    Raises:
        UserError: an unknown name, no WHERE, two experts for one task, or weights that an expert
            cannot use.
    """
    experts: dict[str, Expert] = {}
    for spec in specs:
        name, _, where = spec.partition("=")
        kind = EXPERTS.find(name.strip())
        if not where.strip():
            raise UserError(
                f"expert {name!r} needs its weights, as in {name}=FOLDER; make them with: experts"
                " train"
            )
        expert = kind.load(where.strip(), device)
        if twin := experts.get(expert.task):
            raise UserError(
                f"experts {twin.name!r} and {name!r} both label {expert.task}; choose one of them"
            )
        for earlier in experts.values():
            expert.share_with(earlier)
        experts[expert.task] = expert
    if not experts:
        raise UserError(
            "no experts given; --experts takes NAME=WHERE, with names such as"
            f" {', '.join(sorted(EXPERTS.descriptions()))}"
        )
    return [experts[task] for task in ordered(experts)]
