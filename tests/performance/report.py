"""What a report costs: 2,000 finished tasks, each with per-image scores, those of a detector with
as many detections as COCO's val has, read back, compared and drawn."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.performance.harness import Result, bench, print_result

BACKBONES, TASKS, SEEDS, IMAGES = 10, 40, 5, 200
DETECTORS, COCO_IMAGES, CLASSES, OBJECTS, DETECTIONS_PER_IMAGE = (
    1,
    5000,
    80,
    36_000,
    100,
)  # of COCO: its val; found: in an image
GOAL = 60.0  # seconds


@bench
def report() -> list[Result]:
    """Seconds of a whole report over 2,000 synthetic runs, 50 of them with half a million
    detections each."""
    from reports.render.export import write
    from reports.report import Request, build

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder).resolve()}/mlflow.db"
        fill(uri, Path(folder))
        started = time.perf_counter()
        built = build(Request(experiments=["bench"], tracking_uri=uri))
        (page,) = write(built, Path(folder) / "report")
        seconds = time.perf_counter() - started
        size = page.stat().st_size / 1e6
    assert built.analysis is not None and not built.analysis.inconsistent, (
        "per-image scores give back the metrics"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    name = (
        f"a report over {BACKBONES * TASKS * SEEDS} runs, {BACKBONES * DETECTORS * SEEDS} of COCO's"
        f" size, against {GOAL:.0f} s"
    )
    note = f"page of {size:.1f} MB, {memory:.1f} GB at most"
    result = Result(name, seconds, GOAL, seconds / GOAL, "<= 1", "s", 1, note)
    print_result(result)
    return [result]


def detections(backbone: int, folder: Path) -> tuple[Path, float]:
    """A folder with what a detector keeps of COCO's val, and its mAP: half a million detections, of
    which better backbones have more right ones."""
    from reports.detections import FILE
    from reports.stats.average_precision import Matches

    rng = np.random.default_rng(backbone)
    objects = np.random.default_rng(99).poisson(
        OBJECTS / COCO_IMAGES / CLASSES, (COCO_IMAGES, CLASSES)
    )
    count = COCO_IMAGES * DETECTIONS_PER_IMAGE
    score = rng.beta(0.6, 4, count).astype(np.float32)
    share = (0.5 + 0.02 * backbone) * objects.sum() * score**2 / (score**2).sum()
    levels = np.where(rng.random(count) < share, rng.integers(1, 11, count), 0)
    columns = {
        "image_id": np.repeat(np.arange(COCO_IMAGES), DETECTIONS_PER_IMAGE),
        "class": rng.integers(0, CLASSES, count).astype(np.int16),
        "score": score,
        "bbox_hits": ((1 << levels) - 1).astype(np.uint16),
        "bbox_ignored": np.zeros(count, np.uint16),
        "bbox": rng.uniform(0, 600, (count, 4)).astype(np.float32),
    }
    target = folder / f"detector-{backbone}"
    target.mkdir()
    np.savez_compressed(target / FILE, **columns)  # type: ignore[arg-type]
    names = np.array([f"{number:012d}.jpg" for number in range(COCO_IMAGES)])
    np.savez_compressed(
        target / "per_image.npz",
        image=names,
        image_id=np.arange(COCO_IMAGES),
        class_objects=objects,
    )
    precision = Matches(np.arange(COCO_IMAGES), objects, columns, "bbox").precision(
        np.ones((1, COCO_IMAGES))
    )
    return target, 100 * float(precision.mean())


def fill(uri: str, folder: Path) -> None:
    """A store with ``BACKBONES`` × ``TASKS`` × ``SEEDS`` finished tasks of ``IMAGES`` images
    each."""
    from mlflow.entities import Metric, RunTag

    from reports.mlflow.client import connect

    client = connect(uri)
    experiment = client.create_experiment("bench", artifact_location=str(folder / "artifacts"))
    rng = np.random.default_rng(0)
    names = np.array([f"{number:04d}.jpg" for number in range(IMAGES)])
    hard = rng.uniform(-0.2, 0.2, IMAGES)

    def write(tags: dict[str, str], metrics: dict[str, float]) -> str:
        run = client.create_run(experiment, tags=tags)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        client.set_terminated(run.info.run_id)
        return run.info.run_id

    for backbone in range(BACKBONES):
        detector_files, precision = detections(backbone, folder)
        for seed in range(SEEDS):
            common = {
                "backbone": f"net-{backbone}",
                "seed": str(seed),
                "weights.sha256": f"{backbone:032d}{seed:032d}",
            }
            parent = write(
                {**common, "run.key": f"{backbone}-{seed}"}, {"cost/train_seconds": 100.0}
            )
            for task in range(DETECTORS):
                tags = {
                    **common,
                    "mlflow.parentRunId": parent,
                    "task": f"coco/detector-{task}",
                    "dataset": "coco",
                    "kind": "detection",
                    "protocol": f"d{task}",
                    "directions": "bbox_mAP:+1",
                }
                run = write(tags, {"bbox_mAP": precision, "cost/seconds": 10.0})
                target = folder / "artifacts" / run / "artifacts"
                target.mkdir(parents=True)
                for file in detector_files.iterdir():
                    os.link(file, target / file.name)
            for task in range(TASKS - DETECTORS):
                error = np.clip(0.5 - 0.01 * backbone + hard + rng.normal(0, 0.05, IMAGES), 0.01, 2)
                tags = {
                    **common,
                    "mlflow.parentRunId": parent,
                    "task": f"set-{task}/linear",
                    "dataset": f"set-{task}",
                    "kind": "depth",
                    "probe": "linear",
                    "protocol": f"p{task}",
                    "data.fingerprint": f"f{task}",
                    "directions": "abs_rel:-1,rmse:-1,delta1:+1",
                }
                each = {"abs_rel": error, "rmse": 2 * error, "delta1": 100 * (1 - error)}
                run = write(
                    tags,
                    {**{key: float(v.mean()) for key, v in each.items()}, "cost/seconds": 10.0},
                )
                target = folder / "artifacts" / run / "artifacts"
                target.mkdir(parents=True)
                np.savez_compressed(
                    target / "per_image.npz", image=names, pixels=np.ones(IMAGES), **each
                )  # type: ignore[arg-type]
