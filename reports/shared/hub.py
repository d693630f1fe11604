"""The numbers of a report as the Hugging Face Hub reads them: as community evaluations
(``.eval_results/*.yaml``), or as metadata of a model card (``model-index``). Nothing is uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from reports.cell import Cell
from reports.parts.tables import Number

if TYPE_CHECKING:
    from reports.report import Report

# the Hub's names of what the suite's kinds of datasets are for; others are features' own
TASK_TYPES = {
    "classification": "image-classification",
    "depth": "depth-estimation",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


def community_evaluations(report: Report, datasets: Mapping[str, str]) -> dict[str, str]:
    """File → text: ``BACKBONE/.eval_results/DATASET-PROBE.yaml`` with the main metric of a task.

    Args:
        datasets: name of a dataset → id of its repository on the Hub, ``ORG/NAME``; tasks of other
            datasets are left out, because an entry names a repository.
    """
    files: dict[str, str] = {}
    for number, cell in _numbers(report):
        if number.metric != cell.main or cell.dataset not in datasets:
            continue
        entry = EvalResultEntry(
            dataset_id=datasets[cell.dataset],
            task_id=_file_name(number.task).replace("-", "_").lower(),
            value=number.value,
            date=_date(cell),
            notes=_notes(number, cell),
        )
        path = f"{_file_name(cell.backbone)}/.eval_results/{_file_name(number.task)}.yaml"
        files[path] = _as_yaml(eval_result_entries_to_yaml([entry]))
    return files


def model_cards(report: Report, datasets: Mapping[str, str]) -> dict[str, str]:
    """File → text: ``BACKBONE/model-index.yaml``, for the head of a model card's README.

    Args:
        datasets: as of ``community_evaluations``; other datasets keep the suite's name.
    """
    results: dict[str, list[EvalResult]] = {}
    for number, cell in _numbers(report):
        result = EvalResult(
            task_type=TASK_TYPES.get(cell.kind, "image-feature-extraction"),
            task_name=number.task,
            dataset_type=datasets.get(cell.dataset, cell.dataset),
            dataset_name=cell.dataset,
            metric_type=number.metric,
            metric_name=_notes(number, cell),
            metric_value=number.value,
        )
        results.setdefault(cell.backbone, []).append(result)
    return {
        f"{_file_name(name)}/model-index.yaml": _as_yaml(
            {"model-index": eval_results_to_model_index(name, each)}
        )
        for name, each in results.items()
    }


def _numbers(report: Report) -> Iterator[tuple[Number, Cell]]:
    """Each number of the report and the first cell that it is computed from."""
    assert report.analysis is not None
    cells = {
        (backbone, column.title): seeds[0]
        for (backbone, column), seeds in report.analysis.selection.cells.items()
    }
    for number in report.numbers().values():
        cell = cells.get((number.backbone, number.task))
        if cell is not None and not number.missing:
            yield number, cell


def _notes(number: Number, cell: Cell) -> str:
    """How the number was made, in a line."""
    parts = [f"{number.metric} of probe {cell.probe} on a frozen backbone"]
    if cell.preset:
        parts.append(f"protocol {cell.preset}" + (f" ({cell.differs})" if cell.differs else ""))
    if number.task != cell.task:  # with a letter
        parts.append(f"conditions {cell.protocol}")
    parts.append(f"{number.seeds} seed{'s' * (number.seeds != 1)}")
    if number.interval:
        parts.append(f"95 % interval {number.interval}")
    if cell.partial:
        parts.append("on a part of the data")
    return ", ".join(parts)


def _date(cell: Cell) -> str | None:
    return f"{datetime.fromtimestamp(cell.started / 1000, UTC):%Y-%m-%d}" if cell.started else None


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).rstrip("-")


def _as_yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
