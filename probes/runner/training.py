"""What every probe trained by MMEngine's Runner shares: seeded samples, exact resume, guarded loss, curves.

A probe writes a config of model, data, optimizer, schedule and evaluator; ``resolved`` adds the shared parts (all
named by registered types, so that the dumped text runs with plain mmengine) and ``training_steps`` runs it quietly.

Neither the number of loading processes nor a stop and a resume can change what is computed (see ``probes.runner.sampling``).
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import LOOPS, DefaultScope
from mmengine.runner import IterBasedTrainLoop, Runner, TestLoop
from mmengine.visualization import Visualizer
from torch import nn

from backbones.files import content_key
from probes.base import Context
from probes.runner import bridge
from probes.runner.hooks import STATE, Flops, Report, ResumeState, bare
from probes.runner.lockstep import READY, Steps, drain
from probes.runner.sampling import SeededDraws
from probes.runner.stream import Seat, close_loader, prepare_once

__all__ = ["STATE", "Trained", "resolved", "run_training", "training_steps"]

T = TypeVar("T")


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
    # how it is scored changes nothing that is trained
    trained = {name: part for name, part in cfg.to_dict().items() if not name.startswith("val_")}
    key = content_key([trained, context.seed, context.backbone.identity(), context.data.fingerprint])
    cfg = copy.deepcopy(cfg)
    max_iters = cfg.train_cfg["max_iters"]
    loading = {"num_workers": context.num_workers, "persistent_workers": context.num_workers > 0}

    imports = ["probes.runner.bridge", "probes.runner.training", *cfg.get("custom_imports", {}).get("imports", [])]
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
    """What ``training_steps`` end with.

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
    """All of ``training_steps`` at once."""
    return drain(
        training_steps(cfg, context, description=description, val_curve=val_curve, checkpoint_every=checkpoint_every)
    )


def training_steps(
    cfg: Config,
    context: Context,
    *,
    description: str = "training",
    val_curve: int | None = None,
    checkpoint_every: int | None = None,
    seat: Seat | None = None,
) -> Steps[Trained]:
    """Train what ``cfg`` describes, resuming what ``context.work_dir`` holds, and evaluate it once at the end.

    mmengine's log goes to files in ``work_dir``; loss and learning-rate curves go to ``context.log`` as ``train/loss``,
    ``train/lr`` …, steps to ``context.progress``. On a CPU the same seed gives the same weights and metrics,
    whatever the number of workers, however often the run was stopped, and whatever is trained between two of its steps.

    Args:
        cfg: as for ``resolved``.
        description: of the progress bar, e.g. the task's name.
        val_curve: also evaluate every so many iterations, as ``val/…`` curves.
        checkpoint_every: as for ``resolved``.
        seat: of what this is a part of, at whose table batches and maps are shared; None where nothing is.

    Raises:
        NonFiniteLoss: names the iteration and the losses.
    """
    cfg = resolved(cfg, context, checkpoint_every=checkpoint_every)
    text = cfg.pretty_text
    bridge.share(context.backbone_config, context.backbone)
    live = _Told.of(cfg, text)
    live.experiment_name = uuid.uuid4().hex
    live.launcher = "pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "none"
    live.train_cfg.type = "SteppedTrainLoop"
    live.test_dataloader, live.test_evaluator, live.test_cfg = (
        cfg.val_dataloader,
        cfg.val_evaluator,
        {"type": "SteppedTestLoop"},
    )
    if val_curve:
        live.train_cfg.val_interval = val_curve
    else:
        live.val_dataloader = live.val_evaluator = live.val_cfg = None

    seat = Seat(seat)
    runner: _QuietRunner | None = None
    flops: Flops | None = None
    try:
        with seat.turn(), _warnings_to_log():
            _QuietRunner.device = context.device
            if live.launcher != "none" and context.device.type == "cpu" and not is_distributed():
                torch.distributed.init_process_group("gloo")  # mmengine's own start asks for a GPU
            runner = _QuietRunner.from_cfg(live)
            runner.seat = seat
            runner.streams = [content_key(loader.to_dict()) for loader in (cfg.train_dataloader, cfg.val_dataloader)]
            preprocessor = bare(runner.model).data_preprocessor
            if isinstance(preprocessor, bridge.mmseg.models.SegDataPreProcessor):
                prepare_once(preprocessor, content_key(cfg.model.data_preprocessor.to_dict()))
            resume = next(hook for hook in runner.hooks if isinstance(hook, ResumeState))
            resume.clock = seat.clock
            runner.register_hook(Report(context, description), priority="LOWEST")
            flops = Flops(resume, seat)
            runner.register_hook(flops, priority="LOWEST")
            began = seat.clock()
            training = runner.train()
        seat.sit()
        yield READY
        yield from _in_turns(training, runner)
        seat.table.settle()
        trained = seat.clock()
        with seat.turn(), _warnings_to_log():
            _make_current(runner)
            testing = runner.test()
        metrics = yield from _in_turns(testing, runner)
        seat.table.settle()
        ended = seat.clock()
        images = (runner.max_iters - resume.resumed_at) * runner.train_dataloader.batch_size * runner.world_size
        return Trained(
            model=bare(runner.model).eval(),
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
        seat.leave()
        if runner is not None:
            _close(runner)
        del runner
        gc.collect()


@LOOPS.register_module()
class SteppedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, one iteration at a time: ``run`` (and so ``runner.train()``, when all is prepared) gives its steps."""

    def run(self) -> Steps[None]:
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        while self._iter < self._max_iters and not self.stop_training:
            yield 0, self._iter
            runner.model.train()
            self.run_iter(runner.seat.batch(runner.streams[0], self.dataloader, self._iter))
            self._decide_current_val_interval()
            if runner.val_loop is not None and (
                self._iter % self.val_interval == 0 or self._iter == self._max_iters
            ):  # fmt: skip
                runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")


@LOOPS.register_module()
class SteppedTestLoop(TestLoop):
    """The same for evaluation, one batch at a time; the steps return the metrics."""

    def run(self) -> Steps[dict[str, float]]:
        runner = self.runner
        runner.call_hook("before_test")
        runner.call_hook("before_test_epoch")
        runner.model.eval()
        for number in range(len(self.dataloader)):
            yield 1, number
            self.run_iter(number, runner.seat.batch(runner.streams[1], self.dataloader, number))
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        runner.call_hook("after_test_epoch", metrics=metrics)
        runner.call_hook("after_test")
        return metrics


def _in_turns(steps: Steps[T], runner: _QuietRunner) -> Steps[T]:
    """The steps of a runner's loop; between them others may do theirs, and find nothing of this one's around."""
    while True:
        with runner.seat.turn(), _warnings_to_log():
            _make_current(runner)
            try:
                place = next(steps)
            except StopIteration as end:
                return end.value
        yield place


def _make_current(runner: Runner) -> None:
    """mmengine's "current" logger, hub, visualizer and scope are the newest ones: let them be this runner's."""
    for manager in (MMLogger, MessageHub, Visualizer, DefaultScope):
        if runner.experiment_name in manager._instance_dict:
            manager._instance_dict.move_to_end(runner.experiment_name)


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
    seat: Seat
    streams: list[str]  # names of what its loops read: train, test

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
    """Forget mmengine's global instances of this run (logger, hub, visualizer, scope). The loaders of training and test are
    closed by the table, since others may read from them."""
    close_loader(getattr(runner._val_loop, "dataloader", None))
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
