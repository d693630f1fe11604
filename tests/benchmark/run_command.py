"""Commands of the tests, and what they leave in the working folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmark.parser import main
from reports.store import PREFIX, open_mlflow


def run_command(command: str, *words: str) -> int:
    """The exit code of ``python -m benchmark COMMAND WORDS``."""
    return main([*command.split(), *words])


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def store() -> Any:
    """The MLflow store of the working folder."""
    return open_mlflow(f"sqlite:///{Path('mlflow.db').resolve()}")  # MLflow keeps stores by URI


def runs_of(experiment: str, client: Any = None) -> list:
    """The MLflow runs of an experiment, with tags named as in records; none if it does not
    exist."""
    client = client or store()
    match = client.get_experiment_by_name(experiment)
    return list(map(with_record_tags, client.search_runs([match.experiment_id]) if match else []))


def with_record_tags(run: Any) -> Any:
    """An MLflow run with its tags named as in records."""
    for name in list(run.data.tags):
        run.data.tags[name.removeprefix(PREFIX)] = run.data.tags.pop(name)
    return run


def assert_same_weights(path: str, expected: str) -> None:
    """Up to the order of sums."""
    one, two = load_file(path), load_file(expected)
    differing = sum(((one[name] - two[name]).abs() > 1e-2).sum().item() for name in two)
    assert differing / sum(value.numel() for value in two.values()) < 1e-2


def listing(folder: Path) -> dict[Path, int]:
    """Every path in a folder with its time of change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
