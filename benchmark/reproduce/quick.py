"""``reproduce --quick``: each preset for a few iterations, to see that everything is in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from benchmark.planning.options import RunOptions
from benchmark.probing.cell import missing_cells
from benchmark.reproduce.targets import plan_preset, protocol_names
from benchmark.run import run
from cliptex_common.errors import UserError
from probes.checks.check import DatasetNotFound, find_folder
from probes.protocols.base import PROTOCOLS
from probes.registry import tasks
from reports.cell import Cell

ANY_BACKBONE = "random/timm/vit_tiny_patch16_224"
TEXT_BACKBONE = "random/open_clip/ViT-S-32-alt"  # for probes that need texts
IMAGES = 4  # of val
TRAIN_SHARE = "0.2"
FEW = {
    "max_iters": "2",
    "epochs": "0",
    "epoch_length": "2",
    "batch_size": "2",
    "memory": "2000",
    "iterations": "5",
    "lr_grid": "none",
}


def quick(protocols: Sequence[str], options: RunOptions) -> Iterator[tuple[str, Cell]]:
    """Run every preset's tasks whose dataset is in ``options``, each by itself: protocol and cell.

    Raises:
        UserError: an unknown protocol, or no dataset of its presets is there.
    """
    applicable = list(_tasks(protocols, options))
    if not applicable:
        raise UserError(
            f"no dataset of {', '.join(protocols) or 'any protocol'} was found; pass"
            " --data-root DIR or --data NAME=DIR (`data check` lists what is there)"
        )
    for name, task in applicable:
        (planned,) = plan_preset(name, [task])
        needs_text = getattr(planned.probe, "needs_text", False)
        changes = {key: FEW[key] for key in FEW if getattr(planned.settings, key, None)}
        if "epoch_length" in changes:
            changes["epochs"] = "1"
        if planned.probe.train_size == "train_share":
            changes["train_share"] = TRAIN_SHARE
        names = options.backbones or [TEXT_BACKBONE if needs_text else ANY_BACKBONE]
        changed = replace(
            options,
            backbones=names,
            tasks=[task],
            overrides={"protocol": name, **changes},
            limit=IMAGES,
            partial=True,
            only=True,
        )
        try:
            (cell,) = run(changed).cells
        except UserError as error:  # such as another copy of the data than the source's
            (cell,) = missing_cells(names[0], options.seed, {planned.name: str(error)}).values()
        yield name, cell


def _tasks(protocols: Sequence[str], options: RunOptions) -> Iterator[tuple[str, str]]:
    """(protocol, task) of presets whose dataset is there."""
    for name in protocols or protocol_names():
        protocol = PROTOCOLS.find(name)
        for task, (spec, probe) in tasks().items():
            if protocol.preset(spec, probe) is None or spec.is_generated:
                continue
            with suppress(DatasetNotFound):
                find_folder(spec, options.data_root, options.data)
                yield name, task
