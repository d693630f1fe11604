"""Runs as the benchmark writes them, into a real MLflow store, with per-image scores that give back
the stored metrics."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from reports.detections import FILE, to_columns
from reports.metrics import TAG, Metric, declare
from reports.mlflow.query import StoredRun
from reports.mlflow.run import Tracker
from reports.stats.average_precision import Matches
from reports.stats.per_image import OLDER_DETECTIONS

METRICS = {
    "segmentation": {"mIoU": Metric(), "mAcc": Metric(shown=True), "aAcc": Metric()},
    "depth": {
        "abs_rel": Metric(-1, "", 0.0, None, "AbsRel"),
        "rmse": Metric(-1, "m", 0.0, None, "RMSE", True),
        "log10": Metric(-1, "", 0.0, None),
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


def arrays(
    kind: str, quality: float, seed: int, images: int = 60
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Per-image scores and the metrics that they give; a higher ``quality`` (0–1) is better in
    every metric.

    Images differ in difficulty in the same way for all: what pairing is for.
    """
    world = np.random.default_rng(7)
    hard = world.uniform(-0.15, 0.15, images)
    rng = np.random.default_rng([seed, int(quality * 1000)])
    good = np.clip(quality + hard + rng.normal(0, 0.02, images), 0.02, 0.98)
    names = {"image": np.array([f"{number:04d}.jpg" for number in range(images)])}
    if kind == "segmentation":
        label = world.integers(50, 400, (images, 4))
        hit = (label * good[:, None]).astype(np.int64)
        wrong = label - hit
        found = hit + np.roll(wrong, 1, axis=1)
        areas = {"intersection": hit, "prediction": found, "label": label}
        h, p, t = (areas[k].sum(axis=0) for k in ("intersection", "prediction", "label"))
        metrics = {
            "mIoU": 100 * (h / (p + t - h)).mean(),
            "mAcc": 100 * (h / t).mean(),
            "aAcc": 100 * h.sum() / t.sum(),
        }
        return names | areas | {"classes": np.array(["sky", "road", "tree", "car"])}, metrics
    if kind == "depth":
        error = 1.1 - good
        each = {"abs_rel": error, "rmse": 2 * error, "log10": error / 3, "delta1": 100 * good}
        return names | each | {"pixels": np.full(images, 100)}, {
            k: float(v.mean()) for k, v in each.items()
        }
    if kind == "normals":
        pixels = world.integers(400, 900, images)
        each = [
            rng.gamma(2.0, 40 * (1.05 - one), count).clip(0, 180)
            for one, count in zip(good, pixels, strict=True)
        ]
        scores = {
            "pixels": pixels,
            "normal_mean": np.array([one.mean() for one in each]),
            "normal_11.25": np.array([100 * (one < 11.25).mean() for one in each]),
            "error_histogram": np.stack([np.histogram(one, 1800, (0, 180))[0] for one in each]),
        }
        every = np.concatenate(each)
        metrics = {
            "normal_mean": every.mean(),
            "normal_11.25": 100 * (every < 11.25).mean(),
            "normal_median": np.median(every),
        }
        return names | scores, metrics
    if kind == "detection":  # one object and one detection an image, right up to some IoU threshold
        found = []
        for number in range(images):
            right = {
                "image_id": number,
                "class": 0,
                "score": float(rng.random()),
                "bbox_ignored": 0,
            }
            found.append({**right, "bbox_hits": (1 << int(10 * good[number])) - 1})
        scores = {"image_id": np.arange(images), "class_objects": np.ones((images, 1), int)}
        matches = Matches(scores["image_id"], scores["class_objects"], to_columns(found), "bbox")
        names["found"] = np.array([json.dumps(one) for one in found])
        return names | scores, {
            "bbox_mAP": 100 * float(matches.precision(np.ones((1, images))).mean())
        }
    if kind == "classification":
        rank = np.where(good > 0.5 + world.uniform(-0.4, 0.4, images), 0, 7)
        return names | {"rank": rank, "label": np.zeros(images, int)}, {
            "top1": 100 * float((rank < 1).mean()),
            "top5": 100 * float((rank < 5).mean()),
        }
    one = np.where(good > 0.5, 0, 12)
    many = np.where(good[:, None] + world.uniform(-0.3, 0.3, (images, 5)) > 0.5, 0, 8)
    many[0, 3:] = -1
    metrics = {f"i2t_R@{k}": 100 * float((one < k).mean()) for k in (1, 5, 10)}
    metrics |= {f"t2i_R@{k}": 100 * float((many[many >= 0] < k).mean()) for k in (1, 5, 10)}
    return names | {"i2t_rank": one, "t2i_rank": many}, metrics


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
    weights: str = "",
    images: int = 60,
) -> str:
    """A parent run of ``backbone`` with a child for each task of ``qualities``; returns the
    parent's id."""
    sha = weights or hashlib.sha256(f"{backbone} {seed}".encode()).hexdigest()
    parent_tags = {
        "backbone": backbone,
        "suite": tracker.experiment,
        "seed": str(seed),
        "weights.sha256": sha,
        "run.key": f"{backbone}-{seed}",
        "architecture": "toy",
        "git.commit": "abc123",
        **{f"protocol.{task.replace('/', '.')}": protocol for task in qualities},
        **(tags or {}),
    }
    with tracker.run(f"{backbone} · seed {seed}", tags=parent_tags) as parent:
        about = {"data": {"size": [224, 224]}}
        parent.log_json(
            {"backbone": about, "environment": {"python": "3.11", "packages": {"torch": "2"}}},
            "run.json",
        )
        parent.log_metrics({"cost/train_seconds": 10.0 + 5 * seed})
        for task, quality in qualities.items():
            kind = TASKS[task]
            child_tags = {
                "task": task,
                "dataset": task.split("/")[0],
                "kind": kind,
                "probe": task.split("/")[1],
                "backbone": backbone,
                "weights.sha256": sha,
                "seed": str(seed),
                "suite": tracker.experiment,
                "protocol": f"{protocol}-{task}",
                "cell": f"{backbone}-{task}-{seed}-{protocol}",
                "data.fingerprint": f"f-{task}",
                "data.partial": "false",
                TAG: declare(METRICS[kind]),
                **(task_tags or {}).get(task, {}),
            }
            try:
                with tracker.run(task, tags=child_tags, parent=parent) as child:
                    if failing and task in failing:
                        raise RuntimeError(failing[task])
                    scores, metrics = arrays(kind, quality, seed, images)
                    child.log_metrics({**metrics, "cost/seconds": 3.0})
                    for step in range(3):
                        child.log_metrics({"train/loss": 3.0 - step}, step)
                    with TemporaryDirectory() as scratch:
                        if "found" in scores:
                            found = [json.loads(one) for one in scores.pop("found")]
                            pack = Path(scratch) / (OLDER_DETECTIONS if seed else FILE)
                            if seed:  # as older versions kept them
                                pack.write_bytes(gzip.compress(json.dumps(found).encode()))
                            else:
                                np.savez_compressed(pack, **to_columns(found))  # type: ignore[arg-type]
                            child.log_file(pack)
                        path = Path(scratch) / "per_image.npz"
                        np.savez_compressed(path, **scores)  # type: ignore[arg-type]
                        child.log_file(path)
                        if pictures and kind in ("segmentation", "depth"):
                            child.log_file(
                                write_pictures(Path(scratch) / "gallery.zip", seed, images),
                                "pictures",
                            )
                    child.log_json(
                        {"task": task, "settings": {"max_iters": 10, "which": protocol}},
                        "protocol.json",
                    )
            except RuntimeError:
                continue
    return parent.id


def write_pictures(path: Path, seed: int, images: int) -> Path:
    """A gallery as ``probes.pictures.write_gallery`` makes it."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as pack:
        index = []
        for number in range(min(images, 12)):
            entry = {"name": f"{number:04d}.jpg"}
            for role in ("image", "truth", "prediction"):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(
                    buffer, "PNG"
                )
                entry[role] = f"{number:03d}-{role}.png"
                pack.writestr(entry[role], buffer.getvalue())
            index.append(entry)
        pack.writestr("index.json", json.dumps({"images": index, "legend": None}))
    return path


def stored_run(
    number: int,
    backbone: str,
    task: str,
    seed: int,
    value: float | None,
    *,
    protocol: str = "p",
    status: str = "FINISHED",
    weights: str = "w",
    failure: str = "",
    parent: str = "",
    started: int | None = None,
) -> StoredRun:
    """A child run without a store, for what needs none."""
    tags = {
        "task": task,
        "kind": "segmentation",
        "backbone": backbone,
        "seed": str(seed),
        "protocol": protocol,
        "weights.sha256": weights,
        "directions": "mIoU:+1,mAcc:+1",
        "mlflow.parentRunId": parent or f"parent-{backbone}-{seed}",
    }
    if failure:
        tags["failure"] = failure
    metrics = {} if value is None else {"mIoU": value, "cost/seconds": 1.0}
    when = number if started is None else started
    return StoredRun(
        f"run{number}", task, "x", "1", status, when, when, "/nowhere", tags, {}, metrics
    )
