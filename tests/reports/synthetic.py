"""Runs as the benchmark writes them, in a real MLflow store.

Their per-image scores reproduce the stored metrics.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import probes.catalog  # noqa: F401  registers the metrics of every kind
from cliptex_common.files import content_key
from probes.pictures import write_gallery
from reports.per_image import ImageScores, image_scores
from reports.records import (
    DETECTIONS,
    PARENT,
    PER_IMAGE,
    PICTURES,
    PROTOCOL,
    Cell,
    Metric,
    ParentRun,
    cell_key,
    cost_metrics,
    network_key,
    task_tag,
    to_columns,
)
from reports.tracking import Run, Tracker

METRICS = {
    "segmentation": {"mIoU": Metric(), "mAcc": Metric(shown=True), "aAcc": Metric()},
    "depth": {
        "abs_rel": Metric(-1, "", 0.0, None, "AbsRel"),
        "rmse": Metric(-1, "m", 0.0, None, "RMSE", True),
        "delta1": Metric(label="δ < 1.25", shown=True),
    },
    "normals": {
        "normal_mean": Metric(-1, "°", 0.0, 180.0),
        "normal_11.25": Metric(shown=True),
        "normal_median": Metric(-1, "°", 0.0, 180.0, shown=True),
    },
    "detection": {"bbox_mAP": Metric(label="box mAP")},
    "classification": {"top1": Metric(label="top-1"), "top5": Metric(label="top-5", shown=True)},
    "image-text": {
        f"{way}_R@{k}": Metric(shown=True) for way in ("i2t", "t2i") for k in (1, 5, 10)
    },
}
TASKS = {
    "voc/linear": "segmentation",
    "nyu-depth/linear": "depth",
    "imagenet/linear": "classification",
    "flickr30k/retrieval": "image-text",
    "nyu-normal/linear": "normals",
    "coco/ssd": "detection",
}
Arrays = dict[str, np.ndarray]


def scores(kind: str, quality: float, seed: int, images: int) -> tuple[Arrays, Arrays | None]:
    """Per-image scores and detections; a higher ``quality`` (0–1) is better in every metric.

    Images differ in difficulty in the same way for all, which makes pairing effective.
    """
    world = np.random.default_rng(7)
    hard = world.uniform(-0.15, 0.15, images)
    rng = np.random.default_rng([seed, int(quality * 1000)])
    good = np.clip(quality + hard + rng.normal(0, 0.02, images), 0.02, 0.98)
    arrays = {"image": np.array([f"{number:04d}.jpg" for number in range(images)])}
    detections = None
    if kind == "segmentation":
        label = world.integers(50, 400, (images, 4))
        hit = (label * good[:, None]).astype(np.int64)
        prediction = hit + np.roll(label - hit, 1, axis=1)
        arrays |= {"intersection": hit, "prediction": prediction, "label": label}
        arrays["classes"] = np.array(["sky", "road", "tree", "car"])
    elif kind == "depth":
        error = 1.1 - good
        arrays |= {"abs_rel": error, "rmse": 2 * error, "delta1": 100 * good}
        arrays["pixels"] = np.full(images, 100)
    elif kind == "normals":
        pixels = world.integers(400, 900, images)
        errors = [
            rng.gamma(2.0, 40 * (1.05 - q), n).clip(0, 180)
            for q, n in zip(good, pixels, strict=True)
        ]
        arrays |= {
            "pixels": pixels,
            "normal_mean": np.array([error.mean() for error in errors]),
            "normal_11.25": np.array([100 * (error < 11.25).mean() for error in errors]),
            "error_histogram": np.stack([np.histogram(e, 1800, (0, 180))[0] for e in errors]),
        }
    elif kind == "detection":  # one object and one detection an image
        detections = to_columns(
            [
                {
                    "image_id": number,
                    "class": 0,
                    "score": float(rng.random()),
                    "bbox_ignored": 0,
                    "bbox_hits": (1 << int(10 * good[number])) - 1,
                }
                for number in range(images)
            ]
        )
        arrays |= {"image_id": np.arange(images), "class_objects": np.ones((images, 1), int)}
    elif kind == "classification":
        is_right = good > 0.5 + world.uniform(-0.4, 0.4, images)
        rank = np.where(is_right, 0, rng.integers(7, 1000, images))  # with each seed another one
        arrays |= {"rank": rank, "label": np.zeros(images, int)}
    else:
        arrays["i2t_rank"] = np.where(good > 0.5, 0, 12)
        ranks = np.where(good[:, None] + world.uniform(-0.3, 0.3, (images, 5)) > 0.5, 0, 8)
        ranks[0, 3:] = -1
        arrays["t2i_rank"] = ranks
    return arrays, detections


def metrics_of(kind: str, arrays: Arrays, detections: Arrays | None) -> dict[str, float]:
    """The metrics over all images."""
    scores = image_scores(kind, arrays, detections)
    assert scores is not None
    everything = np.ones((1, len(scores.images)))
    return {name: float(scores.metrics[name](everything)[0]) for name in METRICS[kind]}


def log_scores(
    run: Run, metrics: dict[str, float], arrays: Arrays, detections: Arrays | None = None
) -> None:
    """Log the metrics of a task and what they were computed from."""
    run.log_metrics(metrics)
    with TemporaryDirectory() as scratch:
        for name, stored in ((PER_IMAGE, arrays), (DETECTIONS, detections)):
            if stored is not None:
                np.savez_compressed(Path(scratch, name), **stored)  # type: ignore[arg-type]
                run.log_file(Path(scratch, name))


def conditions_of(task: str, protocol: str, libraries: dict[str, str] | None) -> dict:
    """The content of ``protocol.json``."""
    return {
        "task": task,
        "libraries": libraries or {"torch": "2"},
        "settings": {"max_iters": 10, "which": protocol},
        "dataset": {"name": task.split("/")[0], "fingerprint": f"f-{task}", "partial": False},
    }


def kind_of(task: str) -> str:
    """The kind of a task's dataset, also of a variant's."""
    return TASKS[task.partition(":")[0]]


def write_run(
    tracker: Tracker,
    backbone: str,
    seed: int,
    qualities: dict[str, float],
    *,
    protocol: str = "p",
    failing: dict[str, str] | None = None,
    pictures: bool = False,
    tags: dict[str, str] | None = None,
    task_tags: dict[str, dict[str, str]] | None = None,
    images: int = 60,
    libraries: dict[str, str] | None = None,
    weights: str = "",
    sha: str = "",
) -> str:
    """A parent run with a child for each task of ``qualities``; returns the parent's id. The
    weights are trained, of each seed its own, or those of a file with this ``sha``."""
    of_file = sha
    sha = sha or hashlib.sha256(f"{backbone} {seed}{weights}".encode()).hexdigest()
    identity = {
        "architecture": "toy",
        "model_config": {},
        "sha256": sha,
        "data": {"size": [224, 224]},
        "adapter": {"version": 1},
        "plugin": {"sha256": "c0ffee"},  # what an adapter adds is part of the identity, too
    }
    shared: dict[str, Any] = {"backbone": backbone, "suite": tracker.experiment}
    shared |= {"seed": seed, "weights": sha, "network": network_key(identity)}
    conditions = {task: conditions_of(task, protocol, libraries) for task in qualities}
    record = ParentRun(
        **shared,
        run_key=f"{backbone}-{seed}{of_file}",
        architecture="toy",
        commit="abc123",
        main_metrics=[f"{task}/{next(iter(METRICS[kind_of(task)]))}" for task in qualities],
        protocols={task_tag(task): content_key(conditions[task]) for task in qualities},
    )
    parent_tags = {**record.to_tags(), **(tags or {})}
    params = {"head": "/tmp/head.pt"}
    with tracker.run(f"{backbone} · seed {seed}", tags=parent_tags, params=params) as parent:
        environment = {"python": "3.11", "packages": {"torch": "2"}}
        about = {"name": backbone, "source": "here", "licence": "none", "config": {}}
        stored = {"backbone": {**identity, **about}, "environment": environment}
        parent.log_json(stored, PARENT)
        latency = 1.0 + len(backbone)
        costs = {"latency_ms": latency, "memory_mb": 100.0}
        if not of_file:
            costs["train_seconds"] = 10.0 + 5 * seed
        parent.log_metrics(cost_metrics(costs))
        for task, quality in qualities.items():
            kind = kind_of(task)
            cell = Cell(
                **shared,
                task=task,
                dataset=task.split("/")[0],
                probe=task.partition(":")[0].split("/")[1],
                kind=kind,
                protocol=content_key(conditions[task]),
                key=cell_key(identity, conditions[task], seed),
                fingerprint=f"f-{task}",
                declared=METRICS[kind],
            )
            child_tags = {**cell.to_tags(), **(task_tags or {}).get(task, {})}
            with (
                suppress(RuntimeError),
                tracker.run(task, tags=child_tags, parent=parent) as child,
            ):
                if failing and task in failing:
                    raise RuntimeError(failing[task])
                arrays, detections = scores(kind, quality, seed, images)
                metrics = metrics_of(kind, arrays, detections)
                log_scores(child, metrics, arrays, detections)
                parent.log_metrics({f"{task}/{name}": value for name, value in metrics.items()})
                child.log_metrics({"cost/seconds": 3.0})
                for step in range(3):
                    child.log_metrics({"train/loss": 3.0 - step}, step)
                if pictures and kind in ("segmentation", "depth"):
                    with TemporaryDirectory() as scratch:
                        pack = write_pictures(Path(scratch), seed, kind == "segmentation")
                        child.log_file(pack, PICTURES)
                child.log_json(conditions[task], PROTOCOL)
    return parent.id


def write_pictures(folder: Path, seed: int, has_legend: bool, images: int = 12) -> Path:
    """A gallery of noise, with a key of colours where those of the task have one."""
    pictures = np.random.default_rng(seed).integers(0, 255, (images, 3, 24, 32, 3), np.uint8)
    roles = [dict(zip(("image", "truth", "prediction"), each, strict=True)) for each in pictures]
    named = ((f"{number:04d}.jpg", each) for number, each in enumerate(roles))
    legend = np.tile(np.uint8([[[0, 90, 160]], [[200, 60, 20]]]), (8, 40, 1))
    return write_gallery(folder, named, legend if has_legend else None)


def write_runs(
    tracker: Tracker,
    qualities: Mapping[str, float],
    tasks: Iterable[str] = ("voc/linear",),
    seeds: Iterable[int] = (0,),
    **options: Any,
) -> None:
    """Runs of backbones, each of one quality on all tasks, with ``options`` of ``write_run``."""
    for name, quality in qualities.items():
        for seed in seeds:
            write_run(tracker, name, seed, dict.fromkeys(tasks, quality), **options)


_numbers = itertools.count()


def stored_run(
    backbone: str,
    task: str = "voc/linear",
    seed: int = 0,
    value: float | dict[str, float] | None = None,
    **fields: Any,
) -> Cell:
    """A cell without a store, newer than those before; ``value``: its mIoU, or its metrics."""
    number = next(_numbers)
    metrics = value if isinstance(value, dict) else {"mIoU": value}
    return Cell(
        **{
            "run_id": f"run{number}",
            "parent": f"parent-{backbone}-{seed}",
            "started": number,
            "experiment": "x",
            "artifacts": "/nowhere",
            "backbone": backbone,
            "task": task,
            "kind": "segmentation",
            "seed": seed,
            "protocol": "p",
            "weights": "w",
            "declared": {"mIoU": Metric(), "mAcc": Metric(shown=True)},
            "metrics": {} if value is None else metrics,
            "costs": {"seconds": 1.0},
            **fields,
        }
    )


def stored_runs(
    value: Callable[[int, int, int], Any],
    tasks: Iterable[str] = ("voc/linear",),
    names: Sequence[str] = ("clip", "mine"),
    seeds: Iterable[int] = range(3),
    **fields: Any,
) -> list[Cell]:
    """Cells of each seed of each backbone on each task; ``value``: number of the task, number of
    the backbone, seed → the cell's."""
    return [
        stored_run(name, task, seed, value(row, index, seed), **fields)
        for row, task in enumerate(tasks)
        for index, name in enumerate(names)
        for seed in seeds
    ]


def image_scores_of(cell: Cell, images: int) -> ImageScores:
    """Scores whose means are a cell's metrics; images are as hard for all."""
    hard = np.random.default_rng(0).normal(0, 5, images)
    own = np.random.default_rng([*f"{cell.backbone} {cell.task}".encode()]).normal(0, 0.5, images)
    noise = hard - hard.mean() + own - own.mean()

    def mean(value: float):
        return lambda weights: value + weights @ noise / weights.sum(axis=1)

    return ImageScores(
        tuple(f"{number:04d}.jpg" for number in range(images)),
        {name: mean(value) for name, value in cell.metrics.items()},
        of_images=lambda: noise,
        score_name="score",
        direction=1,
        finite=np.ones(images, bool),
    )
