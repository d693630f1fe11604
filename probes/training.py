"""What every probe trained by MMEngine's Runner shares: seeded samples, exact resume, guarded loss, curves.

A probe writes a config of model, data, optimizer, schedule and evaluator; ``resolved`` adds the shared parts (all
named by registered types, so that the dumped text runs with plain mmengine) and ``run_training`` runs it quietly.

Neither the number of loading processes nor a stop and a resume can change what is computed (see ``probes.draws``).
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_distributed, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones.cliptex.cost import StepCounter
from backbones.files import content_key, replacing
from probes import mmlab
from probes.base import Context, NonFiniteLoss
from probes.draws import SeededDraws

STATE = "training-state.pth"


@HOOKS.register_module()
class NonFiniteLossGuard(Hook):
    """End the run at the first loss that is NaN or infinite, before it is saved."""

    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        losses = {name: value for name, value in (outputs or {}).items() if "loss" in name}
        values = {name: float(value.mean() if isinstance(value, Tensor) else value) for name, value in losses.items()}
        if broken := [name for name, value in values.items() if not np.isfinite(value)]:
            raise NonFiniteLoss(
                f"the loss is not finite at iteration {runner.iter + 1} ({', '.join(broken)}); "
                f"try a lower learning rate (--set lr=…) or precision=fp32"
            )


@HOOKS.register_module()
class ResumeState(Hook):
    """Keep the last state of what is trained in ``work_dir/training-state.pth``, and begin from it when it is there.

    The file holds the head's weights (the frozen backbone is no part of the model's state), optimizer, schedules,
    iteration, and what the training has cost so far. It is replaced atomically and read with ``weights_only=True``.

    Args:
        every: iterations between two writes; the last iteration is always written.
        key: what the state belongs to; the state of another key is not used.
    """

    priority = "VERY_LOW"  # after the schedules took their step

    def __init__(self, every: int, key: str = "") -> None:
        self.every = every
        self.key = key
        self.resumed_at = 0
        self.earlier_seconds, self.step_flops, self._began = 0.0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent in training so far, that of earlier processes included."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def before_train(self, runner: Runner) -> None:
        self._began = time.perf_counter()
        path = Path(runner.work_dir, STATE)
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes torch and zip raise
            runner.logger.warning(f"{path} cannot be read ({error}): starting anew")
            return
        if state["key"] != self.key:
            runner.logger.warning(f"{path} belongs to another run ({state['key']}, not {self.key}): starting anew")
            return
        _bare(runner.model).load_state_dict(state["model"])
        runner.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(runner.param_schedulers or [], state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        runner.train_loop._iter = self.resumed_at = state["iteration"]
        self.earlier_seconds, self.step_flops = state.get("seconds", 0.0), state.get("step_flops", 0.0)
        runner.optim_wrapper.initialize_count_status(runner.model, state["iteration"], runner.max_iters)
        runner.logger.info(f"resumed at iteration {state['iteration']} of {runner.max_iters}")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        done = runner.iter + 1
        if (done % self.every == 0 or done == runner.max_iters) and is_main_process():
            state = {
                "key": self.key,
                "iteration": done,
                "model": _bare(runner.model).state_dict(),
                "optimizer": runner.optim_wrapper.state_dict(),
                "schedulers": [_plain(scheduler.state_dict()) for scheduler in runner.param_schedulers or []],
                "seconds": self.seconds,
                "step_flops": self.step_flops,
            }
            with replacing(Path(runner.work_dir, STATE)) as temporary:
                torch.save(state, temporary)


class _Flops(Hook):
    """Counts the first training and the first evaluation step of this process (not registered: it holds live objects).

    A training step is forward, backward and optimizer of one batch of one process; see ``backbones.cliptex.cost``.
    """

    priority = "LOWEST"

    def __init__(self, resume: ResumeState) -> None:
        self.resume, self.train, self.test = resume, StepCounter(), StepCounter()
        self.test_images = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.resume.step_flops:
            self.train.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if self.train.stop():
            self.resume.step_flops = float(self.train.flops)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.test.start()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.test.stop():
            self.test_images = len(outputs)

    def close(self) -> None:
        """A step that broke is counted no longer."""
        self.train.stop()
        self.test.stop()

    def costs(self, runner: Runner) -> dict[str, float]:
        """``train_flops``, ``eval_flops`` and their sum ``flops``, over all processes."""
        train = self.resume.step_flops * runner.max_iters * runner.world_size
        evaluation = self.test.flops / max(self.test_images, 1) * len(runner.test_dataloader.dataset)
        return {"train_flops": train, "eval_flops": evaluation, "flops": train + evaluation}


class _Report(Hook):
    """Curves to the run's log and steps to its progress bar (not registered: it holds live objects)."""

    priority = "LOWEST"

    def __init__(self, context: Context, description: str) -> None:
        self.log, self.progress, self.description = context.log, context.progress, description
        self.lr = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self.every = max(1, runner.max_iters // 500)
        self.progress.start(self.description, runner.max_iters)
        if runner.iter:
            self.progress.advance(runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.lr = float(runner.optim_wrapper.get_lr()["lr"][0])  # by the end of the step it is the next one's

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        self.progress.advance()
        step = runner.iter + 1
        if step % self.every == 0 or step == 1 or step == runner.max_iters:
            curves = {f"train/{name}": float(value) for name, value in (outputs or {}).items() if _is_scalar(value)}
            curves["train/lr"] = self.lr
            self.log.log_metrics(curves, step)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.log.log_metrics(
            {f"val/{name}": float(v) for name, v in (metrics or {}).items() if _is_scalar(v)}, runner.iter
        )

    def before_test_epoch(self, runner: Runner) -> None:
        self.progress.start(f"{self.description}: evaluation", len(runner.test_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.progress.advance()


def resolved(cfg: Config, context: Context, *, checkpoint_every: int | None = None) -> Config:
    """``cfg`` with all that the probes share; its ``pretty_text`` is what ``Probe.config`` returns.

    Args:
        cfg: a probe's config with ``default_scope``, ``model``, ``train_dataloader`` and ``val_dataloader``
            (``batch_size``, ``dataset`` and what else is their own), ``val_evaluator``, ``optim_wrapper``,
            ``param_scheduler`` (by iteration) and ``train_cfg=dict(max_iters=…)``; ``custom_imports`` for modules of
            its own registered types.
        context: gives seed, workers and work_dir.
        checkpoint_every: iterations between two resume states; a twentieth of the run when None.
    """
    key = content_key([cfg.to_dict(), context.seed, context.backbone.identity(), context.data.fingerprint])
    cfg = copy.deepcopy(cfg)
    max_iters = cfg.train_cfg["max_iters"]
    loading = {"num_workers": context.workers, "persistent_workers": context.workers > 0}

    imports = ["probes.mmlab", "probes.training", *cfg.get("custom_imports", {}).get("imports", [])]
    cfg.custom_imports = {"imports": list(dict.fromkeys(imports)), "allow_failed_imports": False}
    cfg.train_dataloader.update({**loading, **cfg.train_dataloader})
    cfg.train_dataloader.dataset = {
        "type": "SeededDraws",
        "seed": context.seed,
        "dataset": cfg.train_dataloader.dataset,
    }
    cfg.train_dataloader.sampler = {"type": "EndlessSampler"}
    cfg.val_dataloader.update({**loading, **cfg.val_dataloader})
    cfg.val_dataloader.setdefault("sampler", {"type": "DefaultSampler", "shuffle": False})
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "val_interval": max_iters, **cfg.train_cfg}
    cfg.setdefault("val_cfg", {"type": "ValLoop"})
    cfg.default_hooks = {
        "logger": {"type": "LoggerHook", "interval": max(1, max_iters // 50), "log_metric_by_epoch": False},
        "checkpoint": None,  # ResumeState instead
    }
    cfg.custom_hooks = [
        *cfg.get("custom_hooks", []),
        {"type": "SeedEachIteration", "seed": context.seed},
        {"type": "NonFiniteLossGuard"},
        {"type": "ResumeState", "every": checkpoint_every or max(1, max_iters // 20), "key": key},
    ]
    cfg.log_processor = {"by_epoch": False}
    cfg.visualizer = {"type": "Visualizer", "vis_backends": []}
    cfg.randomness = {"seed": context.seed % 2**32}
    cfg.env_cfg = {
        "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
        "dist_cfg": {"backend": "nccl" if context.device.type == "cuda" else "gloo"},
    }
    cfg.work_dir = str(context.work_dir)
    return cfg


@dataclass
class Trained:
    """What ``run_training`` ends with.

    Attributes:
        model: trained, in eval mode, on the context's device (no distributed wrapper).
        metrics: what the evaluator returned.
        evaluators: the evaluator's metric objects, for what else they keep (per-image scores …).
        train_dataset: the ``SeededDraws`` around the training set.
        val_dataset: as the evaluation saw it.
        cost: ``train_seconds`` (after a resume, those of the killed process up to its last state included),
            ``eval_seconds``, ``train_images_per_second``, ``eval_images_per_second``; ``train_flops``, ``eval_flops`` and
            their sum ``flops``: one step each counted, times the number of steps.
        resumed_at: iteration that training began from; 0 for a whole run.
        config: the resolved config as text.
    """

    model: nn.Module
    metrics: dict[str, float]
    evaluators: list[BaseMetric]
    train_dataset: SeededDraws
    val_dataset: Any
    cost: dict[str, float] = field(default_factory=dict)
    resumed_at: int = 0
    config: str = ""


def run_training(
    cfg: Config,
    context: Context,
    *,
    description: str = "training",
    val_curve: int | None = None,
    checkpoint_every: int | None = None,
) -> Trained:
    """Train what ``cfg`` describes, resuming what ``context.work_dir`` holds, and evaluate it once at the end.

    mmengine's log goes to files in ``work_dir``; loss and learning-rate curves go to ``context.log`` as ``train/loss``,
    ``train/lr`` …, steps to ``context.progress``. On a CPU the same seed gives the same weights and metrics,
    whatever the number of workers and however often the run was stopped.

    Args:
        cfg: as for ``resolved``.
        description: of the progress bar, e.g. the task's name.
        val_curve: also evaluate every so many iterations, as ``val/…`` curves.
        checkpoint_every: as for ``resolved``.

    Raises:
        NonFiniteLoss: names the iteration and the losses.
    """
    cfg = resolved(cfg, context, checkpoint_every=checkpoint_every)
    text = cfg.pretty_text
    mmlab.share(context.backbone_config, context.backbone)
    live = _Told.of(cfg, text)
    live.experiment_name = uuid.uuid4().hex
    live.launcher = "pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "none"
    live.test_dataloader, live.test_evaluator, live.test_cfg = (
        cfg.val_dataloader,
        cfg.val_evaluator,
        {"type": "TestLoop"},
    )
    if val_curve:
        live.train_cfg.val_interval = val_curve
    else:
        live.val_dataloader = live.val_evaluator = live.val_cfg = None

    runner: _QuietRunner | None = None
    flops: _Flops | None = None
    try:
        with _warnings_to_log():
            _QuietRunner.device = context.device
            if live.launcher != "none" and context.device.type == "cpu" and not is_distributed():
                torch.distributed.init_process_group("gloo")  # mmengine's own start asks for a GPU
            runner = _QuietRunner.from_cfg(live)
            resume = next(hook for hook in runner.hooks if isinstance(hook, ResumeState))
            runner.register_hook(_Report(context, description), priority="LOWEST")
            flops = _Flops(resume)
            runner.register_hook(flops, priority="LOWEST")
            began = time.perf_counter()
            runner.train()
            trained = time.perf_counter()
            metrics = runner.test()
            ended = time.perf_counter()
        images = (runner.max_iters - resume.resumed_at) * runner.train_dataloader.batch_size * runner.world_size
        return Trained(
            model=_bare(runner.model).eval(),
            metrics=dict(metrics),
            evaluators=list(runner.test_evaluator.metrics),
            train_dataset=runner.train_dataloader.dataset,
            val_dataset=runner.test_dataloader.dataset,
            cost={
                "train_seconds": resume.earlier_seconds + trained - began,
                "eval_seconds": ended - trained,
                "train_images_per_second": images / (trained - began),
                "eval_images_per_second": len(runner.test_dataloader.dataset) / (ended - trained),
                **flops.costs(runner),
            },
            resumed_at=resume.resumed_at,
            config=text,
        )
    finally:
        if flops is not None:
            flops.close()
        if runner is not None:
            _close(runner)
        del runner
        gc.collect()


class _Told(Config):
    """A config whose text is known: mmengine formats it twice more for its own logs, a second or more each time."""

    @classmethod
    def of(cls, cfg: Config, text: str) -> _Told:
        told = copy.deepcopy(cfg)
        object.__setattr__(told, "__class__", cls)
        object.__setattr__(told, "_told", text)
        return cast(_Told, told)

    @property
    def pretty_text(self) -> str:
        return self.__dict__["_told"]


class _QuietRunner(Runner):
    """A Runner on a given device, whose log goes to its file only."""

    device = torch.device("cpu")

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        if not self.distributed:
            return model
        if self.device.type == "cpu":  # mmengine would name a GPU for each process
            return MMDistributedDataParallel(model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def _log_env(self, env_cfg: dict) -> None:
        """mmengine asks compilers for their versions here; a run records its environment elsewhere."""

    def dump_config(self) -> None:
        """The resolved config is an artifact of the run, written by whoever tracks it."""


def _close(runner: Runner) -> None:
    """End the loading processes and forget mmengine's global instances of this run (logger, hub, visualizer, scope)."""
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        loader = getattr(loop, "dataloader", None)
        iterators = (
            getattr(loader, "_iterator", None),
            getattr(getattr(loop, "dataloader_iterator", None), "_iterator", None),
        )
        for iterator in iterators:
            if shut_down := getattr(iterator, "_shutdown_workers", None):
                shut_down()
        if isinstance(loader, DataLoader):
            loader._iterator = None
    for handler in list(runner.logger.handlers):
        runner.logger.removeHandler(handler)
        handler.close()
    for manager in (MMLogger, MessageHub, Visualizer, DefaultScope):
        manager._instance_dict.pop(runner.experiment_name, None)


@contextmanager
def _warnings_to_log() -> Iterator[None]:
    """mmengine, mmseg and mmdet warn about their own internals at every start: into the log file with it."""

    def to_log(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        logger = MMLogger.get_current_instance() if MMLogger._instance_dict else logging.getLogger("mmengine")
        logger.debug(f"{filename}:{lineno}: {category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = to_log  # type: ignore[assignment]
        yield


def _bare(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor | np.generic) and np.prod(np.shape(value)) == 1)


def _plain(value: Any) -> Any:
    """numpy scalars to python's, so that ``weights_only=True`` can read them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
