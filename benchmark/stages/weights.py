"""Trainings as units of work, each with an MLflow run that stores the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import backbones
from backbones.checkpoint import load_checkpoint
from backbones.cliptex.batches import training_size
from backbones.cliptex.labels import JoinedLabels, LabelStore
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.train import TrainResult, find_trained, states_folder, train
from backbones.cliptex.trainer import (
    States,
    TrainContext,
    end_with_launcher,
    first_process,
    torchrun_environment,
)
from benchmark.execution.base import Executor, Priority
from benchmark.execution.device import choose_device
from benchmark.execution.exclusive import exclusive
from benchmark.execution.progress import console, reporter
from benchmark.execution.unit import drop_last_model
from benchmark.stages.session import computing_tags, print_note, stage_run
from cliptex_common.progress import Progress, RunLog, Silent
from cliptex_common.secrets import hide_secrets
from reports.cell import TAGS, cost_metrics
from reports.mlflow.environment import environment
from reports.mlflow.models import logged_model
from reports.mlflow.run import Run, Tracker

MAX_STORED_BYTES = 4_000_000_000  # larger weights are not copied to MLflow; a ViT-L is smaller
LOADER = '''"""Load the weights beside this file as a frozen backbone: ``from load import load``."""

from pathlib import Path

import backbones


def load():
    weights = Path(__file__).with_name({file!r})
    return backbones.create({name!r}, weights=str(weights), any_architecture=True)
'''


@dataclass(frozen=True)
class Training:
    """A training, in plain values.

    Attributes:
        init: initial weights, as ``--init`` takes them.
        pairs: image-caption pairs, as ``--pairs`` takes them.
        out: file of the weights.
        labels: stores of the pairs' labels; if several have labels of a pair, the first counts.
        device, num_workers: of the executor; they never change the result beyond rounding.
        save_seconds: between saved states; keep_every: steps between exported checkpoints.
        experiment: in MLflow; parent: id of the run that this one nests under, '' for none.
    """

    recipe: Recipe
    init: str
    pairs: str
    out: Path
    labels: tuple[Path, ...] = ()
    device: str = "auto"
    num_workers: int = 2
    save_seconds: float = 60.0
    keep_every: int = 0
    experiment: str = "train"
    parent: str = ""

    @property
    def title(self) -> str:
        return f"train {self.recipe.name} · seed {self.recipe.seed}"

    def inputs(self, progress: Progress | None = None, *, keep: bool = True) -> dict[str, Any]:
        """The arguments of ``train`` and ``find_trained``, with pairs and labels opened."""
        return {
            "init": self.init,
            "pairs": open_pairs(self.pairs, progress, keep=keep),
            "out": self.out,
            "labels": open_labels(self.labels) if self.recipe.tasks else None,
        }


@dataclass(frozen=True)
class TrainedWeights(TrainResult):
    """The result of a training; ``run`` is the MLflow run that trained the weights, '' if it is not
    in this store."""

    run: str = ""

    @property
    def train_cost(self) -> dict[str, float]:
        return {key: self.cost[key] for key in ("train_seconds", "train_flops") if key in self.cost}


def open_labels(stores: tuple[Path, ...]) -> Any:
    """The label stores as one, in which the first that has labels of a pair counts; None without
    stores."""
    opened = [LabelStore(path) for path in stores]
    return JoinedLabels(opened) if len(opened) > 1 else (opened[0] if opened else None)


def find_weights(
    training: Training, tracker: Tracker | None, inputs: Mapping[str, Any] | None = None
) -> TrainedWeights | None:
    """The weights of ``training`` if they are trained; ``inputs`` if they are open already."""
    inputs = inputs or training.inputs(keep=tracker is not None)
    result = find_trained(training.recipe, **inputs, device=choose_device(training.device))
    if result is None:
        return None
    run = tracker.finished(**{TAGS["train_key"]: result.key}) if tracker is not None else None
    return TrainedWeights(**vars(result), run=run.run_id if run is not None else "")


async def train_weights(
    training: Training, executor: Executor, priority: int = Priority.DEFAULT
) -> TrainedWeights:
    """``train_unit`` through an executor, on its device."""
    training = replace(training, device=executor.device, num_workers=executor.num_workers)
    return await executor.run(
        train_unit, training, name=training.title, kind="train", priority=priority
    )


def preview_training(training: Training) -> None:
    """Print whether a training is done, or how many steps are to do. Raises ``UserError`` as
    ``train_unit``."""
    recipe, pairs = training.recipe, open_pairs(training.pairs, Silent(), keep=False)
    count, steps = training_size(recipe, pairs)
    line = (
        f"{recipe.name}: {count} of {len(pairs)} pairs in {len(pairs.shards)} shards ×"
        f" {recipe.epochs:g} epochs = {steps} steps of {recipe.batch_size}"
    )
    saved = States(states_folder(training.out), "").steps()
    if find_weights(training, None):
        line += f"; {training.out} holds these weights: nothing is to do"
    elif saved and saved[0] < steps:
        line += f"; it resumes from step {saved[0]} if that was saved by the same training"
    console.print(line)


def train_unit(training: Training) -> TrainedWeights:
    """Train unless another process has done so; a unit of work, or one process of several that
    train together.

    Raises:
        UserError, NonFiniteLoss: as ``backbones.cliptex.train.train``.
    """
    end_with_launcher()
    drop_last_model()
    inputs = training.inputs(reporter() if first_process() else Silent())
    if not first_process():
        return TrainedWeights(**vars(_train(training, inputs, Silent())))
    tracker = Tracker(training.experiment)
    with exclusive(training.out):
        weights = find_weights(training, tracker, inputs)
        if weights is None:
            return _train_in_run(tracker, training, inputs)
        if torchrun_environment().get("WORLD_SIZE", 1) > 1:
            # the other processes are in this call, and wait for the first before it returns
            _train(training, inputs, Silent())
        return weights


def _train(training: Training, inputs: Mapping[str, Any], log: RunLog) -> TrainResult:
    context = TrainContext(
        device=choose_device(training.device),
        log=log,
        progress=reporter() if first_process() else Silent(),
        notify=lambda line: print_note(f"train {training.recipe.name}: {line}"),
        workers=training.num_workers,
        save_seconds=training.save_seconds,
        keep_every=training.keep_every,
    )
    return train(training.recipe, **inputs, context=context)


def _train_in_run(
    tracker: Tracker, training: Training, inputs: Mapping[str, Any]
) -> TrainedWeights:
    recipe, pairs = training.recipe, inputs["pairs"]
    params = {key: value for key, value in recipe.settings().items() if key != "name"}
    tags = {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "backbone": recipe.name,
        "experts": ",".join(recipe.tasks),
        "architecture": _architecture(training),
        **computing_tags(training.device),
    }
    parent = Run(tracker, training.parent, "") if training.parent else None
    with stage_run(tracker, "train", training.title, tags, params, parent) as run:
        result = _train(training, inputs, run)
        _log_result(run, training, result)
        run.log_dataset(pairs.name, pairs.fingerprint, "training", pairs=len(pairs))
        # weights of a sweep's many trials, and very large ones, are stored by path and sha256
        is_stored = parent is None and result.path.stat().st_size <= MAX_STORED_BYTES
        path, run_id = result.path.absolute(), run.id
        model_tags = {
            "backbone": recipe.name,
            TAGS["weights_source"]: str(path),
            "weights.artifact": f"runs:/{run_id}/weights/{path.name}" if is_stored else "",
        }
        model_params = {"architecture": tags["architecture"], "seed": recipe.seed, **params}
        model = logged_model(tracker, recipe.name, result.sha256, model_params, model_tags, run_id)
        run.log_models(outputs=[model])
        # a recipe file may have any name; only the name of a backbone can load the weights
        name = recipe.name if recipe.name in backbones.names() else "cliptex"
        if is_stored:
            run.log_file(result.path, "weights")
            run.log_text(LOADER.format(name=name, file=path.name), "weights/load.py")
        run.describe(_description(run, result, recipe.name, name, is_stored))
    return TrainedWeights(**vars(result), run=run.id)


def _architecture(training: Training) -> str:
    """The architecture that is trained, on which its speed depends."""
    if Path(training.init).is_file():
        return load_checkpoint(training.init).architecture or training.init
    model = training.recipe.model if training.init in ("random", "imagenet") else training.init
    return f"open_clip/{model.removeprefix('open_clip/').partition('/')[0]}"


def _log_result(run: Run, training: Training, result: TrainResult) -> None:
    run.set_tags(
        {
            TAGS["train_key"]: result.key,
            TAGS["weights"]: result.sha256,
            TAGS["weights_file"]: str(result.path.absolute()),
        }
    )
    metrics = {k: v for k, v in result.metrics.items() if k.startswith("val/")}
    costs = {**result.cost, "disk_bytes": result.path.stat().st_size}
    run.log_metrics({**metrics, **cost_metrics(costs)})
    run.log_json(
        {
            "recipe": training.recipe.settings(),
            "init": training.init,
            "environment": environment(),
            "notes": result.notes,
        },
        "train.json",
    )


def _description(run: Run, result: TrainResult, recipe: str, name: str, is_stored: bool) -> str:
    """How to load the weights, for the MLflow UI. The store is named, unless its address has a
    password, so that the commands work in every folder."""
    path, uri = result.path.absolute(), run.tracker.uri
    text = f"Weights of `{recipe}`: `{path}` (sha256 `{result.sha256[:16]}…`).\n\n"
    if is_stored:
        store = f"MLFLOW_TRACKING_URI={uri} " if hide_secrets(uri) == uri else ""
        text += (
            "They are stored with this run:\n\n```\n"
            f"{store}mlflow artifacts download -r {run.id} -a weights -d .\n"
            'python -c "from weights.load import load; print(load())"\n```\n\n'
        )
    create = f"backbones.create({name!r}, weights={str(path)!r}, any_architecture=True)"
    text += f"```python\nimport backbones\nbackbone = {create}\n```\n\n"
    if name != "clip":  # on the command line that is one architecture, perhaps not this one
        text += (
            f"```\npython -m benchmark run --backbone {name} --weights {path} --suite paper"
            " --data-root DIR\n```"
        )
    return text
