"""VTAB-1k's fine-tuning: numbers of its README's command, its schedule, which was read in
``trainer.get_train_op``, and what its data loader does."""

from __future__ import annotations

import re
from bisect import bisect_left
from pathlib import Path
from typing import Any

from cliptex_common.settings import with_changes
from probes.image_level.linear import cosine
from probes.image_level.tuned import WARMUP
from probes.registry import find_preset, find_task
from tests.protocols import tuned

PROBE = "classification/linear"
AT = (*tuned.ITERATIONS, 2499)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    readme = (checkout / "README.md").read_text()
    command = readme[readme.index("--dataset 'cifar(num_classes=100)' \\\n    --batch_size 512") :]
    flags = dict(re.findall(r"--(\w+) (\S+)", command.partition("```")[0]))
    script = (checkout / "scripts/run_all_tasks.sh").read_text()
    (images,) = re.findall(r"--train_examples (\d+)", script)
    (size,) = re.findall(r"size=(\d+)", (checkout / "task_adaptation/data_loader.py").read_text())
    splits = (checkout / "task_adaptation/data/dtd.py").read_text()
    rate, steps = float(flags["initial_learning_rate"]), flags["decay_steps"].split(",")
    return {
        PROBE: {
            # ``piecewise_constant`` takes a value up to and with its boundary
            "rates": [rate * 0.1 ** bisect_left([*map(int, steps)], each) for each in AT],
            "steps": int(flags["max_steps"]),
            "batch": int(flags["batch_size"]),
            "images": int(images),
            "chosen on": 200 if '"val200"' in splits else 0,
            "size": int(size),
            "tasks": len(re.findall(r"^ *(?:datasets=\()?'", script, re.M)),
            "decay by layers": 1.0,
            "drop path": 0.0,
        }
    }


def suite() -> dict[str, dict[str, Any]]:
    import benchmark.catalog  # noqa: F401
    from benchmark.suites import SUITES

    listed = SUITES["vtab"]
    spec, probe = find_task("vtab-dtd/linear")
    preset = find_preset("vtab", spec, probe)
    settings = with_changes(probe.settings_type(), preset.settings)
    images = listed.train_images
    steps = settings.epochs * -(-images // settings.batch_size)
    rates = settings.backbone_rates
    shares = [cosine(each, steps, round(WARMUP * steps)) for each in AT]
    return {
        PROBE: {
            "rates": [[rate * share for rate in rates] for share in shares],
            "steps": steps,
            "batch": settings.batch_size,
            "images": images,
            "chosen on": round(settings.holdout * images),
            "size": settings.size,
            "tasks": len({*preset.datasets}),
            "decay by layers": settings.layer_decay,
            "drop path": settings.drop_path,
        }
    }
