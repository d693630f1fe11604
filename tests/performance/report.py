"""What a report costs: 2,000 finished tasks, each with per-image scores, those of a detector with
as many detections as COCO's val has, read back, compared and drawn."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from reports.records import Cell, ParentRun
from reports.tracking import Tracker
from tests.performance.harness import Result, bench, limited
from tests.reports.synthetic import METRICS, Arrays, log_scores, metrics_of, scores

CLASSES, OBJECTS_PER_IMAGE, DETECTIONS_PER_IMAGE = 80, 7.2, 100  # of COCO's val
GOAL = 45.0  # seconds


@bench(backbones=2, tasks=2, seeds=2, images=20, coco_images=20)
def report(
    backbones: int = 10, tasks: int = 40, seeds: int = 5, images: int = 200, coco_images: int = 5000
) -> list[Result]:
    """Seconds of a whole report over 2,000 synthetic runs, 50 of them with half a million
    detections each."""
    from reports.pages import write
    from reports.report import ReportRequest, build_report

    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker("bench", f"sqlite:///{Path(folder).resolve()}/mlflow.db")
        for backbone in range(backbones):
            scored = detector(backbone, coco_images)
            precision = metrics_of("detection", *scored)
            for seed in range(seeds):
                log_tasks(tracker, backbone, seed, tasks, images, (precision, *scored))
        started = time.perf_counter()
        built = build_report(ReportRequest(experiments=["bench"], tracking_uri=tracker.uri))
        (page,) = write(built, Path(folder) / "report")
        seconds = time.perf_counter() - started
        size = page.stat().st_size / 1e6
    assert built.analysis is not None and not built.analysis.inconsistent, (
        "per-image scores give back the metrics"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    name = (
        f"a report over {backbones * tasks * seeds} runs, {backbones * seeds} of COCO's size,"
        f" against {GOAL:.0f} s"
    )
    return [limited(name, seconds, GOAL, "s", f"page of {size:.1f} MB, {memory:.1f} GB at most")]


def detector(backbone: int, images: int) -> tuple[Arrays, Arrays]:
    """Per-image scores and half a million detections of COCO's val, of which better backbones have
    more right ones."""
    rng = np.random.default_rng(backbone)
    objects = np.random.default_rng(99).poisson(OBJECTS_PER_IMAGE / CLASSES, (images, CLASSES))
    count = images * DETECTIONS_PER_IMAGE
    score = rng.beta(0.6, 4, count).astype(np.float32)
    share = (0.5 + 0.02 * backbone) * objects.sum() * score**2 / (score**2).sum()
    levels = np.where(rng.random(count) < share, rng.integers(1, 11, count), 0)
    columns = {
        "image_id": np.repeat(np.arange(images), DETECTIONS_PER_IMAGE),
        "class": rng.integers(0, CLASSES, count).astype(np.int16),
        "score": score,
        "bbox_hits": ((1 << levels) - 1).astype(np.uint16),
        "bbox_ignored": np.zeros(count, np.uint16),
        "bbox": rng.uniform(0, 600, (count, 4)).astype(np.float32),
    }
    names = np.array([f"{number:012d}.jpg" for number in range(images)])
    return {"image": names, "image_id": np.arange(images), "class_objects": objects}, columns


def log_tasks(
    tracker: Tracker, backbone: int, seed: int, tasks: int, images: int, scored: tuple[Any, ...]
) -> None:
    """Log the finished tasks of a backbone's seed; the first one is a detector's.

    Args:
        scored: metrics, per-image scores and detections of the detector.
    """
    about = {
        "backbone": f"net-{backbone}",
        "seed": seed,
        "weights": f"{backbone:032d}{seed:032d}",
    }
    record = ParentRun(run_key=f"{backbone}-{seed}", **about)
    with tracker.run("parent", tags=record.to_tags()) as parent:
        for task in range(tasks):
            kind = "depth" if task else "detection"
            cell = Cell(
                task=f"set-{task}/linear",
                dataset=f"set-{task}",
                kind=kind,
                protocol=f"p{task}",
                fingerprint=f"f{task}",
                declared=METRICS[kind],
                **about,
            )
            with tracker.run("task", tags=cell.to_tags(), parent=parent) as run:
                if kind == "detection":
                    log_scores(run, *scored)
                else:
                    arrays, _ = scores(kind, 0.5 + 0.03 * backbone, seed, images)
                    log_scores(run, metrics_of(kind, arrays, None), arrays)
