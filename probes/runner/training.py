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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import cv2
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS, DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import probes.runner.schedules  # noqa: F401  registers what configs name
from cliptex_common.device import is_out_of_memory, takes_pinned_memory
from cliptex_common.errors import OutOfMemory
from cliptex_common.out_of_memory import log
from probes.base import Context, Cost
from probes.datasets.base import PreparedDataset
from probes.runner import bridge
from probes.runner.group_data import GroupDataset, rows_of
from probes.runner.logs import logging_to
from probes.runner.member import Member, failing_alone, failure_of
from probes.runner.sampling import EndlessSampler, SeededSamples


def resolved(cfg: Config, context: Context) -> Config:
    """``cfg`` with what its training adds: samples and iterations that follow from the seed, and
    one evaluation at the end. Its ``pretty_text`` is what ``Probe.config`` returns. This package
    trains it by the loop below, and mmengine's Runner, which takes it as it is, gives the same
    weights.

    Args:
        cfg: a probe's config with ``default_scope``, ``model``, ``train_dataloader`` and
            ``val_dataloader`` (``batch_size``, ``dataset`` and further options), ``val_evaluator``,
            ``optim_wrapper``, ``param_scheduler`` (by iteration) and
            ``train_cfg=dict(max_iters=…)``; ``custom_imports`` of the modules that register its
            own types.
        context: gives seed and loading processes.
    """
    cfg, seed = copy.deepcopy(cfg), context.seed
    imports = ["probes.runner.bridge", "probes.runner.sampling", *cfg.custom_imports.imports]
    cfg.custom_imports = {"imports": list(dict.fromkeys(imports)), "allow_failed_imports": False}
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.setdefault("num_workers", context.num_workers)
    cfg.train_dataloader.dataset = {
        "type": "SeededSamples",
        "seed": seed,
        "dataset": cfg.train_dataloader.dataset,
        "shuffle": context.settings.shuffle,
    }
    cfg.train_dataloader.sampler = {"type": "EndlessSampler"}
    cfg.val_dataloader.sampler = {"type": "DefaultSampler", "shuffle": False}
    cfg.custom_hooks = [{"type": "SeedEachIteration", "seed": seed}]
    cfg.randomness = {"seed": seed % 2**32}
    cfg.train_cfg.update(by_epoch=False, val_interval=cfg.train_cfg.max_iters)
    cfg.val_cfg = {}
    cfg.work_dir = f"work_dirs/{context.data.spec.name}"  # not this run's scratch folder
    return cfg


def run_training(cfg: Config, context: Context, description: str) -> Member:
    """``train_together`` of one head. Raises its error, ``NonFiniteLoss`` among others."""
    (result,) = train_together([(cfg, context)], description=description)
    if isinstance(result, Exception):
        raise result
    return result


def train_together(
    heads: Sequence[tuple[Config, Context]],
    *,
    description: str,
    leave_out: Sequence[int] = (),
    finish: Callable[[int, Member], Any] = lambda index, member: member,
) -> list[Any]:
    """Train all heads in one loop, on the same batches, and evaluate all in another.

    A head is a pair: its config (as for ``resolved``) and its task's context; it resumes from its
    ``work_dir``. Returns, in the order of ``heads``, the ``Member`` of each (or the value of
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
        finish: called with the index and the member of each head while the data are still open.

    Raises:
        Exception: what failed for all heads: an image that cannot be read, for example.
    """
    config, context = heads[0]
    bridge.share(context.backbone_config, context.backbone)
    cv2.setNumThreads(0)  # its threads do not survive the fork of loading processes
    with (
        logging_to([each.work_dir for _, each in heads]),
        DefaultScope.overwrite_default_scope(config.default_scope),
        ExitStack() as stack,
    ):
        train = GroupDataset([cfg.train_dataloader.dataset.to_dict() for cfg, _ in heads])
        val = GroupDataset([cfg.val_dataloader.dataset.to_dict() for cfg, _ in heads])
        encoding, notes = replace(context, cost=Cost()), list[str]()
        for dataset in (*train.datasets, *val.datasets):
            stack.callback(dataset.close)  # till then no other process can remove the features
            dataset.open(encoding)
            notes += [note for store in dataset.stores for note in store.notes]
        leave_out = sorted({*leave_out, *unused_items(train.datasets[0], context.data)})
        results: list[Any] = []
        for index, (cfg, each) in enumerate(heads):
            try:
                results.append(Member(cfg, each, leave_out, index, train, val))
            except Exception as error:
                results.append(failure_of(error))
        members = [member for member in results if isinstance(member, Member)]
        if any(member.trains for member in members):
            samples = SeededSamples(train, context.seed, leave_out, context.settings.shuffle)
            _train(members, train, samples, description)
        if trained := [member for member in members if member.error is None]:
            _evaluate(trained, val, description)
        for member in members:
            member.notes = notes
            member.cost.add(encoding.cost, 1 / len(heads))
            with failing_alone(member):
                if member.error is None:
                    results[member.index] = finish(member.index, member)
            results[member.index] = member.error or results[member.index]
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
    members: Sequence[Member], dataset: GroupDataset, samples: SeededSamples, description: str
) -> None:
    """Train all members on the samples of one loader."""
    context, loader = members[0].context, members[0].config.train_dataloader
    iteration = min(member.iteration for member in members if member.trains)
    sampler = EndlessSampler(samples)
    sampler.skip(iteration * loader.batch_size)
    context.progress.start(description, max(member.max_iters for member in members))
    context.progress.advance(iteration)
    for member in members:
        member.model.train()
    preprocessor = members[0].model.data_preprocessor
    finished_at = time.perf_counter()
    with _batches(_loader(loader, samples, sampler, context)) as loaded:
        while any(member.trains for member in members):
            data = next(loaded)
            current = [each for each in members if each.trains and each.iteration == iteration]
            if current:
                batches = _prepare(members, dataset, preprocessor, data)
                current = [member for member in current if member.error is None]
            with bridge.one_batch():
                for member in current:
                    with failing_alone(member):
                        member.step(batches[member.index])
                    if isinstance(member.error, OutOfMemory):
                        member.discard()
            started_at, finished_at = finished_at, time.perf_counter()
            for member in current:
                member.cost.seconds["train"] += (finished_at - started_at) / len(current)
                if member.error is None:
                    with failing_alone(member):
                        member.settle()
            iteration += 1
            context.progress.advance()


def _prepare(
    members: Sequence[Member], dataset: GroupDataset, preprocessor: nn.Module, data: Any
) -> list[dict[str, Any]]:
    """A batch for training. While it does not fit, the head with most parameters leaves."""
    while training := [member for member in members if member.trains]:
        try:
            return dataset.batches(preprocessor, data, True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = failure_of(error)
        largest = max(
            training, key=lambda member: sum(map(Tensor.numel, member.model.parameters()))
        )
        largest.error = failure
        largest.discard()
    return []


@torch.no_grad()
def _evaluate(members: Sequence[Member], dataset: GroupDataset, description: str) -> None:
    """Score members, all on the same batches."""
    context, started = members[0].context, time.perf_counter()
    sampler = DefaultSampler(dataset.datasets[0], shuffle=False)
    loader = _loader(members[0].config.val_dataloader, dataset, sampler, context)
    for member in members:
        member.model.eval()
        member.evaluator.dataset_meta = member.val_dataset.metainfo
    preprocessor = members[0].model.data_preprocessor
    context.progress.start(f"{description}: evaluation", len(loader))
    with _batches(loader) as loaded:
        for data in loaded:
            _score([each for each in members if each.error is None], dataset, preprocessor, data)
            context.progress.advance()
    scored = [member for member in members if member.error is None]
    for member in scored:
        with failing_alone(member):
            member.metrics = dict(member.evaluator.evaluate(len(dataset)))
    for member in scored:
        member.cost.seconds["eval"] = (time.perf_counter() - started) / len(scored)
        if not dataset.datasets[0].stores:  # else they were encoded before
            member.cost.images["eval"] = len(dataset)


def _score(
    members: Sequence[Member], dataset: GroupDataset, preprocessor: nn.Module, data: Any
) -> None:
    """Score a batch; those for which it is too large score its halves."""
    pending: list[Member] = []
    try:
        batches = dataset.batches(preprocessor, data, False)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        batches = None
    count = len(data["data_samples"])
    with bridge.one_batch():
        for member in members:
            with failing_alone(member):
                if batches is None:
                    raise torch.OutOfMemoryError("a batch does not fit")
                member.score(batches[member.index])
            if isinstance(member.error, OutOfMemory) and count > 1:
                member.error = None
                pending.append(member)
    if not pending:
        return
    del batches
    half = count // 2
    for member in pending:
        note = f"evaluation: {half} images at once instead of {count}, which do not fit the memory"
        if not any(line.startswith("evaluation: ") for line in member.cost.notes):
            member.cost.notes.append(f"{note} of the device; sums may be rounded differently")
    log.warning("evaluation: batches of %s images do not fit the memory of the device", count)
    for rows in (slice(0, half), slice(half, count)):
        remaining = [member for member in pending if member.error is None]
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
