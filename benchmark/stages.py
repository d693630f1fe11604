"""The stages before probing – experts, labels, weights – as units of work that log to MLflow.

What is made is a dataclass of plain values (``ExpertTraining``, ``LabelRequest``, ``Training``). A
coroutine makes it through an executor (``make_expert``, ``label_pairs``, ``train_weights``);
finished work is found and returned.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import torch

import backbones
import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
from backbones.checkpoint import load_checkpoint
from backbones.cliptex.batches import training_size
from backbones.cliptex.experts.base import CONFIG, load_experts
from backbones.cliptex.experts.fit import train_expert
from backbones.cliptex.labelling import (
    LabelledShard,
    Labeller,
    LabelSettings,
    draw_labels,
    finish_labels,
    labels_writer,
)
from backbones.cliptex.labels import MANIFEST, JoinedLabels, LabelStore, LabelWriter
from backbones.cliptex.pairs import FailureCounter, PairSource, open_pairs
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.train import TrainResult, check_training, find_trained, states_folder, train
from backbones.cliptex.trainer import (
    States,
    TrainContext,
    end_with_launcher,
    first_process,
    torchrun_environment,
)
from benchmark.executor import (
    Executor,
    Priority,
    choose_device,
    exclusive,
    exclusive_async,
)
from benchmark.progress import console, reporter
from benchmark.unit import as_interrupt, drop_last_model, keep_last_model
from cliptex_common.device import device_name
from cliptex_common.errors import NotDownloaded, UserError, hide_secrets
from cliptex_common.files import home, mark_in_use
from cliptex_common.progress import Progress, RunLog, Silent
from reports.provenance import environment
from reports.records import TAGS, cost_metrics
from reports.store import Store, read_run
from reports.tables import count
from reports.tracking import Run, Tracker, logged_model


def print_note(line: str) -> None:
    """Print what a user may want to know about a stage."""
    console.print(f"  note · {line}", style="dim")


@contextmanager
def stage_run(
    tracker: Tracker,
    stage: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: Run | None = None,
) -> Iterator[Run]:
    """The MLflow run of a stage, under ``parent``."""
    tags = {"stage": stage, "suite": tracker.experiment, **tags}
    with (
        tracker.run(name, tags=tags, params=params, parent=parent, monitored=True) as run,
        as_interrupt(),
    ):
        yield run


def computing_tags(device: str) -> dict[str, str]:
    """The tags of a run that say what it computes on."""
    return {
        TAGS["device"]: device_name(choose_device(device)),
        "threads": str(torch.get_num_threads()),
    }


@dataclass(frozen=True)
class ExpertTraining:
    """The training of an expert, in plain values.

    Attributes:
        name: of the expert.
        data_root: with the ground truth of its task, see ``Task.ground_truth``.
        out: its folder.
        settings: changes to its settings.
        experiment: in MLflow.
    """

    name: str
    data_root: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    experiment: str = "experts"

    def find(self) -> dict[str, Any] | None:
        """The expert's ``expert.json`` if it is trained."""
        path = self.out / CONFIG
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


async def make_expert(
    training: ExpertTraining, executor: Executor, priority: int = Priority.DEFAULT
) -> dict[str, Any]:
    """``expert_unit`` through an executor, on its device."""
    training = replace(training, device=executor.device)
    name = f"expert {training.name}"
    return await executor.run(expert_unit, training, name=name, kind="expert", priority=priority)


def expert_unit(training: ExpertTraining) -> dict[str, Any]:
    """Train an expert unless another process has done so; a unit of work. Returns its
    ``expert.json``, with its accuracy on ground truth.

    Raises:
        UserError: as ``backbones.cliptex.experts.fit.train_expert``.
    """
    drop_last_model()
    with exclusive(training.out):
        if training.find() is not None:
            return _train_expert(training, Silent())  # only checks its settings
        tags = {
            "expert": training.name,
            "seed": str(training.seed),
            **computing_tags(training.device),
        }
        title = f"expert {training.name} · seed {training.seed}"
        tracker = Tracker(training.experiment)
        with stage_run(tracker, "experts", title, tags, training.settings) as run:
            expert = _train_expert(training, run)
            run.log_json(expert, CONFIG)
            costs = {"train_seconds": expert["seconds"], "train_flops": expert["flops"]}
            run.log_metrics(cost_metrics(costs))
            run.set_tags(
                {
                    TAGS["weights"]: expert["sha256"],
                    TAGS["weights_file"]: str(training.out.absolute()),
                }
            )
    accuracy = ", ".join(f"{key} {value:.3g}" for key, value in expert["accuracy"].items())
    console.print(f"  expert {training.name}: {accuracy}  {expert['seconds']:.0f} s")
    return expert


def _train_expert(training: ExpertTraining, log: Any) -> dict[str, Any]:
    """Train; of a finished expert, check that it was trained with these settings."""
    context = TrainContext(choose_device(training.device), log, reporter())
    return train_expert(
        training.name,
        training.data_root,
        training.out,
        context,
        training.settings,
        training.seed,
    )


@dataclass(frozen=True)
class LabelRequest:
    """What is labelled, in plain values.

    Attributes:
        pairs: image-caption pairs, as ``--pairs`` takes them.
        experts: ``NAME=PATH`` each.
        out: the store's folder; None: a folder under ``$CLIPTEX_HOME`` by the experts' content, so
            that retrained experts write new labels.
        settings: size of the labels.
        batch_size: images of one size that experts see at once.
        device, num_workers: of the executor.
        experiment: in MLflow.
        name: of the pairs, in the name of a folder under ``$CLIPTEX_HOME``.
        priority: of the units, see ``Executor.submit``.
    """

    pairs: str
    experts: tuple[str, ...]
    out: Path | None = None
    settings: LabelSettings = field(default_factory=LabelSettings)
    batch_size: int = 32
    device: str = "auto"
    num_workers: int = 2
    experiment: str = "label"
    name: str = "pairs"
    priority: int = Priority.DEFAULT

    def folder(self, key: str) -> Path:
        """The store's folder, by the ``key`` of its manifest."""
        return (self.out or home() / "labels" / f"{self.name}-{key[:8]}").absolute()

    def open(self, bar: Any = None, keep: bool = True) -> tuple[PairSource, LabelWriter]:
        """The pairs and the writer of their labels; with ``keep`` False nothing is written."""
        source = open_pairs(self.pairs, bar, keep=keep)
        experts = load_experts(list(self.experts), "cpu")  # for the key: their content
        return source, labels_writer(source, experts, self.settings, self.folder)


def find_labels(request: LabelRequest) -> LabelStore | None:
    """The finished store of these labels, if there is one; nothing is written."""
    _, writer = request.open(keep=False)
    return LabelStore(writer.root) if (writer.root / MANIFEST).is_file() else None


async def label_pairs(request: LabelRequest, executor: Executor) -> LabelStore:
    """Label every pair with every expert; finished shards are reused.

    Raises:
        UserError: experts or pairs that cannot be used, a folder with labels of others, or more
            pairs than a training accepts cannot be read.
    """
    request = replace(request, device=executor.device, num_workers=executor.num_workers)
    source, writer = request.open(executor.bar)
    mark_in_use(writer.root)
    async with exclusive_async(writer.root):
        failures, pending = FailureCounter("pairs"), []
        for number, shard in enumerate(source.shards):
            if summary := writer.finished(shard.name, print_note):
                _count_failures(failures, summary["failed"], len(source))
            else:
                pending.append(number)
            await asyncio.sleep(0)  # other coroutines run meanwhile
        if not pending and (writer.root / MANIFEST).is_file():
            return LabelStore(writer.root)
        tags = {TAGS["labels_file"]: str(writer.root)}
        params = {
            "experts": ",".join(name.partition("=")[0] for name in request.experts),
            "pairs": source.name,
            "count": len(source),
        }
        title = f"label {PurePath(source.name).name}"
        with stage_run(Tracker(request.experiment), "label", title, tags, params) as run:
            executor.overview.expected["label"] = len(pending)
            steps = itertools.count(1)
            at_once = asyncio.Semaphore(2 * executor.slots)  # one runs, one waits, for each worker

            async def label_shard(number: int) -> None:
                arguments = request, writer, number
                name = f"label {source.shards[number].name}"
                async with at_once:
                    shard, device = await executor.run(
                        label_unit, *arguments, name=name, kind="label", priority=request.priority
                    )
                run.set_tags({TAGS["device"]: device})
                if shard.images:
                    speed = shard.images / max(shard.seconds, 1e-9)
                    run.log_metrics({"label/images_per_second": speed}, next(steps))
                _count_failures(failures, shard.failed, len(source))

            try:
                async with asyncio.TaskGroup() as group:  # the first failure cancels the others
                    for number in pending:
                        group.create_task(label_shard(number))
            except ExceptionGroup as errors:
                raise errors.exceptions[0]  # noqa: B904 – keeps its own cause
            finally:
                drop_last_model()  # units of this process loaded the experts
            finish_labels(source, writer)
            store = LabelStore(writer.root)
            _log(run, store, source)
    return store


def preview_labels(request: LabelRequest, executor: Executor) -> None:
    """Print which shards are labelled and which are to do, and where. Raises ``UserError`` as
    ``label_pairs``."""
    source, writer = request.open(keep=False)
    shards, pending, failures = source.shards, [], FailureCounter("pairs")
    for shard in shards:
        if summary := writer.finished(shard.name, print_note, hashed=False):
            _count_failures(failures, summary["failed"], len(source))
        else:
            pending.append(shard)
    console.print(
        f"{len(source)} pairs in {count(len(shards), 'shard')}:"
        f" {len(shards) - len(pending)} labelled, {len(pending)} to do"
        f" ({sum(shard.count for shard in pending)} pairs)",
    )
    print_preview(executor, [f"label {shard.name}" for shard in pending])


def label_unit(
    request: LabelRequest, writer: LabelWriter, number: int
) -> tuple[LabelledShard, str]:
    """Label one shard of the pairs unless it is labelled; a unit of work. Returns the shard and the
    kind of device."""
    labeller = _labeller(request, writer.root, writer.key)
    shard = labeller.label(labeller.source.shards[number], reporter(), print_note)
    return shard, device_name(choose_device(request.device))


@keep_last_model
def _labeller(request: LabelRequest, root: Path, key: str) -> Labeller:
    """Loads the experts once for all shards that a process labels."""
    source = open_pairs(request.pairs)
    experts = load_experts(list(request.experts), choose_device(request.device))
    writer = labels_writer(source, experts, request.settings, root)
    if writer.key != key:
        raise UserError(
            "the experts or pairs changed while they were labelled; run the command again"
        )
    return Labeller(
        source, experts, writer, request.settings, request.batch_size, request.num_workers
    )


def _count_failures(failures: FailureCounter, failed: Any, total: int) -> None:
    failures.bad |= dict(failed)
    failures.check(total)


def _log(run: Run, store: LabelStore, source: PairSource) -> None:
    manifest = store.manifest
    run.log_json(manifest, MANIFEST)
    run.log_dataset(source.name, source.fingerprint, "labelling", pairs=len(source))
    cost = manifest["cost"]
    costs = {
        "label_seconds": cost["seconds"],
        "label_flops": cost["flops"],
        "images_per_second": cost["images"] / max(cost["seconds"], 1e-9),
        "disk_bytes": manifest["bytes_per_image"] * manifest["pairs_out"],
    }
    for name, seconds in cost["expert_seconds"].items():
        costs[f"label_seconds/{name}"] = seconds
        costs[f"images_per_second/{name}"] = cost["images"] / max(seconds, 1e-9)
    run.log_metrics({**cost_metrics(costs), "bytes_per_image": manifest["bytes_per_image"]})
    with TemporaryDirectory() as folder:
        picture = Path(folder) / "labels.png"
        draw_labels(store.root, source, picture)
        run.log_file(picture, "pictures")


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
    """The fields of the result of a training, and ``run``: the MLflow run that trained the weights,
    '' if it is not in this store."""

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
    """The weights of ``training`` if they are trained.

    Args:
        tracker: None in a dry run, which writes nothing and does not look for the run.
        inputs: of ``Training.inputs``, if they are open already.
    """
    inputs = inputs or training.inputs(keep=tracker is not None)
    result = find_trained(training.recipe, **inputs, device=choose_device(training.device))
    if result is None:
        return None
    run = tracker.finished(**{TAGS["train_key"]: result.key}) if tracker is not None else None
    return TrainedWeights(**vars(result), run=run.run_id if run is not None else "")


def trained_weights(run_id: str) -> Path:
    """The weights of a finished training: those stored with its MLflow run, else the file that it
    wrote. Raises ``UserError`` if there are none."""
    from mlflow.exceptions import MlflowException

    store = Store()
    try:
        run = read_run(store.client.get_run(run_id))
    except MlflowException as error:
        raise UserError(f"run:{run_id}: no such run in {hide_secrets(store.uri)}") from error
    path = Path(run.tags.get(TAGS["weights_file"], ""))
    if not (run.is_finished and path.name):
        raise UserError(f"run:{run_id} is no finished training; `train` prints the id of its run")
    return store.artifact(run, f"weights/{path.name}") or path


async def train_weights(
    training: Training, executor: Executor, priority: int = Priority.DEFAULT
) -> TrainedWeights:
    """``train_unit`` through an executor, on its device."""
    training = replace(training, device=executor.device, num_workers=executor.num_workers)
    return await executor.run(
        train_unit, training, name=training.title, kind="train", priority=priority
    )


def preview_training(training: Training, executor: Executor) -> None:
    """Print whether a training is done, or how many steps are to do, and where. Raises
    ``UserError`` as ``train_unit``."""
    recipe, pairs = training.recipe, open_pairs(training.pairs, Silent(), keep=False)
    used, steps = training_size(recipe, pairs)
    line = (
        f"{recipe.name}: {used} of {len(pairs)} pairs in {count(len(pairs.shards), 'shard')} ×"
        f" {recipe.epochs:g} epochs = {steps} steps of {recipe.batch_size}"
    )
    saved = States(states_folder(training.out), "").steps()
    try:
        if is_finished := find_weights(training, None) is not None:
            line += f"; {training.out} holds these weights: nothing is to do"
        else:
            check_training(recipe, **training.inputs(keep=False))
    except NotDownloaded as error:
        is_finished = False
        print_note(str(error))
    if not is_finished and saved and saved[0] < steps:
        line += f"; it resumes from step {saved[0]} if that was saved by the same training"
    console.print(line)
    if not is_finished:
        print_preview(executor, [training.title])


def print_preview(executor: Executor, names: Sequence[str]) -> None:
    """Print how the units of a dry run would run."""
    for line in executor.preview(names) if names else ():
        console.print(f"  {line}")


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
        return TrainedWeights(**vars(_train_weights(training, inputs, Silent())))
    tracker = Tracker(training.experiment)
    with exclusive(training.out):
        weights = find_weights(training, tracker, inputs)
        if weights is None:
            return _train_in_run(tracker, training, inputs)
        if torchrun_environment().get("WORLD_SIZE", 1) > 1:
            # the other processes are in this call, and wait for the first before it returns
            _train_weights(training, inputs, Silent())
        return weights


def _train_weights(training: Training, inputs: Mapping[str, Any], log: RunLog) -> TrainResult:
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
        result = _train_weights(training, inputs, run)
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
