"""A batch in parts (``accumulate``), whose gradients are added in the order of the parts: on one
device one after the other, on several accelerators of a machine at the same time, each in a process
of its own (``Team``).

How many devices there are changes no weight (on a CPU no bit): a part's random numbers follow from
its number, and the sums are made in the same order, in shared memory, by all processes together.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.multiprocessing as torch_processes
from torch import Tensor, nn

import backbones
from cliptex_common import registry as plugins
from cliptex_common.device import (
    device_count,
    is_accelerator,
    processor_seconds,
    seed_devices,
    set_device,
)
from cliptex_common.files import derive_seed
from cliptex_common.process import end_with_parent, without_script
from cliptex_common.progress import Silent
from probes.base import Context, Cost

STATISTICS = ("running_mean", "running_var")  # of batch normalisation
COUNTERS = ("iterations", "num_batches_tracked")  # ends of names of buffers that count batches
SMALL = 256  # numbers that travel besides gradients and statistics: the losses
SHARED_MEMORY = Path("/dev/shm")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)

T = TypeVar("T")
Counts = tuple[int, int]  # of weights that train and statistics of the head; of tensors that train
# the number of a part → its total loss, and losses by name
Compute = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass
class Parts:
    """The rows of a batch, in parts of nearly one size, of which this process computes some.

    Args:
        batch: number of images of a batch.
        count: of parts, at most.
        team: of the processes that compute them; None for this one alone.

    Attributes:
        rows: in the batch, of each part.
        numbers: of the parts that this process computes.
        loaded: the rows that it loads for them.
    """

    batch: int
    count: int
    team: Team | None = None

    def __post_init__(self) -> None:
        size = math.ceil(self.batch / self.count)
        starts = range(0, self.batch, size)
        self.rows = [range(start, min(start + size, self.batch)) for start in starts]
        first, step = (self.team.rank, self.team.size) if self.team else (0, 1)
        self.numbers = range(first, len(self.rows), step)
        self.loaded = [row for number in self.numbers for row in self.rows[number]]

    @property
    def is_first(self) -> bool:
        """Whether this process is the only one or the first, which saves, logs and scores."""
        return self.team is None or self.team.rank == 0

    def split(self, images: Callable[[slice], T]) -> dict[int, T]:
        """By the number of a part of this process what ``images`` gives for its rows among
        ``loaded``."""
        parts, start = {}, 0
        for number in self.numbers:
            end = start + len(self.rows[number])
            parts[number] = images(slice(start, end))
            start = end
        return parts

    def accumulate(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], compute: Compute
    ) -> dict[str, Tensor]:
        """Compute the parts; ``grad`` of the parameters is then that of the batch's mean loss, and
        statistics of batch normalisation have moved by the mean of what each part moves them.

        Args:
            compute: takes the number of a part.

        Returns:
            the mean losses of the batch.
        """
        if len(self.rows) == 1:
            total, losses = compute(0)
            total.backward()
            return {name: loss.detach() for name, loss in losses.items()}
        buffers = dict(model.named_buffers())
        before = {
            name: buffer.clone()
            for name, buffer in buffers.items()
            if name.endswith((*STATISTICS, *COUNTERS))
        }

        def part(number: int) -> dict[str, Tensor]:
            for name, buffer in before.items():  # a batch is one iteration
                buffers[name].copy_(buffer)
            total, losses = compute(number)
            share = len(self.rows[number]) / self.batch
            (share * total).backward()
            moved = {
                name: share * (buffers[name] - buffer)
                for name, buffer in before.items()
                if name.endswith(STATISTICS)
            }
            return moved | {name: share * loss.detach() for name, loss in losses.items()}

        if self.team:
            sums = self.team.sums(parameters, len(self.rows), part)
        else:
            sums = dict[str, Tensor]()
            for number in range(len(self.rows)):
                for name, value in part(number).items():
                    sums[name] = sums[name] + value if name in sums else value
        for name in [each for each in before if each in sums]:
            buffers[name].copy_(before[name] + sums.pop(name))
        return sums


def seed_part(seed: int, iteration: int, number: int) -> None:
    """Seed dropout of a part; that of the first is the iteration's own."""
    if number:
        seed_devices(derive_seed("part", seed, iteration, number) % 2**32)


@dataclass
class _Shared:
    """What the processes of a team share: numbers in float32."""

    total: Tensor
    parts: list[Tensor]  # of each process
    has_gradient: Tensor  # (processes, parameters) bool
    barrier: Any
    errors: Any


class Team:
    """The processes that train together; each steps by the same sums, so their weights stay equal.

    Attributes:
        rank: of this process; the first one, 0, has started the others, and alone saves, logs and
            scores.
        size: number of processes.
    """

    def __init__(self, rank: int, size: int, shared: _Shared) -> None:
        self.rank, self.size, self._shared = rank, size, shared
        self._error: Exception | None = None

    def sums(
        self,
        parameters: Sequence[nn.Parameter],
        count: int,
        part: Callable[[int], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Call ``part`` for each of ``count`` numbers in one of the processes, each of which ends
        with the sums of gradients and of the tensors that it returns, in the order of the numbers.

        Raises:
            Exception: what ``part`` raised, in the first process also if it was in another one.
                Then no process goes on.
        """
        shared, values, device = self._shared, dict[str, Tensor](), parameters[0].device
        for start in range(0, count, self.size):
            number = start + self.rank
            if number < count:
                try:
                    values = part(number)
                except Exception as error:
                    self.fail(error)
                    raise
                self._give(parameters, values, start == 0)
            self._wait()
            numbers = shared.total.numel()
            length = math.ceil(numbers / self.size)
            chunk = slice(self.rank * length, min((self.rank + 1) * length, numbers))
            for rank in range(min(self.size, count - start)):
                if start == rank == 0:
                    shared.total[chunk].copy_(shared.parts[rank][chunk])
                else:
                    shared.total[chunk] += shared.parts[rank][chunk]
            self._wait()
        position = 0
        for index, parameter in enumerate(parameters):
            end = position + parameter.numel()
            if shared.has_gradient[:, index].any():
                total = shared.total[position:end].view_as(parameter)
                parameter.grad = total.to(device, copy=True)
            position = end
        for name, value in values.items():
            end = position + value.numel()
            values[name] = shared.total[position:end].view_as(value).to(value.device, copy=True)
            position = end
        return values

    def _give(
        self, parameters: Sequence[nn.Parameter], values: Mapping[str, Tensor], is_first: bool
    ) -> None:
        """Put gradients (which go from the parameters) and values where all can read them."""
        sent, has_gradient = self._shared.parts[self.rank], self._shared.has_gradient[self.rank]
        position = 0
        for index, parameter in enumerate(parameters):
            end, gradient = position + parameter.numel(), parameter.grad
            if gradient is None:
                sent[position:end] = 0
            else:
                sent[position:end].view_as(parameter).copy_(gradient)
            had_one = not is_first and bool(has_gradient[index])
            has_gradient[index] = gradient is not None or had_one
            parameter.grad, position = None, end
        for value in values.values():
            end = position + value.numel()
            sent[position:end].view_as(value).copy_(value)
            position = end

    def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._shared.barrier.wait()
        except threading.BrokenBarrierError:
            self._error = RuntimeError("another process of this training has ended")
            if self.rank == 0 and not self._shared.errors.empty():
                self._error = pickle.loads(self._shared.errors.get())
            raise self._error from None

    def fail(self, error: Exception) -> None:
        """Tell the other processes that this one cannot go on."""
        self._error = error
        if self.rank:
            try:
                content = pickle.dumps(error)
            except Exception:
                content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
            self._shared.errors.put(content)
        self._shared.barrier.abort()


def devices_for(device: torch.device) -> list[torch.device]:
    """The devices that one training can use: all accelerators that this process sees, the given one
    first, unless it was asked for by its number."""
    if not is_accelerator(device) or device.index is not None:
        return [device]
    count = device_count()
    return [device, *(torch.device(device.type, number) for number in range(1, count))]


def portable(context: Context) -> Context:
    """The context without what cannot travel to another process; ``restored`` there."""
    nothing: Any = None
    return replace(
        context,
        backbone=nothing,
        device=torch.device("cpu"),
        log=Silent(),
        progress=Silent(),
        cost=Cost(),
    )


def restored(contexts: Sequence[Context], device: torch.device) -> list[Context]:
    """The contexts of one backbone in another process, on its device."""
    backbone = backbones.create(**contexts[0].backbone_config).to(device)
    return [replace(each, backbone=backbone, device=device) for each in contexts]


@contextmanager
def team_of(
    context: Context, counts: Counts, batch: int, follow: Callable[..., None], *args: Any
) -> Iterator[Team | None]:
    """While the block runs, a process for each part of a batch, as far as there are devices, does
    ``follow(team, device, *args)``; None where one device is all there is, or all that can be used:
    the reason is a note of the task's cost.

    Args:
        context: of the task, or of one of several that are trained in one loop.
        counts: of what its processes exchange.
        batch: number of images of a batch.
        follow: a function of a module, which trains in another process what the block trains here.
        args: that can be pickled.
    """
    settings = context.settings
    devices = devices_for(context.device) if settings.is_tuned else [context.device]
    size = min(len(devices), len(Parts(batch, settings.accumulate).rows))
    numbers, parameters = counts[0] + SMALL, counts[1]
    needed = 4 * numbers * (size + 1)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if size > 1 and needed > free:
        context.cost.notes.append(
            f"tuned on one device: {SHARED_MEMORY} has {free / 2**30:.1f} GiB, of which the"
            f" gradients of {size} devices take {needed / 2**30:.1f}"
        )
    if size < 2 or needed > free:
        yield None
        return
    processes = torch_processes.get_context("spawn")
    shared = _Shared(
        torch.empty(numbers).share_memory_(),
        [torch.empty(numbers).share_memory_() for _ in range(size)],
        torch.zeros(size, parameters, dtype=torch.bool).share_memory_(),
        processes.Barrier(size),
        processes.SimpleQueue(),
    )
    content = plugins.plugin_sources(), pickle.dumps((follow, args))
    assistants: list[Any] = []
    try:
        with _starting():
            for rank in range(1, size):
                team = Team(rank, size, shared)
                args = team, devices[rank], torch.get_num_threads(), *content
                process = processes.Process(target=_assist, args=args, name=f"training {rank}")
                process.start()
                assistants.append(process)
        over = threading.Event()
        watch = threading.Thread(
            target=_watch, args=(assistants, shared.barrier, over), daemon=True
        )
        watch.start()
        started = processor_seconds(context.device)
        try:
            yield Team(0, size, shared)
        finally:
            over.set()
    finally:
        for process in assistants:  # they have nothing to save
            process.kill()
            process.join()
    elapsed = processor_seconds(context.device) - started
    context.cost.processor_seconds += (size - 1) * elapsed  # of the assistants
    context.cost.notes.append(f"the parts of a batch were computed on {size} devices at once")


def _watch(assistants: Sequence[Any], barrier: Any, over: threading.Event) -> None:
    """Let nobody wait for a process that was killed."""
    wait([process.sentinel for process in assistants])
    if not over.is_set():
        barrier.abort()


@contextmanager
def _starting() -> Iterator[None]:
    """Processes that start in the block block signals: the first process gets these, too, and ends
    the rest. They do not import the user's script."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with without_script():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _assist(
    team: Team,
    device: torch.device,
    threads: int,
    sources: Sequence[tuple[str, bytes]],
    content: bytes,
) -> None:
    """Another process than the first."""
    end_with_parent()
    multiprocessing.set_start_method("fork", force=True)  # of loading processes
    torch.set_num_threads(threads)
    try:
        if is_accelerator(device):
            set_device(device)
        import_module("probes.catalog")
        for path, source in sources:
            plugins.load(path, source, registers=False)
        follow, args = pickle.loads(content)
        follow(team, device, *args)
        # The first process ends it: ``_watch`` would take one that ended by itself for one that was
        # killed, while others perhaps wait for each other still.
        threading.Event().wait()
    except Exception as error:
        team.fail(error)
