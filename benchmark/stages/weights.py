"""Backbones' weights: a training as one unit of work, and an MLflow run that keeps what it made and
says how to load it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backbones
from backbones.checkpoint import load_checkpoint
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.joined import JoinedLabels
from backbones.cliptex.labels.store import LabelStore
from backbones.cliptex.protocols import Silent
from backbones.cliptex.training.distributed import (
    end_with_launcher,
    first_process,
    torchrun_environment,
)
from backbones.cliptex.training.recipes import WITHOUT_EFFECT, Recipe
from backbones.cliptex.training.train import TrainContext, TrainResult, find_trained, train
from benchmark.cost import choose_device, device_kind
from benchmark.execution.base import Executor
from benchmark.execution.progress import console, reporter
from benchmark.stages.stage import one_maker, stage_run
from common.secrets import hide_secrets
from reports.mlflow.environment import environment
from reports.mlflow.models import logged_model
from reports.mlflow.run import Run, Tracker
from sweeps.errors import TrialPruned

if TYPE_CHECKING:
    from sweeps.pruning import Pruning


@dataclass(frozen=True)
class TrainingInputs:
    """A training, in plain values: any process that sees the files can run it.

    Attributes:
        recipe: what is trained and how; init: initial weights, as ``--init`` takes them.
        pairs: image-caption pairs, as ``--pairs`` takes them.
        labels: stores of their labels; where a pair has labels in several, the first counts.
        out: where the weights go.
        device, num_workers: where and how it is computed; never change the result beyond rounding.
        save_seconds: between savings of what a killed training goes on from; keep_every: steps
            between exports on the way.
        experiment: in MLflow; parent: id of the run that this one nests under, '' for none.
        pruning: stops the training of a bad trial.
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
    pruning: Pruning | None = None


@dataclass(frozen=True)
class TrainedWeights(TrainResult):
    """What a training made, or found: ``run`` is the id of the MLflow run that trained them, ''
    when it is not in this store."""

    run: str = ""

    @property
    def spent(self) -> dict[str, float]:
        """What it cost to make them."""
        return {key: self.cost[key] for key in ("train_seconds", "train_flops") if key in self.cost}


def open_labels(stores: tuple[Path, ...]) -> Any:
    """The label stores as one: where a pair has labels in several, the first counts; None without
    any."""
    opened = [LabelStore(path) for path in stores]
    return JoinedLabels(opened) if len(opened) > 1 else (opened[0] if opened else None)


def find_weights(inputs: TrainingInputs, tracker: Tracker) -> TrainedWeights | None:
    """The weights of ``inputs`` when they are there already."""
    labels = open_labels(inputs.labels) if inputs.recipe.tasks else None
    pairs = open_pairs(inputs.pairs, Silent())
    found = find_trained(
        inputs.recipe,
        init=inputs.init,
        pairs=pairs,
        out=inputs.out,
        labels=labels,
        device=choose_device(inputs.device),
    )
    if found is None:
        return None
    run = tracker.finished(**{"train.key": found.key})
    return TrainedWeights(**vars(found), run=run.info.run_id if run is not None else "")


def architecture_of(inputs: TrainingInputs) -> str:
    """What is trained, as far as a training's speed goes; nothing is fetched."""
    if Path(inputs.init).is_file():
        return load_checkpoint(inputs.init).architecture or inputs.init
    built = inputs.recipe.model if inputs.init in ("random", "imagenet") else inputs.init
    return f"open_clip/{built.removeprefix('open_clip/').partition('/')[0]}"


def speed_filter(inputs: TrainingInputs) -> str:
    """The MLflow filter for trainings that are as quick as this one on the same device."""
    settings = inputs.recipe.settings()
    same = {
        "tags.stage": "train",
        "tags.architecture": architecture_of(inputs),
        "tags.experts": ",".join(inputs.recipe.tasks),
        **{
            f"params.{name}": str(settings[name])
            for name in ("image_size", "precision", *WITHOUT_EFFECT)
        },
    }
    return " and ".join(f"{name} = '{value}'" for name, value in same.items() if value)


async def train_stage(
    inputs: TrainingInputs, executor: Executor, priority: int = 0
) -> TrainedWeights:
    """``train_unit`` through an executor, which says where and how it computes."""
    inputs = replace(inputs, device=executor.device, num_workers=executor.num_workers)
    name = f"train {inputs.recipe.name} · seed {inputs.recipe.seed}"
    return await executor.run("train", train_unit, inputs, name=name, priority=priority)


def train_unit(inputs: TrainingInputs) -> TrainedWeights:
    """Train, or find what another process has trained meanwhile; one unit of work, under torchrun
    one of its processes.

    Raises:
        UserError, NonFiniteLoss: as ``backbones.cliptex.training.train.train``.
        TrialPruned: the training was stopped as a bad trial.
    """
    end_with_launcher()
    if not first_process():
        return TrainedWeights(**vars(_train(inputs, None)))
    tracker = Tracker(inputs.experiment)
    with one_maker(inputs.out):
        if found := find_weights(inputs, tracker):
            if torchrun_environment().get("WORLD_SIZE", 1) > 1:
                _train(
                    inputs, None
                )  # returns at once; the others wait in it to hear that nothing is to be done
            return found
        return _train_in_run(tracker, inputs)


def _train(inputs: TrainingInputs, log: Any) -> TrainResult:
    progress = reporter() if first_process() else Silent()

    def notify(line: str) -> None:
        console.print(f"  note · train {inputs.recipe.name}: {line}", style="dim", markup=False)

    context = TrainContext(
        device=choose_device(inputs.device),
        log=log or Silent(),
        progress=progress,
        notify=notify,
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
    params = {k: v for k, v in recipe.settings().items() if k != "name"}
    name = f"train {recipe.name} · seed {recipe.seed}"
    tags = {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "backbone": recipe.name,
        "experts": ",".join(recipe.tasks),
    }
    tags["architecture"] = architecture_of(inputs)
    tags["device.kind"] = device_kind(choose_device(inputs.device))
    parent = Run(tracker, inputs.parent, "") if inputs.parent else None
    with stage_run(tracker, "train", name, tags, params, parent) as run:
        pairs = open_pairs(inputs.pairs, Silent())
        per_epoch = max(1, (len(pairs) - recipe.val_pairs) // recipe.batch_size)  # steps
        try:
            result = _train(
                inputs, inputs.pruning.watched(run, per_epoch) if inputs.pruning else run
            )
        except TrialPruned:
            shutil.rmtree(inputs.out.with_name(f"{inputs.out.name}.resume"), ignore_errors=True)
            raise
        run.set_tags(
            {
                "train.key": result.key,
                "weights.sha256": result.sha256,
                "weights.file": str(result.path.absolute()),
            }
        )
        cost = {**result.cost, "disk_bytes": result.path.stat().st_size}
        run.log_metrics({f"cost/{key}": value for key, value in cost.items()})
        run.log_metrics({k: v for k, v in result.metrics.items() if k.startswith("val/")})
        run.log_dataset(pairs.name, pairs.fingerprint, "training", pairs=len(pairs))
        run.log_json(
            {
                "recipe": recipe.settings(),
                "init": inputs.init,
                "environment": environment(),
                "notes": result.notes,
            },
            "train.json",
        )
        # those of a sweep's many trials, and enormous ones, stay where they are: MLflow has their
        # path and sha256
        kept = parent is None and result.path.stat().st_size <= MOST_BYTES
        # a recipe file's name may be any: it is loaded as the recipe's own backbone only where one
        # has its name
        name = recipe.name if recipe.name in backbones.names() else "cliptex"
        about = {
            "backbone": recipe.name,
            "weights.source": str(result.path.absolute()),
            "weights.artifact": f"runs:/{run.id}/weights/{result.path.name}" if kept else "",
        }
        facts = {"architecture": tags["architecture"], "seed": recipe.seed, **params}
        run.log_models(
            outputs=[logged_model(tracker, recipe.name, result.sha256, facts, about, run.id)]
        )
        if kept:
            run.log_file(result.path, "weights")
            run.log_text(LOADER.format(name=name, file=result.path.name), "weights/load.py")
        run.describe(
            _how_to_load(result, recipe.name, name, run.id if kept else "", run.tracker.uri)
        )
    return TrainedWeights(**vars(result), run=run.id)


LOADER = '''"""Load the weights beside this file as a frozen backbone: ``from load import load``."""

from pathlib import Path

import backbones


def load():
    weights = Path(__file__).with_name({file!r})
    return backbones.create({name!r}, weights=str(weights), any_architecture=True)
'''
# of weights that are copied to MLflow: a ViT-L is; bigger ones are kept by reference
MOST_BYTES = 4_000_000_000


def _how_to_load(result: TrainResult, recipe: str, name: str, run_id: str, uri: str) -> str:
    """The description of a training run; the store is named, so that the command holds in every
    folder (not with a password)."""
    store = f"MLFLOW_TRACKING_URI={uri} " if hide_secrets(uri) == uri else ""
    path = result.path.absolute()
    kept = (
        f"They are kept with this run:\n\n```\n{store}mlflow artifacts download -r {run_id} -a"
        " weights -d .\n"
        f'python -c "from weights.load import load; print(load())"\n```\n\n'
        if run_id
        else ""
    )
    create = f"backbones.create({name!r}, weights={str(path)!r}, any_architecture=True)"
    probe = (
        f"python -m benchmark run --backbone {name} --weights {path} --suite paper --data-root DIR"
    )
    return (
        f"Weights of `{recipe}`: `{path}` (sha256 `{result.sha256[:16]}…`).\n\n{kept}"
        f"```python\nimport backbones\nbackbone = {create}\n```\n\n"
        + ("" if name == "clip" else f"```\n{probe}\n```")
        # on the command line `clip` is one architecture, which these weights need not have
    )
