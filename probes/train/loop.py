"""Training that all MMEngine probes share: seeded samples, exact resume, one loop for many heads.

A probe's config has model, data, optimizer, schedule and evaluator; ``resolved`` adds what is true
of every training. ``train_together`` trains the heads of several such configs in one loop, on the
same batches, and ``run_training`` trains one.

Neither the number of loading processes by itself, nor a stop and a resume, nor the other heads of
the group change what is computed.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any, TypeVar

import cv2
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.logging.logger import MMFormatter
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    FUNCTIONS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    DefaultScope,
)
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import probes.train.schedules  # noqa: F401  registers what configs name
from backbones.tuning import Average
from cliptex_common.device import (
    is_out_of_memory,
    memory_log,
    out_of_memory,
    prefers_bf16,
    processor_seconds,
    takes_pinned_memory,
)
from cliptex_common.errors import NonFiniteLoss, OutOfMemory
from cliptex_common.files import content_key
from cliptex_common.progress import MAX_SHARE
from probes.base import Context, Cost, Head, load_state, save_state
from probes.datasets.base import PreparedDataset
from probes.team import Counts, Parts, Team, portable, restored, seed_part, team_of
from probes.train import frozen_backbone
from probes.train.sampling import (
    EndlessSampler,
    GroupDataset,
    SeededSamples,
    isolated_rng,
    rows_of,
    seed_iteration,
    smallest_batches,
)

K = TypeVar("K", bound=Hashable)


def resolved(config: Config, context: Context) -> Config:
    """A config with what its training adds: samples and iterations that follow from the seed, and
    one evaluation at the end. Its ``pretty_text`` is what ``Probe.config`` returns. This package
    trains it by the loop below, and mmengine's Runner, which takes it as it is, gives the same
    weights.

    Args:
        config: of a probe, with ``default_scope``, ``model``, ``train_dataloader`` and
            ``val_dataloader`` (``batch_size``, ``dataset`` and further options), ``val_evaluator``,
            ``optim_wrapper``, ``param_scheduler`` (by iteration) and
            ``train_cfg=dict(max_iters=…)``; ``custom_imports`` of the modules that register its
            own types.
        context: gives seed and loading processes.
    """
    config, seed = copy.deepcopy(config), context.seed
    imports = [
        "probes.train.frozen_backbone",
        "probes.train.sampling",
        *config.custom_imports.imports,
    ]
    config.custom_imports = {"imports": list(dict.fromkeys(imports)), "allow_failed_imports": False}
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.setdefault("num_workers", context.num_workers)
    config.train_dataloader.dataset = {
        "type": "SeededSamples",
        "seed": seed,
        "dataset": config.train_dataloader.dataset,
        "shuffle": context.settings.shuffle,
    }
    config.train_dataloader.sampler = {"type": "EndlessSampler"}
    config.val_dataloader.sampler = {"type": "DefaultSampler", "shuffle": False}
    config.custom_hooks = [{"type": "SeedEachIteration", "seed": seed}]
    if context.settings.is_tuned and context.settings.ema:
        config.custom_hooks.append({"type": "EMAHook", "momentum": 1 - context.settings.ema})
    config.randomness = {"seed": seed % 2**32}
    config.train_cfg.update(by_epoch=False, val_interval=config.train_cfg.max_iters)
    config.val_cfg = {}
    config.work_dir = f"work_dirs/{context.data.spec.name}"  # not this run's scratch folder
    return config


def config_text(config: Config | None, context: Context, build: Callable[[Context], Config]) -> str:
    """``resolved`` as text, whose training set has no more images than are trained on.

    Args:
        config: of the training, if it is built already; its set may have those of other tasks.
        build: builds it.
    """
    used = replace(context, data=context.data.without_unused)
    if config is None or context.training.data.full_train:
        config = build(used)
    return resolved(config, used).pretty_text


def run_training(config: Config, context: Context, description: str) -> HeadTrainer:
    """``train_together`` of one head. Raises its error, ``NonFiniteLoss`` among others."""
    result = train_together({0: (config, context)}, description=description)[0]
    if isinstance(result, Exception):
        raise result
    return result


def train_together(
    heads: Mapping[K, tuple[Config, Context]],
    *,
    description: str,
    leave_out: Sequence[int] = (),
    finish: Callable[[K, HeadTrainer], Any] = lambda key, trainer: trainer,
    team: Team | None = None,
) -> dict[K, Any]:
    """Train all heads in one loop, on the same batches, and evaluate all in another.

    A head is a pair: its config (as for ``resolved``) and its task's context; it resumes from its
    ``work_dir``. Returns, by the keys of ``heads``, the ``HeadTrainer`` of each (or the value of
    ``finish``), or the ``Exception`` that it failed with.

    The heads must share backbone, seed and device, and their data must be the same photographs in
    the same order, with equal settings of batches and geometry; ground truth, model, optimizer,
    schedule and length may differ. On a CPU the same seed gives the same weights and metrics, bit
    by bit, whatever the number of loading processes, however often training was stopped, and
    whichever heads are in the group.

    The group starts at the iteration of the head that is furthest behind; a head that is ahead,
    because it was stopped later, waits until the group reaches its iteration.

    mmengine's log goes to files in each ``work_dir``; loss and learning-rate curves go to each
    ``context.log`` as ``train/loss``, ``train/lr`` …; the first context's ``progress`` shows the
    progress of the group.

    Args:
        description: of the progress bar, e.g. the tasks' names.
        leave_out: items of the training set that are not trained on.
        finish: called with the key and the trainer of each head while the data are still open.
        team: in another process than its first: train as one of it, and return nothing. Else heads
            whose backbone is tuned with ``accumulate`` make one themselves, where there are several
            accelerators.

    Raises:
        Exception: what failed for all heads: an image that cannot be read, for example.
    """
    first_config, context = next(iter(heads.values()))
    frozen_backbone.share(context.backbone_config, context.backbone)
    cv2.setNumThreads(0)  # its threads do not survive the fork of loading processes
    with (
        logging_to([each.work_dir for _, each in heads.values() if team is None]),
        DefaultScope.overwrite_default_scope(first_config.default_scope),
        ExitStack() as stack,
    ):
        train, val = (
            GroupDataset([config[loader].dataset.to_dict() for config, _ in heads.values()])
            for loader in ("train_dataloader", "val_dataloader")
        )
        group_context, notes = replace(context, cost=Cost()), list[str]()
        # each a ``FeatureDataset``
        for dataset in (*train.datasets, *val.datasets):
            stack.callback(dataset.close)  # till then no other process can remove the features
            dataset.open(group_context)
            notes += [note for store in dataset.stores for note in store.notes]
        leave_out = sorted({*leave_out, *unused_items(train.datasets[0], context.data)})
        results: dict[K, Any] = {}
        trainers: dict[K, HeadTrainer] = {}
        for index, (key, (config, each)) in enumerate(heads.items()):
            try:
                trainers[key] = HeadTrainer(config, each, leave_out, index, train, val)
            except Exception as error:
                results[key] = failure_of(error, each)
        if training := [trainer for trainer in trainers.values() if trainer.trains]:
            samples = SeededSamples(train, context.seed, leave_out, context.settings.shuffle)
            each_task = {key: (config, portable(each)) for key, (config, each) in heads.items()}
            with ExitStack() as processes:
                if team is None:
                    numbers, tensors = zip(*(each.counts for each in training), strict=True)
                    most = max(numbers), max(tensors)
                    batch = first_config.train_dataloader.batch_size
                    args = group_context, most, batch, _follow, each_task, leave_out
                    team = processes.enter_context(team_of(*args))
                _train(list(trainers.values()), train, samples, description, team)
        if team is not None and team.rank:
            for trainer in trainers.values():
                if trainer.error is not None:
                    raise trainer.error
            return {}
        if trained := [trainer for trainer in trainers.values() if trainer.error is None]:
            _evaluate(trained, val, description)
        for key, trainer in trainers.items():
            trainer.notes = notes
            trainer.cost.add(group_context.cost, 1 / len(heads))
            with failing_alone(trainer):  # an error of ``finish`` is the trainer's, too
                if trainer.error is None:
                    results[key] = finish(key, trainer)
            results[key] = trainer.error or results[key]
    gc.collect()  # reference cycles hold loading processes and features
    return results


def _follow(
    team: Team,
    device: torch.device,
    heads: Mapping[K, tuple[Config, Context]],
    leave_out: Sequence[int],
) -> None:
    """``train_together`` in another process of a team."""
    for config, _ in heads.values():
        import_modules_from_strings(config.custom_imports.imports)
    contexts = restored([context for _, context in heads.values()], device)
    pairs = zip(heads.items(), contexts, strict=True)
    restored_heads = {key: (config, context) for (key, (config, _)), context in pairs}
    train_together(restored_heads, description="", leave_out=leave_out, team=team)


def unused_items(dataset: Any, data: PreparedDataset) -> list[int]:
    """Items of a training set that are not in the share of train to train on; see
    ``PreparedDataset.full_train``."""
    if not data.full_train:
        return []
    used = {str(data.root / sample.image) for sample in data.samples["train"]}
    return [
        item for item in range(len(dataset)) if dataset.get_data_info(item)["img_path"] not in used
    ]


def _train(
    trainers: Sequence[HeadTrainer],
    dataset: GroupDataset,
    samples: SeededSamples,
    description: str,
    team: Team | None,
) -> None:
    """Train all heads on the samples of one loader."""
    context, loader = trainers[0].context, dict(trainers[0].config.train_dataloader)
    iteration = min(trainer.iteration for trainer in trainers if trainer.trains)
    batch = loader["batch_size"]
    parts = Parts(batch, context.settings.accumulate, team)
    sampler = EndlessSampler(samples, batch=batch, rows=parts.loaded)
    loader["batch_size"] = len(parts.loaded)
    sampler.skip(iteration * batch)
    context.progress.start(description, max(trainer.max_iters for trainer in trainers))
    context.progress.advance(iteration)
    for trainer in trainers:
        trainer.model.train()
    preprocessor = trainers[0].model.data_preprocessor
    last, busy = time.perf_counter(), processor_seconds(context.device)
    with _batches(_loader(loader, samples, sampler, context)) as loaded:
        while any(trainer.trains for trainer in trainers):
            data = next(loaded)
            current = [each for each in trainers if each.trains and each.iteration == iteration]
            if current:
                batches = {
                    number: _prepare(trainers, dataset, preprocessor, part)
                    for number, part in parts.split(partial(rows_of, data)).items()
                }
                current = [trainer for trainer in current if trainer.error is None]
            with frozen_backbone.one_batch():
                for trainer in current:
                    with _leaving_alone(trainer):
                        own = {number: each[trainer.index] for number, each in batches.items()}
                        trainer.step(parts, own)
            now = time.perf_counter()
            seconds, last = now - last, now  # loading and waiting, too
            now = processor_seconds(context.device)
            working, busy = now - busy, now
            for trainer in current:
                trainer.cost.seconds["train"] += seconds / len(current)
                trainer.cost.processor_seconds += working / len(current)
                if trainer.error is None:
                    with _leaving_alone(trainer):
                        trainer.check_and_save(parts.is_first)
            iteration += 1
            context.progress.advance()


@contextmanager
def _leaving_alone(trainer: HeadTrainer) -> Iterator[None]:
    """``failing_alone``; a trainer that fails leaves the device, too."""
    with failing_alone(trainer):
        yield
    if trainer.error is not None:
        trainer.discard()


def _prepare(
    trainers: Sequence[HeadTrainer], dataset: GroupDataset, preprocessor: nn.Module, data: Any
) -> list[dict[str, Any]]:
    """A batch for training. While it does not fit, the head with most parameters leaves."""
    while training := [trainer for trainer in trainers if trainer.trains]:
        try:
            return dataset.batches(preprocessor, data, True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = failure_of(error, training[0].context)
        largest = max(
            training, key=lambda trainer: sum(map(Tensor.numel, trainer.model.parameters()))
        )
        largest.error = failure
        largest.discard()
    return []


@torch.no_grad()
def _evaluate(trainers: Sequence[HeadTrainer], dataset: GroupDataset, description: str) -> None:
    """Score all heads on the same batches, which are no larger than each may have alone."""
    context, started = trainers[0].context, time.perf_counter()
    sampler = DefaultSampler(dataset.datasets[0], shuffle=False)
    options = smallest_batches([trainer.config.val_dataloader for trainer in trainers])
    loader = _loader(options, dataset, sampler, context)
    for trainer in trainers:
        trainer.average.apply()
        trainer.model.eval()
        trainer.evaluator.dataset_meta = trainer.val_dataset.metainfo
    preprocessor = trainers[0].model.data_preprocessor
    context.progress.start(f"{description}: evaluation", len(loader))
    with _batches(loader) as loaded:
        for data in loaded:
            _score([each for each in trainers if each.error is None], dataset, preprocessor, data)
            context.progress.advance()
    scored = [trainer for trainer in trainers if trainer.error is None]
    for trainer in scored:
        with failing_alone(trainer):
            trainer.metrics = dict(trainer.evaluator.evaluate(len(dataset)))
    for trainer in scored:
        trainer.cost.seconds["eval"] = (time.perf_counter() - started) / len(scored)
        if not dataset.datasets[0].stores:  # else they were encoded before
            trainer.cost.images["eval"] = len(dataset)


def _score(
    trainers: Sequence[HeadTrainer], dataset: GroupDataset, preprocessor: nn.Module, data: Any
) -> None:
    """Score a batch; the heads for which it is too large score its halves."""
    try:
        batches = dataset.batches(preprocessor, data, False)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batches = None  # too large for all; the error itself would keep tensors
    with frozen_backbone.one_batch():
        for trainer in trainers:
            with failing_alone(trainer):
                if batches is None:
                    raise torch.OutOfMemoryError("a batch does not fit")
                trainer.score(batches[trainer.index])
    del batches
    count = len(data["data_samples"])
    too_large_for = [each for each in trainers if isinstance(each.error, OutOfMemory)]
    if not too_large_for or count == 1:
        return
    half = count // 2
    for trainer in too_large_for:
        trainer.error = None
        note = f"evaluation: {half} images at once instead of {count}, which do not fit the memory"
        if not any(line.startswith("evaluation: ") for line in trainer.cost.notes):
            trainer.cost.notes.append(f"{note} of the device; sums may be rounded differently")
    memory_log.warning(
        "evaluation: batches of %s images do not fit the memory of the device", count
    )
    for rows in (slice(0, half), slice(half, count)):
        remaining = [trainer for trainer in too_large_for if trainer.error is None]
        _score(remaining, dataset, preprocessor, rows_of(data, rows))


def _loader(config: Any, dataset: Dataset, sampler: Sampler, context: Context) -> DataLoader:
    """A loader of these objects with the options of its config, as mmengine would build it."""
    options: dict[str, Any] = {
        "num_workers": context.num_workers,
        "pin_memory": takes_pinned_memory(context.device),
        **config,
        "collate_fn": FUNCTIONS.get(config.get("collate_fn", {"type": "pseudo_collate"})["type"]),
        "dataset": dataset,
        "persistent_workers": False,
    }
    if options["num_workers"]:
        options["multiprocessing_context"] = "fork"
    if batch_sampler := options.pop("batch_sampler", None):
        default_args = {"sampler": sampler, "batch_size": options.pop("batch_size")}
        batches = DATA_SAMPLERS.build(batch_sampler, default_args=default_args)
        return DataLoader(**options, batch_sampler=batches)
    return DataLoader(**options, sampler=sampler)


@contextmanager
def _batches(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The loader's batches; its processes end with the block."""
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


STATE_FILE = "training-state.pth"
SAVES = 20  # of a training
SLOW_SAVE = 1.0  # seconds; above, as of a tuned backbone, saves may take ``MAX_SHARE`` of the time
CHECK_EVERY = 20  # iterations between two checks of the losses: each waits for the device


class HeadTrainer:
    """A head, from its config to its trained model and its metrics.

    Its state is saved ``SAVES`` times (less often if it is large), the last time at the end, in
    ``work_dir/training-state.pth``: the head's weights (the frozen backbone is not part of them),
    their moving average, optimizer, schedules, iteration and training time. It is replaced
    atomically, never after a loss that is not finite, and read with ``weights_only=True``. A state
    is resumed only by a head of the same config, seed, backbone, data and precision.

    Args:
        config: as for ``probes.train.loop.resolved``.
        context: of its task: seed, device, folder, log.
        leave_out: items of the training set that are not trained on.
        index: of the head in its group; train, val: the group's data.

    Attributes:
        model: complete, as the config says: it can predict without the group.
        evaluator: of its predictions; its metric objects keep per-image scores.
        iteration: number of finished iterations; resumed_at: how many of them earlier processes
            did.
        error: why it left the group.
        metrics: of the evaluator.
        train_dataset, val_dataset: of this head's ground truth.
        cost: of training (with that of killed processes up to their last state), evaluation and
            encoding: equal shares among the heads of the group.
        notes: on the features, for the user; ``train_together`` sets them.
    """

    notes: list[str]

    def __init__(
        self,
        config: Config,
        context: Context,
        leave_out: Sequence[int],
        index: int,
        train: GroupDataset,
        val: GroupDataset,
    ) -> None:
        self.config, self.context, self.index = config, context, index
        self.train_dataset = train.datasets[train.indices[index]]
        self.val_dataset = val.datasets[val.indices[index]]
        self.max_iters: int = config.train_cfg["max_iters"]
        # boxes need more digits than bf16 has; logits do not, and their losses are in fp32
        self.autocast = prefers_bf16(context.device) and config.get("default_scope") == "mmseg"
        trained = {
            name: part for name, part in config.to_dict().items() if not name.startswith("val_")
        }
        self.key = content_key(
            {
                "config": trained,
                "seed": context.seed,
                "backbone": context.backbone.identity(),
                "data": context.data.fingerprint,
                "leave_out": tuple(leave_out),
                "precision": "bf16" if self.autocast else "fp32",
            }
        )
        self.iteration = self.resumed_at = 0
        self.cost = Cost()
        self.metrics: dict[str, float] = {}
        self.error: Exception | None = None
        self._unchecked: list[tuple[int, float, Mapping[str, Tensor]]] = []  # (iteration, lr, loss)
        self._save_from = 0.0  # on the monotonic clock
        with isolated_rng(context.seed % 2**32):
            self.model: Any = MODELS.build(config.model)
            self.model.init_weights()
        self.model.to(context.device)
        self.model.data_preprocessor._non_blocking = takes_pinned_memory(context.device)
        wrapper = {**config.optim_wrapper, "type": "QuietOptimWrapper"}
        self.optim_wrapper: OptimWrapper = build_optim_wrapper(self.model, wrapper)
        settings = context.settings
        decay = settings.ema if settings.is_tuned else 0.0
        self.average = Average(self.model.parameters(), decay)
        self.schedulers = [
            PARAM_SCHEDULERS.build(dict(schedule), default_args={"optimizer": self.optim_wrapper})
            for schedule in config.get("param_scheduler") or []
        ]
        self.evaluator = Evaluator(config.val_evaluator)
        if context.head is not None:  # it is scored, and never trained
            context.head.load_into(self.model)
            self.iteration = self.max_iters
        else:
            self._resume()
        self.optim_wrapper.initialize_count_status(self.model, self.iteration, self.max_iters)

    @property
    def trains(self) -> bool:
        """Whether it has iterations left."""
        return self.error is None and self.iteration < self.max_iters

    @property
    def counts(self) -> Counts:
        """What the processes of a training exchange."""
        trained, buffers = self._trained, self.model.buffers()
        numbers = sum(each.numel() for each in (*trained, *buffers))
        return numbers, len(trained)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [each for each in self.model.parameters() if each.requires_grad]

    def step(self, parts: Parts, data: Mapping[int, Mapping[str, Any]]) -> None:
        """Take one training step on a batch, of which ``data`` has the prepared parts of this
        process; ``check_and_save`` notices a loss that is not finite."""
        seed_iteration(self.context.seed, self.iteration)
        rate = float(self.optim_wrapper.get_lr()["lr"][0])

        def losses_of(number: int) -> tuple[Tensor, dict[str, Tensor]]:
            seed_part(self.context.seed, self.iteration, number)
            return self._losses(data[number])

        if len(parts.rows) > 1:
            values = parts.accumulate(self.model, self._trained, losses_of)
            self.optim_wrapper.step()
            self.optim_wrapper.zero_grad()
        else:
            total, values = self._losses(data[0])
            self.optim_wrapper.update_params(total)
        self.average.update()
        for scheduler in self.schedulers:
            scheduler.step()
        self.iteration += 1
        self._unchecked.append((self.iteration, rate, values))

    def _losses(self, data: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        with self._precision(), self.optim_wrapper.optim_context(self.model):
            losses = self.model._run_forward(data, mode="loss")
        return self.model.parse_losses(losses)

    def check_and_save(self, saves: bool = True) -> None:
        """After a step: check losses, log curves and, if this process ``saves``, save the state
        where they are due.

        Raises:
            NonFiniteLoss: names the first iteration whose losses were not finite, and the losses.
        """
        every = max(1, self.max_iters // SAVES)
        is_last = self.iteration == self.max_iters
        due = self.iteration % every == 0 or is_last
        if due or len(self._unchecked) >= CHECK_EVERY:
            self._check_losses()
        started = time.monotonic()
        if saves and (is_last or (due and started >= self._save_from)):
            self._save()
            seconds = time.monotonic() - started
            if seconds > SLOW_SAVE:
                self._save_from = time.monotonic() + seconds / MAX_SHARE

    def release(self) -> None:
        """Free what only its training takes on the device, for the heads that go on."""
        self.optim_wrapper.zero_grad()
        self.optim_wrapper.optimizer.state.clear()
        self._unchecked.clear()

    def discard(self) -> None:
        """Free all that it has on the device: it failed, and is not used again."""
        self.release()
        if self.error is not None:
            clear_frames(self.error.__traceback__)  # with the tensors of the failed pass
        self.schedulers.clear()
        del self.model, self.optim_wrapper, self.average
        gc.collect()  # optimizers and their schedules are reference cycles

    def score(self, data: Mapping[str, Any]) -> None:
        """Predict a prepared batch, and hand the predictions to the evaluator: all or, where it
        fails, none."""
        if "data_samples" in data:  # predictions are written into samples, which heads may share
            data = {**data, "data_samples": [sample.clone() for sample in data["data_samples"]]}
        scored = [len(metric.results) for metric in self.evaluator.metrics]
        try:
            with self._precision():
                predictions = self.model._run_forward(data, mode="predict")
            self.evaluator.process(data_samples=predictions, data_batch=data)
        except Exception:
            for metric, count in zip(self.evaluator.metrics, scored, strict=True):
                del metric.results[count:]
            raise

    def head(self) -> Head:
        """The trained head: everything but the frozen backbone.

        The config in its metadata is that of the model, which encodes images itself where it is not
        given features.
        """
        pipeline = self.config.val_dataloader.dataset["pipeline"]
        return Head.of(
            self.context,
            self.model.state_dict(),
            scope=self.config.default_scope,
            imports=list(self.config.custom_imports.imports),
            model=self.config.model.to_dict(),
            pipeline=[part for part in pipeline if part["type"] != "LoadGroundTruth"],
        )

    def _check_losses(self) -> None:
        """Read the losses since the last check (only this waits for the device) and log them."""
        names, every = list(self._unchecked[-1][2]), max(1, self.max_iters // 500)
        rows = torch.stack(
            [
                torch.stack([losses[name].detach().float() for name in names])
                for *_, losses in self._unchecked
            ]
        )
        for (iteration, rate, _), row in zip(self._unchecked, rows.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            infinite = [
                name
                for name, value in losses.items()
                if "loss" in name and not math.isfinite(value)
            ]
            if infinite:
                raise NonFiniteLoss(
                    f"the loss is not finite at iteration {iteration} ({', '.join(infinite)}); "
                    f"try a lower learning rate (--set lr=…) or precision=fp32"
                )
            if iteration % every == 0 or iteration in (1, self.max_iters):
                curves = {**losses, "lr": rate}
                self.context.log.log_metrics(
                    {f"train/{name}": value for name, value in curves.items()}, iteration
                )
                text = "  ".join(f"{name}: {value:.4g}" for name, value in curves.items())
                print_log(f"Iter(train) [{iteration}/{self.max_iters}]  {text}", "current")
        self._unchecked.clear()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.autocast)

    def _resume(self) -> None:
        warn = partial(print_log, logger="current", level=logging.WARNING)
        state = load_state(Path(self.context.work_dir, STATE_FILE), self.key, warn)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        # states of earlier versions have neither
        self.average.load(state.get("average", ()))
        self.cost.processor_seconds = state.get("processor_seconds", 0.0)
        self.iteration = self.resumed_at = state["iteration"]
        self.cost.seconds["train"] = state["seconds"]
        print_log(f"resumed at iteration {self.iteration} of {self.max_iters}", "current")

    def _save(self) -> None:
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "average": self.average.values,
            "seconds": self.cost.seconds["train"],
            "processor_seconds": self.cost.processor_seconds,
        }
        save_state(Path(self.context.work_dir, STATE_FILE), self.key, state)


def note_tuning(trainer: HeadTrainer) -> list[str]:
    """What was trained of the backbone, for the user; its cost gets the number. Nothing of a frozen
    one."""
    for module in trainer.model.modules():
        if isinstance(module, frozen_backbone.TunedBackbone):
            count = sum(each.numel() for each in module.parameters())
            trainer.context.cost.trained_parameters = count
            return [f"{module.tuning.summary()}; it is tuned for this task alone"]
    return []


@contextmanager
def failing_alone(trainer: HeadTrainer) -> Iterator[None]:
    """Record an error of the block as this trainer's, which leaves its group; the others go on."""
    try:
        yield
    except Exception as error:
        trainer.error = failure_of(error, trainer.context)
        if isinstance(trainer.error, OutOfMemory):
            trainer.release()


def failure_of(error: Exception, context: Context) -> Exception:
    """What a head failed with: ``error``, or one line where the memory of the device ended."""
    if is_out_of_memory(error):
        return out_of_memory(error, context.settings.memory_advice)
    return error


@OPTIM_WRAPPERS.register_module()
class QuietOptimWrapper(OptimWrapper):
    """mmengine's, without the log of the gradient's norm, which waits for the device at each
    step."""

    def _clip_grad(self) -> None:
        groups = self.optimizer.param_groups
        params = [param for group in groups for param in group["params"] if param.grad is not None]
        if params:
            self.clip_func(params, **self.clip_grad_kwargs)


@contextmanager
def logging_to(folders: Sequence[Path]) -> Iterator[None]:
    """Within the block mmengine's log, and the warnings of mmengine, mmseg and mmdet about their
    own internals, go to ``TIME/TIME.log`` in each folder and not to the terminal."""
    name = uuid.uuid4().hex
    logger = MMLogger.get_instance(name)  # which becomes mmengine's current logger
    logger.handlers = []
    now = time.strftime("%Y%m%d_%H%M%S")
    for folder in dict.fromkeys(folders):
        path = Path(folder, now, f"{now}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(MMFormatter(color=False, datefmt="%Y/%m/%d %H:%M:%S"))
        logger.addHandler(handler)

    def log_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        logger.debug(f"{filename}:{lineno}: {category.__name__}: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = log_warning  # type: ignore[assignment]
            yield
    finally:
        for handler in logger.handlers:
            handler.close()
        MMLogger._instance_dict.pop(name)
