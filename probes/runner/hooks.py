"""What watches a training: a loss that is not finite, the state to resume from, what a step costs, curves and progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from backbones.cliptex.cost import StepCounter
from backbones.errors import NonFiniteLoss
from backbones.files import replacing
from probes.base import Context
from probes.runner.stream import Seat

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
        self.clock: Callable[[], float] = time.perf_counter  # of this training alone, where others go on beside it
        self.earlier_seconds, self.step_flops, self._began = 0.0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Time spent in training so far, that of earlier processes included."""
        return self.earlier_seconds + self.clock() - self._began

    def before_train(self, runner: Runner) -> None:
        self._began = self.clock()
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
        bare(runner.model).load_state_dict(state["model"])
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
                "model": bare(runner.model).state_dict(),
                "optimizer": runner.optim_wrapper.state_dict(),
                "schedulers": [_plain(scheduler.state_dict()) for scheduler in runner.param_schedulers or []],
                "seconds": self.seconds,
                "step_flops": self.step_flops,
            }
            with replacing(Path(runner.work_dir, STATE)) as temporary:
                torch.save(state, temporary)


class Flops(Hook):
    """Counts the first training and the first evaluation step of this process (not registered: it holds live objects).

    A training step is forward, backward and optimizer of one batch of one process; see ``backbones.cliptex.cost``. Of what
    it shares with others (the frozen backbone's maps) it counts all, as it would alone.
    """

    priority = "LOWEST"

    def __init__(self, resume: ResumeState, seat: Seat) -> None:
        self.resume, self.seat, self.train, self.test = resume, seat, StepCounter(), StepCounter()
        self.test_images = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.resume.step_flops:
            self._start(self.train)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if self._stop(self.train):
            self.resume.step_flops = float(self.train.flops)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._start(self.test)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._stop(self.test):
            self.test_images = len(outputs)

    def close(self) -> None:
        """A step that broke is counted no longer."""
        self._stop(self.train)
        self._stop(self.test)

    def _start(self, counter: StepCounter) -> None:
        counter.start()
        self.seat.counter = counter

    def _stop(self, counter: StepCounter) -> bool:
        self.seat.counter = None
        return counter.stop()

    def costs(self, runner: Runner) -> dict[str, float]:
        """``train_flops``, ``eval_flops`` and their sum ``flops``, over all processes."""
        train = self.resume.step_flops * runner.max_iters * runner.world_size
        evaluation = self.test.flops / max(self.test_images, 1) * len(runner.test_dataloader.dataset)
        return {"train_flops": train, "eval_flops": evaluation, "flops": train + evaluation}


class Report(Hook):
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


def bare(model: Any) -> nn.Module:
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
