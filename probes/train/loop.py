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
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import cv2
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS, DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import probes.train.schedules  # noqa: F401  registers what configs name
from cliptex_common.device import is_out_of_memory, takes_pinned_memory
from cliptex_common.errors import OutOfMemory
from cliptex_common.out_of_memory import log
from probes.base import Context, Cost
from probes.datasets.base import PreparedDataset
from probes.train import frozen_backbone
from probes.train.group_data import GroupDataset, rows_of
from probes.train.head_trainer import HeadTrainer, failing_alone, failure_of
from probes.train.logs import logging_to
from probes.train.sampling import EndlessSampler, SeededSamples

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

    Raises:
        Exception: what failed for all heads: an image that cannot be read, for example.
    """
    first_config, context = next(iter(heads.values()))
    frozen_backbone.share(context.backbone_config, context.backbone)
    cv2.setNumThreads(0)  # its threads do not survive the fork of loading processes
    with (
        logging_to([each.work_dir for _, each in heads.values()]),
        DefaultScope.overwrite_default_scope(first_config.default_scope),
        ExitStack() as stack,
    ):
        train, val = (
            GroupDataset([config[loader].dataset.to_dict() for config, _ in heads.values()])
            for loader in ("train_dataloader", "val_dataloader")
        )
        group_context, notes = replace(context, cost=Cost()), list[str]()
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
                results[key] = failure_of(error)
        if any(trainer.trains for trainer in trainers.values()):
            samples = SeededSamples(train, context.seed, leave_out, context.settings.shuffle)
            _train(list(trainers.values()), train, samples, description)
        if trained := [trainer for trainer in trainers.values() if trainer.error is None]:
            _evaluate(trained, val, description)
        for key, trainer in trainers.items():
            trainer.notes = notes
            trainer.cost.add(group_context.cost, 1 / len(heads))
            with failing_alone(trainer):
                if trainer.error is None:
                    results[key] = finish(key, trainer)
            results[key] = trainer.error or results[key]
    gc.collect()  # reference cycles hold loading processes and features
    return results


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
    trainers: Sequence[HeadTrainer], dataset: GroupDataset, samples: SeededSamples, description: str
) -> None:
    """Train all heads on the samples of one loader."""
    context, loader = trainers[0].context, trainers[0].config.train_dataloader
    iteration = min(trainer.iteration for trainer in trainers if trainer.trains)
    sampler = EndlessSampler(samples)
    sampler.skip(iteration * loader.batch_size)
    context.progress.start(description, max(trainer.max_iters for trainer in trainers))
    context.progress.advance(iteration)
    for trainer in trainers:
        trainer.model.train()
    preprocessor = trainers[0].model.data_preprocessor
    last = time.perf_counter()
    with _batches(_loader(loader, samples, sampler, context)) as loaded:
        while any(trainer.trains for trainer in trainers):
            data = next(loaded)
            current = [each for each in trainers if each.trains and each.iteration == iteration]
            if current:
                batches = _prepare(trainers, dataset, preprocessor, data)
                current = [trainer for trainer in current if trainer.error is None]
            with frozen_backbone.one_batch():
                for trainer in current:
                    with failing_alone(trainer):
                        trainer.step(batches[trainer.index])
                    if isinstance(trainer.error, OutOfMemory):
                        trainer.discard()
            now = time.perf_counter()
            seconds, last = now - last, now  # loading and waiting, too
            for trainer in current:
                trainer.cost.seconds["train"] += seconds / len(current)
                if trainer.error is None:
                    with failing_alone(trainer):
                        trainer.check_and_save()
            iteration += 1
            context.progress.advance()


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
            failure = failure_of(error)
        largest = max(
            training, key=lambda trainer: sum(map(Tensor.numel, trainer.model.parameters()))
        )
        largest.error = failure
        largest.discard()
    return []


@torch.no_grad()
def _evaluate(trainers: Sequence[HeadTrainer], dataset: GroupDataset, description: str) -> None:
    """Score all heads on the same batches."""
    context, started = trainers[0].context, time.perf_counter()
    sampler = DefaultSampler(dataset.datasets[0], shuffle=False)
    loader = _loader(trainers[0].config.val_dataloader, dataset, sampler, context)
    for trainer in trainers:
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
    log.warning("evaluation: batches of %s images do not fit the memory of the device", count)
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
