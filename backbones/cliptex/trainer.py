"""The training loop that CLIPTeX and the experts share: steps, curves, averaging, saved states, the
optimizer and the processes.

A training is a function of its seed and step alone, so an interrupted one resumes to the same bits.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only

from cliptex_common.device import device_count, is_accelerator, set_device, skips_fused_steps
from cliptex_common.errors import NonFiniteLoss
from cliptex_common.files import atomic_write
from cliptex_common.progress import Pace, Progress, RunLog, Silent

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite, before the training is given up
Step = tuple[int, dict[str, Tensor], Tensor]  # number from 1, losses, norm of the gradient


@dataclass(frozen=True)
class TrainContext:
    """Where a training runs and reports to; never changes its result beyond rounding.

    Attributes:
        device: ``cpu``, or an accelerator as torch names it.
        log: gets the curves: ``train/loss``, ``train/loss_TASK``, ``train/lr``,
            ``train/images_per_second``, ``train/grad_norm``, ``train/grad_norm_TASK``,
            ``train/logit_scale``, ``train/lambda_TASK``, ``val/i2t_R@1`` …; of an expert
            ``expert/TASK/loss`` …
        progress: one bar over the steps.
        notify: gets one line for each thing the user should know, as soon as it is known.
        workers: loading processes where pairs do not fit into memory.
        resume_dir: where states are saved (default: beside the weights). Removed at the end.
        save_seconds: time between two states, or more where they take long, see ``Pace``.
        keep_every: steps between weights that are exported on the way (0: none).
        log_every, norms_every: steps between log entries and between measurements of the gradient
            norm of each loss.
    """

    device: str | torch.device = "cpu"
    log: RunLog = field(default_factory=Silent)
    progress: Progress = field(default_factory=Silent)
    notify: Callable[[str], None] = lambda line: None
    workers: int = 2
    resume_dir: str | Path | None = None
    save_seconds: float = 60.0
    keep_every: int = 0
    log_every: int = 20
    norms_every: int = 100

    def on_rank(self, process: DistContext) -> TrainContext:
        """The context of one process: only the first reports."""
        if process.first:
            return self
        return replace(self, log=Silent(), progress=Silent(), notify=lambda line: None)


class Trainer:
    """Trains ``model`` in place; a subclass says with which batches, losses and learning rates, and
    sets the attributes that have no default before it calls ``__init__``.

    Args:
        optimizer: as ``build_optimizer`` makes it.

    Attributes:
        name: of what is trained, for the progress bar and messages.
        key: identity of the training; it resumes only from states with the same key.
        seed: of everything random.
        steps: of the complete training.
        batch_size: samples in a step, over all processes.
        grad_clip: largest norm of the gradient; 0: no limit.
        ema_decay: of the weights' moving average; 0: none.
        prefix: of the curves' names.
        advice: what a user can do when the loss breaks.
        metrics: the last values of the curves.
    """

    name: str
    key: str
    seed: int
    steps: int
    batch_size: int
    grad_clip = 0.0
    ema_decay = 0.0
    prefix = "train"
    advice = "lower lr"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        context: TrainContext,
        process: DistContext,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.context, self.process = context, process
        # the decay of step n is at most n / (9 + n), so that the initial weights are forgotten
        self.ema = (
            ModelEmaV3(
                self.exported(), self.ema_decay, use_warmup=True, warmup_gamma=9, warmup_power=1
            )
            if self.ema_decay
            else None
        )
        if context.resume_dir is None:
            raise ValueError("resume_dir: a Trainer has no weights to save its states beside")
        self.states = States(Path(context.resume_dir), self.key)
        self.metrics: dict[str, float] = {}
        self._unread_steps: list[Step] = []
        self._failure = ""  # why the training cannot go on; raised at the next log entry
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.flops_per_step = self.earlier_seconds = 0.0
        self._window_losses: list[dict[str, Tensor]] = []  # since the last log entry
        self._last_norm = math.nan  # of the gradient, at the last step that was not skipped
        self._started = self._window_started = time.perf_counter()
        self._buffers: dict[str, Tensor] = {}  # as the last finished step left them
        self._updating = False  # weights and optimizer state may be from different steps

    def batches(self, start: int) -> Iterable[Any]:
        """The batches from step ``start`` to the last, on the device."""
        raise NotImplementedError

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based); each group of the optimizer multiplies it."""
        raise NotImplementedError

    def backward(self, batch: Any, norms: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Add a batch's gradient to the parameters.

        Returns:
            the detached losses and, with ``norms``, the norm of each loss's own gradient.
        """
        raise NotImplementedError

    def flops(self, batch: Any) -> float:
        """Floating-point operations of this process's step; changes nothing in the model."""
        raise NotImplementedError

    def exported(self) -> nn.Module:
        """The part of the model that is averaged and exported."""
        return self.model

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters whose joint gradient is clipped."""
        return self.model.parameters()

    def after_update(self) -> None:
        """Called after each step of the optimizer."""

    def step_done(self, batch: Any) -> None:
        """Called at the end of each step, whether the optimizer stepped or not."""

    def curves(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The losses' means since the last log entry, by the names of their curves."""
        return {f"{self.prefix}/{name}": value for name, value in losses.items()}

    def validate(self) -> dict[str, float]:
        """Metrics after a step; empty where it is not validated."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What a subclass saves with each state."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore ``extra_state``."""

    def run(self, export: Callable[[int], None] | None = None) -> None:
        """Train to the end, resuming from the newest state.

        Args:
            export: writes the weights of a step; called, in the first process, every ``keep_every``
                steps and at the last one.

        Raises:
            UserError: a state cannot be written, or what a subclass finds wrong with its data.
            NonFiniteLoss: the gradient was not finite ``MAX_SKIPPED`` times in a row, or in more
                than half of all steps; raised at the next log entry, in all processes.
        """
        context, first = self.context, self.process.first
        self._resume()
        batches = self.batches(self.step)
        context.progress.start(f"train {self.name}", self.steps)
        context.progress.advance(self.step)
        self._started = self._window_started = time.perf_counter()
        saving = Pace(context.save_seconds)
        self._buffers = copy_buffers(self.model)
        try:
            for batch in batches:
                self._train_on(batch)
                if metrics := self.validate():
                    context.log.log_metrics(metrics, self.step)
                    self.metrics |= metrics
                is_last, every = self.step == self.steps, context.keep_every
                if first and export and every and (is_last or self.step % every == 0):
                    export(self.step)
                if first and not is_last and saving.is_due:
                    with saving.timed():
                        self._save()
                context.progress.advance()
        except KeyboardInterrupt:
            if first and not self._updating and self.step < self.steps:
                # undo the forward pass of the unfinished step
                restore_buffers(self.model, self._buffers)
                self._save()
            raise
        finally:
            self.states.finish()

    def cost(self) -> dict[str, float]:
        """Seconds and FLOPs over all ``processes``, ``images_per_second`` and ``steps``."""
        seconds, steps = self._seconds(), self.steps
        return {
            "train_seconds": seconds,
            "train_flops": self.flops_per_step * steps,
            "flops_per_step": self.flops_per_step,
            "images_per_second": steps * self.batch_size / seconds,
            "steps": float(steps),
            "processes": float(self.process.world),
        }

    def weights(self) -> dict[str, Tensor]:
        """What is exported: the moving average, or the last weights."""
        return dict((self.ema.module if self.ema else self.exported()).state_dict())

    def _train_on(self, batch: Any) -> None:
        process, context, step = self.process, self.context, self.step
        # of dropout, patch dropout and drop path: the same after a resume
        torch.manual_seed((self.seed * 1_000_003 + step) * process.world + process.rank)
        if not self.flops_per_step:
            self.flops_per_step = self.flops(batch) * process.world
        lr = self.rate(step)
        losses, norms = self.backward(batch, step % context.norms_every == 0)
        self._updating = True
        norm = self._update(lr)
        self._unread_steps.append((step + 1, losses, norm))
        if self.ema and norm.isfinite():
            self.ema.update(self.exported(), step + 1)
        # a step that is skipped leaves no trace; decided on the device, which nobody waits for
        restore_buffers(self.model, self._buffers, where=~norm.isfinite())
        self._buffers = copy_buffers(self.model)
        self.step_done(batch)
        self.step, self._updating = step + 1, False
        if self.step % context.log_every == 0 or norms or self.step == self.steps:
            self._read_steps()
            if self._failure:
                raise NonFiniteLoss(self._failure)
            self.metrics |= {f"{self.prefix}/lr": lr} | self._read_window()
            finite = {
                f"{self.prefix}/grad_norm_{name}": value
                for name, value in norms.items()
                if math.isfinite(value)
            }
            context.log.log_metrics(self.metrics | finite, self.step)

    def _update(self, lr: float) -> Tensor:
        """Clip the gradient and step, unless it is not finite; the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["multiple"]
        if self.optimizer.defaults["fused"] and skips_fused_steps(norm.device):
            # the kernel itself skips the step where this is 1, so nothing waits for the norm
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif norm.isfinite():
            self.optimizer.step()
        self.after_update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _read_steps(self) -> None:
        """Count the steps that were skipped since the last call; only this waits for the device.

        All are counted at the end, so that ``_save`` can call it again where it is interrupted.
        """
        if not self._unread_steps:
            return
        norms = torch.stack([norm for *_, norm in self._unread_steps]).tolist()
        skipped, in_a_row = self.skipped, self.skipped_in_a_row
        finite: list[dict[str, Tensor]] = []
        for (step, losses, _), norm in zip(self._unread_steps, norms, strict=True):
            if math.isfinite(norm):
                in_a_row = 0
                finite.append(losses)
                self._last_norm = norm
                continue
            skipped, in_a_row = skipped + 1, in_a_row + 1
            mostly = step == self.steps and 2 * skipped > self.steps
            if not self._failure and (mostly or in_a_row == MAX_SKIPPED):
                named = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
                times = f"in {skipped} of {step} steps" if mostly else f"{in_a_row} times in a row"
                self._failure = (
                    f"{self.name}: the gradient became NaN or infinite {times},"
                    f" last at step {step} (losses: {named}); {self.advice}"
                )
        self._window_losses += finite
        self.skipped, self.skipped_in_a_row = skipped, in_a_row
        self._unread_steps.clear()

    def _read_window(self) -> dict[str, float]:
        """The curves since the last log entry, over all processes; empty if all were skipped."""
        curves: dict[str, float] = {}
        if self._window_losses:
            local = torch.stack(
                [torch.stack(list(each.values())) for each in self._window_losses]
            ).mean(0)
            mean = (sum_over_ranks(local) / sum_over_ranks(torch.ones_like(local))).tolist()
            curves = self.curves(dict(zip(self._window_losses[0], mean, strict=True)))
            images = len(self._window_losses) * self.batch_size
            seconds = time.perf_counter() - self._window_started
            curves[f"{self.prefix}/grad_norm"] = self._last_norm
            curves[f"{self.prefix}/images_per_second"] = images / seconds
        self._window_losses, self._window_started = [], time.perf_counter()
        return curves

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._started

    def _save(self) -> None:
        self._read_steps()
        if self._failure:  # the newest state is from before, and fails again
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else {},
            "seconds": self._seconds(),
            "flops_per_step": self.flops_per_step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        self.states.save(self.step, state | self.extra_state())

    def _resume(self) -> None:
        """Load the newest state, which every process reads for itself.

        Raises:
            RuntimeError: a process does not see the file that the first one read.
        """
        newest = self.states.newest() if self.process.first else None
        step = self.process.share(newest["step"] if newest else None)
        if step is None:
            return
        state = newest or self.states.load(step)
        if state is None:
            raise RuntimeError(
                f"process {self.process.rank} cannot read {self.states.folder}; all processes need"
                " one file system"
            )
        self.step = step
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.earlier_seconds, self.flops_per_step = state["seconds"], state["flops_per_step"]
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.load_extra_state(state)


@torch.no_grad()
def copy_buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all buffers: a forward pass changes the statistics of batch norms."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def restore_buffers(
    model: nn.Module, buffers: Mapping[str, Tensor], where: Tensor | None = None
) -> None:
    """Undo what forward passes did to the buffers since ``copy_buffers``.

    Args:
        where: scalar bool on the device: whether to; None for yes.
    """
    for name, buffer in model.named_buffers():
        earlier = buffers[name]
        buffer.copy_(earlier if where is None else torch.where(where, earlier, buffer))


MAX_STATES = 2  # one more than is needed, should the newest be damaged


class States:
    """The newest states of the training ``key`` in a folder.

    A state is a dict of tensors, numbers, strings and containers of them.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state`` and write it in the background, once the previous one is written.

        Raises:
            UserError: the disk is full or the folder cannot be written (for this state or the
                previous one).
        """
        self.finish()
        copied = tree_map_only(Tensor, lambda value: value.detach().to("cpu", copy=True), state)
        self._writing = self._writer.submit(
            self._write, step, {**copied, "key": self.key, "step": step}
        )

    def finish(self) -> None:
        """Wait until the state is on disk; raises as ``save``."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def steps(self) -> list[int]:
        """Steps of all states, newest first; they may be damaged, or another training's."""
        return sorted(
            (int(path.stem.removeprefix("state-")) for path in self.folder.glob("state-*.pt")),
            reverse=True,
        )

    def load(self, step: int) -> dict[str, Any] | None:
        """The state of ``step``; None if it is damaged or another training's."""
        try:
            state = torch.load(self._path(step), map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return state if state.get("key") == self.key else None

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read."""
        return next((state for step in self.steps() if (state := self.load(step))), None)

    def remove(self) -> None:
        """Remove all, and the folder when it is empty then."""
        self.finish()
        self._prune(0)
        for path in self.folder.glob(".state-*.tmp"):  # of a process that was killed
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"state-{step:09d}.pt"

    def _write(self, step: int, state: dict[str, Any]) -> None:
        with atomic_write(self._path(step)) as temporary:
            torch.save(state, temporary)
        self._prune(MAX_STATES)

    def _prune(self, count: int) -> None:
        for step in self.steps()[count:]:
            self._path(step).unlink(missing_ok=True)


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, *, head_multiple: float = 1.0, **adamw: Any
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in up to four groups: with and without decay, heads apart.

    No decay for anything of fewer than two dimensions (norms, biases, logit scale), nor for what a
    part of the model names in ``no_weight_decay`` (position and class embeddings).

    Args:
        head_multiple: the heads' learning rate as a multiple of ``lr``; each group has its own as
            ``multiple``.
        adamw: further arguments of ``torch.optim.AdamW``.
    """
    undecayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            multiple = head_multiple if name.startswith("heads.") else 1.0
            decay = 0.0 if parameter.ndim < 2 or name in undecayed else weight_decay
            groups.setdefault((multiple, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "multiple": multiple}
            for (multiple, decay), parameters in groups.items()
        ],
        lr=lr,
        fused=True,
        **adamw,
    )


# how long processes wait for the first one, which may export weights to a slow disk
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class DistContext:
    """This process: ``rank`` of ``world`` processes, computing on ``device``."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        values = [value]
        if self.world > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order, on every process."""
        values = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            distributed.barrier()


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def world_size() -> int:
    """Number of processes of the training."""
    return rank_and_world()[1]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor without gradient over all ranks, on all ranks."""
    if world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def torchrun_environment() -> dict[str, int]:
    """RANK, LOCAL_RANK and WORLD_SIZE, where torchrun, or submitit in a SLURM job, has set them."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    return {name: int(os.environ[name]) for name in names if name in os.environ}


def first_process() -> bool:
    """Whether this is the only process or the first of several; needs no process group."""
    return torchrun_environment().get("RANK", 0) == 0


def end_with_launcher() -> None:
    """End this process when torchrun, which started it, is gone (kill -9).

    Otherwise it would wait half an hour for torchrun's rendezvous, and hold the lock that the same
    command waits for when it is started again. Does nothing without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()
    # the store of the rendezvous is torchrun's own: it may be gone already
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address, timeout=60).close()
        except ConnectionRefusedError:
            os._exit(1)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


@contextmanager
def processes(device: str | torch.device) -> Iterator[DistContext]:
    """Join the processes of this training, by torch's backend for ``device``, and leave at the end.

    Without the environment of ``torch.distributed`` this is the only process. A group that exists
    already is used and left alone.
    """
    device, environment = torch.device(device), torchrun_environment()
    if is_accelerator(device) and "LOCAL_RANK" in environment:
        # SLURM may show each process its own accelerator alone
        device = torch.device(device.type, environment["LOCAL_RANK"] % (device_count() or 1))
        set_device(device)
    created = environment.get("WORLD_SIZE", 1) > 1 and not distributed.is_initialized()
    if created:
        backend = distributed.get_default_backend_for_device(device)
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield DistContext(*rank_and_world(), device)
    finally:
        if created:
            distributed.destroy_process_group()
