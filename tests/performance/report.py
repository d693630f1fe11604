"""What a report costs: 2,000 finished tasks, each with per-image scores, read back, compared and drawn."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from tests.performance.harness import Result, bench, say

BACKBONES, TASKS, SEEDS, IMAGES = 10, 40, 5, 200


@bench
def report() -> list[Result]:
    """Seconds of a whole report over 2,000 synthetic runs; the goal is half a minute."""
    from reports.render.export import write
    from reports.report import Request, build

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder).resolve()}/mlflow.db"
        fill(uri, Path(folder))
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            made = build(Request(experiments=["bench"], tracking_uri=uri))
            (page,) = write(made, Path(folder) / "report")
            seconds.append(time.perf_counter() - started)
        size = page.stat().st_size / 1e6
    middle = float(np.median(seconds))
    count = BACKBONES * TASKS * SEEDS
    result = Result(
        f"a report over {count} runs against 30 s", middle, 30.0, middle / 30, "<= 1", "s", 3, f"page of {size:.1f} MB"
    )
    say(result)
    return [result]


def fill(uri: str, folder: Path) -> None:
    """A store with ``BACKBONES`` × ``TASKS`` × ``SEEDS`` finished tasks of ``IMAGES`` images each."""
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
        for seed in range(SEEDS):
            common = {"backbone": f"net-{backbone}", "seed": str(seed), "weights.sha256": f"{backbone:032d}{seed:032d}"}
            parent = write({**common, "run.key": f"{backbone}-{seed}"}, {"cost/train_seconds": 100.0})
            for task in range(TASKS):
                error = np.clip(0.5 - 0.01 * backbone + hard + rng.normal(0, 0.05, IMAGES), 0.01, 2)
                tags = {
                    **common, "mlflow.parentRunId": parent, "task": f"set-{task}/linear", "dataset": f"set-{task}",
                    "kind": "depth", "probe": "linear", "protocol": f"p{task}", "data.fingerprint": f"f{task}",
                    "directions": "abs_rel:-1,rmse:-1,delta1:+1",
                }  # fmt: skip
                each = {"abs_rel": error, "rmse": 2 * error, "delta1": 100 * (1 - error)}
                run = write(tags, {**{key: float(v.mean()) for key, v in each.items()}, "cost/seconds": 10.0})
                place = folder / "artifacts" / run / "artifacts"
                place.mkdir(parents=True)
                np.savez_compressed(place / "per_image.npz", image=names, pixels=np.ones(IMAGES), **each)  # type: ignore[arg-type]
