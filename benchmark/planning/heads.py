"""Heads of earlier runs, by their MLflow runs or their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmark.probing.records import StoredHeads
from cliptex_common.errors import UserError, report_malformed
from cliptex_common.files import content_key
from reports.cell import Cell


def stored_heads(sources: Sequence[str]) -> dict[str, StoredHeads]:
    """Task → its heads.

    Args:
        sources: ids of runs, or files.

    Raises:
        UserError: one has no head, or heads of a task were trained under different conditions.
        TrackingError: the store cannot be used.
    """
    heads: dict[str, StoredHeads] = {}
    for source in sources:
        from probes.head_file import load_head  # needs torch

        head = load_head(source)
        message = f"--head {source} does not hold what it was trained on"
        with report_malformed(message, "name the run of a finished task, or the file of one"):
            about, conditions = head.metadata, head.metadata["conditions"]
            task, kind, classes = conditions["task"], about["kind"], about["classes"]
            dict(conditions["settings"])
            cell = Cell(
                backbone=about["backbone"]["name"],
                task=task,
                seed=about["seed"],
                weights=about["weights.sha256"],
                head=head.sha256,
                run_id=source,
            )
        of_task = heads.setdefault(task, StoredHeads(kind, classes, conditions, ()))
        if content_key(of_task.conditions) != content_key(conditions):
            raise UserError(
                f"--head {source}: its data, settings or versions are not those of the other heads"
                f" of {task}; score them in runs of their own"
            )
        heads[task] = replace(of_task, cells=(*of_task.cells, cell))
    return heads
