"""The datasets of a run, checked before hours of work start, and the tasks that share images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark.execution.progress import reporter
from benchmark.options import DataOptions
from benchmark.records import BackboneInfo, PlannedTask
from benchmark.suites.registry import SuiteArtifacts
from cliptex_common.files import content_key
from probes.datasets.base import PreparedDataset, Split
from probes.datasets.check import find_folder, prepare
from probes.layers import layer_index
from probes.protocols.base import check_required


def prepare_data(
    tasks: Sequence[PlannedTask],
    options: DataOptions,
    num_workers: int,
    cached_only: bool = False,
    images: int | None = None,
) -> dict[str, PreparedDataset]:
    """Task → its dataset; each dataset and set of splits is checked once, and the result is cached.

    Args:
        images: of each split at most, of a suite that is a quick look; None for all.
        cached_only: write nothing; a dataset that was never checked raises ``NotChecked``.

    Raises:
        UserError: a dataset is missing, incomplete or broken, or its copy is not the one that a
            protocol requires.
    """
    roots = {
        task.spec.name: find_folder(task.spec, options.data_root, options.data) for task in tasks
    }
    for task in tasks:
        if protocol := getattr(task.settings, "protocol", ""):
            check_required(protocol, task.spec.at(roots[task.spec.name]), task.probe)
    datasets: dict[tuple[str, tuple[Split, ...]], PreparedDataset] = {}
    for task in tasks:
        spec, splits = task.spec, task.probe.splits
        if (spec.name, splits) not in datasets:
            limits = {split: options.limit if split == "val" else images for split in splits}
            if images and "val" in limits:
                limits["val"] = min(images, options.limit or images)
            datasets[spec.name, splits] = prepare(
                spec,
                roots[spec.name],
                splits=limits,
                partial=options.partial,
                workers=num_workers,
                progress=reporter(),
                cached_only=cached_only,
            )
    return {task.name: datasets[task.spec.name, task.probe.splits] for task in tasks}


def declared_data(
    tasks: Sequence[PlannedTask], options: DataOptions, created: Mapping[str, Path]
) -> dict[str, PreparedDataset]:
    """Task → its dataset before it is checked, without samples; ``created``: dataset → folder, of
    those that the suite creates, perhaps later."""
    data = {}
    for task in tasks:
        root = created.get(task.spec.name)
        root = root or find_folder(task.spec, options.data_root, options.data)
        data[task.name] = PreparedDataset(task.spec.at(root), root, {})
    return data


def check_fit(
    tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset], backbone: BackboneInfo
) -> None:
    """Raise ``UserError`` where a backbone has no layer that tasks name, or the probe of a task
    does not fit its dataset or the backbone."""
    for task in tasks:
        for layer in task.encoded_layers:
            layer_index(layer, backbone.depth, backbone.name)
        if check := getattr(task.probe, "check_backbone", None):
            check(task.settings, data[task.name], backbone)


def check_trained(
    tasks: Sequence[PlannedTask], options: DataOptions, artifacts: SuiteArtifacts
) -> None:
    """Raise ``UserError`` where a task does not fit the architecture that a suite trains."""
    if artifacts.backbones and artifacts.architecture:
        name, _ = next(iter(artifacts.backbones))
        backbone = replace(BackboneInfo.of(artifacts.architecture(), {}), name=name)
        check_fit(tasks, declared_data(tasks, options, artifacts.data), backbone)


def split_into_units(
    tasks: Sequence[PlannedTask], data: Mapping[str, PreparedDataset]
) -> list[list[PlannedTask]]:
    """The tasks of each unit of work: those that are scored on the same photographs (by their
    names), such as three probes of VOC, or depth and normals of NYU. A detector is alone.
    Variants of different sizes share no features and are apart."""
    stem_keys: dict[int, str] = {}  # by dataset object: listing a million names takes seconds
    units: dict[str, list[PlannedTask]] = {}
    for task in tasks:
        dataset = data[task.name]
        if id(dataset) not in stem_keys:
            stem_keys[id(dataset)] = content_key(
                [Path(sample.image).stem for sample in dataset.samples["val"]]
            )
        is_detection = task.spec.kind == "detection"
        key = task.name if is_detection else stem_keys[id(dataset)]
        if task.varies("size"):
            key += f" {task.settings.size}"
        units.setdefault(key, []).append(task)
    return list(units.values())
