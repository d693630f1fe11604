"""Trainings as units of work, each with an MLflow run that stores the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import backbones
from backbones.checkpoint import load_checkpoint
from backbones.cliptex.data.dataset import training_size
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.joined import JoinedLabels
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.distributed import (
    end_with_launcher,
    first_process,
    torchrun_environment,
)
from backbones.cliptex.training.recipes import Recipe
from backbones.cliptex.training.states import States
from backbones.cliptex.training.train import (
    TrainContext,
    TrainResult,
    find_trained,
    states_folder,
    train,
)
from benchmark.execution.base import Executor, Priority
from benchmark.execution.device import choose_device
from benchmark.execution.exclusive import exclusive
from benchmark.execution.progress import console, reporter
from benchmark.execution.unit import drop_cached
from benchmark.stages.session import computing_tags, print_note, stage_run
from cliptex_common.secrets import hide_secrets
from reports.cell import TAGS
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
class TrainingInputs:
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


@dataclass(frozen=True)
class TrainedWeights(TrainResult):
    """The result of a training; ``run`` is the MLflow run that trained the weights, '' if it is not
    in this store."""

    run: str = ""

    @property
    def train_cost(self) -> dict[str, float]:
        return {key: self.cost[key] for key in ("train_seconds", "train_flops") if key in self.cost}


def open_labels(stores: tuple[Path, ...]) -> Any:
    """The label stores as one, in which the first counts; None without any."""
    opened = [LabelStore(path) for path in stores]
    return JoinedLabels(opened) if len(opened) > 1 else (opened[0] if opened else None)


def find_weights(inputs: TrainingInputs, tracker: Tracker | None) -> TrainedWeights | None:
    """The weights of ``inputs`` if they are trained."""
    result = find_trained(
        inputs.recipe,
        init=inputs.init,
        pairs=open_pairs(inputs.pairs, Silent(), keep=tracker is not None),
        out=inputs.out,
        labels=open_labels(inputs.labels) if inputs.recipe.tasks else None,
        device=choose_device(inputs.device),
    )
    if result is None:
        return None
    run = tracker.finished(**{TAGS["train_key"]: result.key}) if tracker is not None else None
    return TrainedWeights(**vars(result), run=run.run_id if run is not None else "")


async def train_weights(
    inputs: TrainingInputs, executor: Executor, priority: int = Priority.DEFAULT
) -> TrainedWeights:
    """``train_unit`` through an executor, on its device."""
    inputs = replace(inputs, device=executor.device, num_workers=executor.num_workers)
    title = f"train {inputs.recipe.name} · seed {inputs.recipe.seed}"
    return await executor.run(train_unit, inputs, name=title, kind="train", priority=priority)


def preview_training(inputs: TrainingInputs) -> None:
    """Print whether a training is done, or how many steps are to do. Raises ``UserError`` as
    ``train_unit``."""
    recipe, pairs = inputs.recipe, open_pairs(inputs.pairs, Silent(), keep=False)
    count, steps = training_size(recipe, pairs)
    line = (
        f"{recipe.name}: {count} of {len(pairs)} pairs in {len(pairs.shards)} shards ×"
        f" {recipe.epochs:g} epochs = {steps} steps of {recipe.batch_size}"
    )
    saved = States(states_folder(inputs.out), "").steps()
    if find_weights(inputs, None):
        line += f"; {inputs.out} holds these weights: nothing is to do"
    elif saved and saved[0] < steps:
        line += f"; it resumes from step {saved[0]} if that was saved by the same training"
    console.print(line)


def train_unit(inputs: TrainingInputs) -> TrainedWeights:
    """Train unless another process has done so; a unit of work, or one process of several that
    train together.

    Raises:
        UserError, NonFiniteLoss: as ``backbones.cliptex.training.train.train``.
    """
    end_with_launcher()
    drop_cached()
    if not first_process():
        return TrainedWeights(**vars(_train(inputs, None)))
    tracker = Tracker(inputs.experiment)
    with exclusive(inputs.out):
        weights = find_weights(inputs, tracker)
        if weights is None:
            return _train_in_run(tracker, inputs)
        if torchrun_environment().get("WORLD_SIZE", 1) > 1:
            _train(inputs, None)  # returns at once; the other processes wait in it for this one
        return weights


def _train(inputs: TrainingInputs, log: Any) -> TrainResult:
    progress = reporter() if first_process() else Silent()

    context = TrainContext(
        device=choose_device(inputs.device),
        log=log or Silent(),
        progress=progress,
        notify=lambda line: print_note(f"train {inputs.recipe.name}: {line}"),
        workers=inputs.num_workers,
        save_seconds=inputs.save_seconds,
        keep_every=inputs.keep_every,
    )
    return train(
        inputs.recipe,
        init=inputs.init,
        pairs=open_pairs(inputs.pairs, progress),
        labels=open_labels(inputs.labels) if inputs.recipe.tasks else None,
        out=inputs.out,
        context=context,
    )


def _train_in_run(tracker: Tracker, inputs: TrainingInputs) -> TrainedWeights:
    recipe = inputs.recipe
    params = {key: value for key, value in recipe.settings().items() if key != "name"}
    tags = {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "backbone": recipe.name,
        "experts": ",".join(recipe.tasks),
        "architecture": _architecture(inputs),
        **computing_tags(inputs.device),
    }
    title = f"train {recipe.name} · seed {recipe.seed}"
    parent = Run(tracker, inputs.parent, "") if inputs.parent else None
    with stage_run(tracker, "train", title, tags, params, parent) as run:
        pairs = open_pairs(inputs.pairs, Silent())
        result = _train(inputs, run)
        _log_result(run, inputs, result)
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


def _architecture(inputs: TrainingInputs) -> str:
    """What is trained, as far as its speed depends on it."""
    if Path(inputs.init).is_file():
        return load_checkpoint(inputs.init).architecture or inputs.init
    model = inputs.recipe.model if inputs.init in ("random", "imagenet") else inputs.init
    return f"open_clip/{model.removeprefix('open_clip/').partition('/')[0]}"


def _log_result(run: Run, inputs: TrainingInputs, result: TrainResult) -> None:
    run.set_tags(
        {
            TAGS["train_key"]: result.key,
            TAGS["weights"]: result.sha256,
            TAGS["weights_file"]: str(result.path.absolute()),
        }
    )
    metrics = {k: v for k, v in result.metrics.items() if k.startswith("val/")}
    metrics |= {f"cost/{key}": value for key, value in result.cost.items()}
    run.log_metrics({**metrics, "cost/disk_bytes": result.path.stat().st_size})
    run.log_json(
        {
            "recipe": inputs.recipe.settings(),
            "init": inputs.init,
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
    if name != "clip":  # whose name stands for one architecture on the command line
        text += (
            f"```\npython -m benchmark run --backbone {name} --weights {path} --suite paper"
            " --data-root DIR\n```"
        )
    return text
