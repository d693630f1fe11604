"""Experts by name: one file and one registration each; a third party's come through an entry point.

[options.entry_points]                     # in the other package's setup.cfg
cliptex_benchmark.experts =
    my-expert = my_package.my_module:MyExpert
"""

from __future__ import annotations

import torch

from backbones.cliptex.experts.base import Expert
from backbones.cliptex.tasks import ordered
from common.errors import UserError
from common.registry import Registry, instance_of

EXPERTS: Registry[type[Expert]] = Registry("expert", "experts", instance_of(Expert, subclass=True))
find_expert = EXPERTS.find


def load_experts(specs: list[str], device: torch.device | str = "cpu") -> list[Expert]:
    """Experts from ``NAME=WHERE`` (a folder, a checkpoint, a hub name; see each expert), ready to
    label.

    Raises:
        UserError: an unknown name, no WHERE, two experts for one task, or whatever an expert finds
            wrong.
    """
    experts: list[Expert] = []
    for spec in specs:
        name, _, where = spec.partition("=")
        kind = EXPERTS.find(name.strip())
        if not where.strip():
            raise UserError(
                f"expert {name!r} needs its weights, as in {name}=FOLDER; make them with: experts"
                " train"
            )
        expert = kind.load(where.strip(), device)
        if twin := next((other for other in experts if other.task == expert.task), None):
            raise UserError(
                f"experts {twin.name!r} and {name!r} both label {expert.task}; choose one of them"
            )
        experts.append(expert)
    if not experts:
        raise UserError(
            "no experts given; --experts takes NAME=WHERE, with names such as"
            f" {', '.join(sorted(EXPERTS.descriptions()))}"
        )
    order = ordered(expert.task for expert in experts)
    return sorted(experts, key=lambda expert: order.index(expert.task))
