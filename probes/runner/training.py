"""What every probe trained by MMEngine's Runner shares: seeded samples, exact resume, one pass for
many heads.

A probe writes a config of model, data, optimizer, schedule and evaluator. ``resolved`` adds the
shared parts (all named by registered types, so that the dumped text runs with plain mmengine);
``train_together`` trains the heads of several such configs on one pass over the same photographs,
quietly, and ``run_training`` one.

Neither the number of loading processes, nor a stop and a resume, nor who else is in the group
changes what is computed.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Sampler

from probes.base import Context, Progress
from probes.datasets.base import PreparedDataset
from probes.features.cost import EncodeCost
from probes.runner import bridge
from probes.runner.group_data import GroupDataset
from probes.runner.member import STATE, Member, leaves
from probes.runner.multi_head import MultiHead
from probes.runner.quiet import QuietRunner, quietly
from probes.runner.sampling import EndlessSampler, SeededSamples

__all__ = ["STATE", "Member", "resolved", "run_training", "train_together"]


def resolved(cfg: Config, context: Context) -> Config:
    """``cfg`` with all that the probes share; its ``pretty_text`` is what ``Probe.config`` returns.

    Args:
        cfg: a probe's config with ``default_scope``, ``model``, ``train_dataloader`` and
            ``val_dataloader`` (``batch_size``, ``dataset`` and what else is their own),
            ``val_evaluator``, ``optim_wrapper``, ``param_scheduler`` (by iteration) and
            ``train_cfg=dict(max_iters=…)``; ``custom_imports`` for modules of its own registered
            types.
        context: gives seed and loading processes.
    """
    cfg = copy.deepcopy(cfg)
    max_iters = cfg.train_cfg["max_iters"]
    imports = [
        "probes.runner.bridge",
        "probes.runner.sampling",
        *cfg.get("custom_imports", {}).get("imports", []),
    ]
    cfg.custom_imports = {"imports": list(dict.fromkeys(imports)), "allow_failed_imports": False}
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update({**_loading(context), **loader})
    samples = {
        "type": "SeededSamples",
        "seed": context.seed,
        "dataset": cfg.train_dataloader.dataset,
    }
    cfg.train_dataloader.dataset, cfg.train_dataloader.sampler = samples, {"type": "EndlessSampler"}
    cfg.val_dataloader.setdefault("sampler", {"type": "DefaultSampler", "shuffle": False})
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "val_interval": max_iters, **cfg.train_cfg}
    cfg.setdefault("val_cfg", {"type": "ValLoop"})
    every = max(1, max_iters // 20)
    cfg.default_hooks = {
        "logger": {
            "type": "LoggerHook",
            "interval": max(1, max_iters // 50),
            "log_metric_by_epoch": False,
        },
        "checkpoint": {
            "type": "CheckpointHook",
            "interval": every,
            "by_epoch": False,
            "max_keep_ckpts": 1,
        },
    }
    cfg.custom_hooks = [
        *cfg.get("custom_hooks", []),
        {"type": "SeedEachIteration", "seed": context.seed},
    ]
    cfg.log_processor = {"by_epoch": False}
    cfg.visualizer = {"type": "Visualizer", "vis_backends": []}
    cfg.randomness = {"seed": context.seed % 2**32}
    cfg.env_cfg = {"mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}}
    cfg.work_dir = f"work_dirs/{context.data.spec.name}"  # of whoever runs it; no cell's own folder
    return cfg


def _loading(context: Context) -> dict[str, Any]:
    return {"num_workers": context.num_workers, "persistent_workers": context.num_workers > 0}


LOADERS = ("train_dataloader", "val_dataloader")


def run_training(
    cfg: Config,
    context: Context,
    *,
    description: str = "training",
    checkpoint_every: int | None = None,
) -> Member:
    """``train_together`` of one head. Raises what it broke with, ``NonFiniteLoss`` among others."""
    (result,) = train_together(
        [(cfg, context)], description=description, checkpoint_every=checkpoint_every
    )
    if isinstance(result, Exception):
        raise result
    return result


def train_together(
    heads: Sequence[tuple[Config, Context]],
    *,
    description: str,
    leave_out: Sequence[int] = (),
    checkpoint_every: int | None = None,
    finish: Callable[[int, Member], Any] = lambda place, trained: trained,
) -> list[Any]:
    """Train each head (its config as for ``resolved``, its task's context) on one pass, resuming
    what its ``work_dir`` holds, and evaluate all on another; in their order, what came of each (a
    ``Member``, or what ``finish`` makes of it) or the ``Exception`` that it broke with.

    The heads must be of one backbone, seed and device, and their data the same photographs in the
    same order, with equal settings of batches and geometry; ground truth, model, optimizer,
    schedule and length may differ. On a CPU the same seed gives the same weights and metrics, bit
    by bit, whatever the number of loading processes, however often the run was stopped, and whoever
    else is in the group.

    mmengine's log goes to files in each ``work_dir``; loss and learning-rate curves go to each
    ``context.log`` as ``train/loss``, ``train/lr`` …; the first context's ``progress`` shows how
    far the group is.

    Args:
        description: of the progress bar, e.g. the tasks' names.
        leave_out: items of the training set that are not trained on.
        checkpoint_every: iterations between two states; a twentieth of each head's training when
            None.
        finish: called with the place and the outcome of each head, while the data are still open.

    Raises:
        what broke for all: a file that cannot be read, say.
    """
    config, context = heads[0]
    bridge.share(context.backbone_config, context.backbone)
    with (
        quietly([each.work_dir for _, each in heads]),
        DefaultScope.overwrite_default_scope(config.default_scope),
        ExitStack() as stack,
    ):
        data = [GroupDataset([cfg[name].dataset.to_dict() for cfg, _ in heads]) for name in LOADERS]
        encoding, notes = EncodeCost(), list[str]()
        for (
            loaded
        ) in data:  # held open till the end: nothing can be missing in the middle of training
            stack.callback(loaded.close)
            notes += loaded.open(context, encoding)
        train, val = data
        leave_out = sorted({*leave_out, *unused(train.datasets[0], context.data)})
        results: list[Any] = []
        for cfg, each in heads:
            try:
                results.append(Member(cfg, each, tuple(leave_out), checkpoint_every))
            except Exception as error:
                results.append(error)
        working = [place for place, each in enumerate(results) if isinstance(each, Member)]
        if working:
            model = MultiHead(
                [results[place] for place in working], [train.places[place] for place in working]
            )
            if model.trains:
                _train(
                    model,
                    config,
                    SeededSamples(train, context.seed, leave_out),
                    context,
                    description,
                )
            _evaluate(model, config, val, context, description)
        for place in working:
            member = results[place]
            with leaves(member):
                if member.error is None:
                    member.train_dataset, member.val_dataset, member.notes = (
                        train.view(place),
                        val.view(place),
                        notes,
                    )
                    member.cost = (
                        encoding.share(len(heads)).added_to(member.costs())
                        if val.encodes
                        else member.costs()
                    )
                    results[place] = finish(place, member)
            results[place] = member.error or results[place]
    gc.collect()  # loading processes, and what mmengine's objects hold of each other
    return results


def unused(dataset: Any, data: PreparedDataset) -> list[int]:
    """Items of a training set that are no part of the share of train that is trained on; see
    ``PreparedDataset.whole``."""
    left = {str(data.root / data.whole[place].image) for place in data.unused}
    return [
        item
        for item in range(len(dataset) if left else 0)
        if dataset.get_data_info(item)["img_path"] in left
    ]


def _train(
    model: MultiHead, config: Config, samples: SeededSamples, context: Context, description: str
) -> None:
    loader = _loader(config.train_dataloader, samples, EndlessSampler(samples), context)
    try:
        QuietRunner(
            model=model,
            work_dir=str(context.work_dir),
            train_dataloader=loader,
            train_cfg={
                "type": "IterBasedTrainLoop",
                "max_iters": max(each.max_iters for each in model.members),
            },
            optim_wrapper=model.optim_wrapper,
            default_hooks=dict.fromkeys(
                ("logger", "timer", "checkpoint", "param_scheduler", "sampler_seed")
            ),
            custom_hooks=[_Pace(context.progress, description)],
            visualizer={"type": "Visualizer", "vis_backends": []},
            randomness={"seed": context.seed % 2**32},
            env_cfg={"mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
            default_scope=config.default_scope,
            experiment_name=description,
        ).train()
    finally:
        _end_workers(loader)


@torch.no_grad()
def _evaluate(
    model: MultiHead, config: Config, val: GroupDataset, context: Context, description: str
) -> None:
    """Score every head of ``model`` that did not leave, on one pass."""
    began = time.perf_counter()
    loader = _loader(config.val_dataloader, val, DefaultSampler(val, shuffle=False), context)
    model.eval()
    for member, place in zip(model.members, model.places, strict=True):
        member.evaluator.dataset_meta = val.datasets[place].metainfo
    try:
        context.progress.start(f"{description}: evaluation", len(loader))
        for number, batch in enumerate(loader):
            for member, flops in model.test_step(batch, count=not number).items():
                member.eval_flops += (
                    flops / len(batch["inputs"]) * len(val)
                )  # of the first batch alone
            context.progress.advance()
    finally:
        _end_workers(loader)
    working = [member for member in model.members if member.error is None]
    for member in working:
        with leaves(member):
            member.metrics = dict(member.evaluator.evaluate(len(val)))
    for member in working:
        member.eval_seconds = (time.perf_counter() - began) / len(working)


def _loader(config: Any, dataset: Dataset, sampler: Sampler, context: Context) -> DataLoader:
    """What mmengine would build of a loader's config, around things that are there already."""
    options = {**_loading(context), **config, "pin_memory": context.device.type == "cuda"}
    for name in ("dataset", "sampler"):
        options.pop(name, None)
    if batches := options.pop("batch_sampler", None):
        given = {"sampler": sampler, "batch_size": options.pop("batch_size")}
        return DataLoader(
            dataset,
            batch_sampler=DATA_SAMPLERS.build(batches, default_args=given),
            collate_fn=pseudo_collate,
            **options,
        )
    return DataLoader(dataset, sampler=sampler, collate_fn=pseudo_collate, **options)


def _end_workers(loader: DataLoader) -> None:
    if shut_down := getattr(loader._iterator, "_shutdown_workers", None):
        shut_down()
    loader._iterator = None


class _Pace(Hook):
    """Begins where the group is, shows how far it is, and ends when nobody is left (not registered:
    it holds live objects)."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress, self.description = progress, description

    def before_train(self, runner: Runner) -> None:
        runner.train_loop._iter = runner.model.iteration
        self.progress.start(self.description, runner.max_iters)
        if runner.iter:
            self.progress.advance(runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self.progress.advance()
        runner.train_loop.stop_training = not runner.model.trains
