"""Numbers of EfficientNet-Lite0, which has its weights in a package, on real images that another
package ships: one that moves is noticed.

``python -m tests.benchmark.pinned.test_numbers`` writes them anew, when they move on purpose.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from benchmark import evaluate
from tests.benchmark.pinned import scenes

NUMBERS = Path(__file__).with_name("numbers.json")
DENSE = {"size": 96, "max_iters": 60, "batch_size": 8, "lr": 0.003}
TASKS: dict[str, dict[str, object]] = {
    "imagefolder/linear": {"epochs": 5},
    "imagefolder/knn": {},
    "imagefolder/few-shot": {},
    "tiny-scenes/linear": DENSE,
    "tiny-scenes/patch-knn": {"size": 96},
    "tiny-scenes/logreg": {"size": 96},
    "tiny-scenes/in-context": {"size": 96},
    "tiny-boxes/ssd": {"size": 96, "max_iters": 80, "batch_size": 4, "lr": 0.003},
}
# Points by which processors, which add in other orders, may differ: one of the 100 digits, and
# several times what the code of torch and oneDNN without vector instructions does (0.1 at most).
TOLERANCES = {"imagefolder": 1.5, "tiny-scenes": 0.5, "tiny-boxes": 1.0}


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Task → metric → number, with seed 0 and one thread."""
    scenes.write(folder)
    results = evaluate(
        "efficientnet-lite0",
        [*TASKS],
        suite="own",
        settings={task: {"precision": "fp32", **each} for task, each in TASKS.items()},
        data={
            "imagefolder": folder / "digits",
            "tiny-scenes": folder / "scenes",
            "tiny-boxes": folder / "scenes",
        },
        plugins=[Path(__file__).with_name("plugin.py")],
        device="cpu",
        num_workers=0,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    assert not (failed := results.frame[results.frame.value.isna()]).size, failed.reason.to_list()
    numbers: dict[str, dict[str, float]] = {}
    for row in results.frame.itertuples():
        numbers.setdefault(row.task, {})[row.metric] = round(row.value, 4)
    return numbers


@pytest.mark.slow
def test_no_number_has_moved(tmp_path):
    found, pinned = measure(tmp_path), json.loads(NUMBERS.read_text())
    assert {task: {*each} for task, each in found.items()} == {t: {*e} for t, e in pinned.items()}
    moved = {
        f"{task} {metric}": (value, found[task][metric])
        for task, each in pinned.items()
        for metric, value in each.items()
        if abs(found[task][metric] - value) > TOLERANCES[task.partition("/")[0]]
    }
    assert not moved, (
        f"was and is: {moved}. If that is on purpose, raise the version that is part of these"
        " numbers' identity, and write them anew (see the head of this file)"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CLIPTEX_HOME"] = f"{scratch}/home"
        text = json.dumps(measure(Path(scratch)), indent=1)
    NUMBERS.write_text(f"{text}\n")
