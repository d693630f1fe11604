"""What computes, and what that takes: the CPU or an accelerator of any type that torch has a
backend for, its memory, and floating-point operations.

Nothing else names a type of accelerator: what one of them can do is asked here, and here it is
asked of torch, by ``torch.accelerator``, by the backend's module (``torch.get_device_module``), or
by a trial where torch has no answer. Where the memory of a device ends, batches of frozen passes
are halved (``Halving``), and what does not fit at all fails with one line."""

from __future__ import annotations

import functools
import logging
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cliptex_common.errors import OutOfMemory, UserError, first_line
from cliptex_common.process import DEVICE_NAMES

CPU = torch.device("cpu")
Device = torch.device | str
# in errors without a class of their own: of MPS, of drivers (CUDA, HIP, level zero), of cuBLAS and
# cuDNN, which find no room for a handle or a workspace, and of NCCL, which quotes the driver
OUT_OF_MEMORY = (
    "backend out of memory",
    "Invalid buffer size",
    "error: out of memory",
    "OUT_OF_DEVICE_MEMORY",
    "ERROR_OUT_OF_RESOURCES",
    "STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "'out of memory'",
    "Failed to CUDA calloc",
    "STATUS_NOT_INITIALIZED",
    "nable to find an engine",
)

# parts of ``torch.backends`` with a switch ``fp32_precision`` of their own, since torch 2.9
PRODUCTS = (
    *("cuda.matmul", "cudnn.conv", "cudnn.rnn"),
    *("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
)


def is_accelerator(device: Device) -> bool:
    """Whether ``device`` is not the CPU."""
    return torch.device(device).type != "cpu"


def current_device() -> torch.device:
    """The accelerator that torch uses on this machine, or the CPU if there is none."""
    kind = torch.accelerator.current_accelerator()
    return kind if kind is not None and torch.accelerator.is_available() else CPU


def planned_device() -> torch.device:
    """The accelerator that work of another machine is planned for: one as this machine has, else a
    CUDA device."""
    current = current_device()
    return current if is_accelerator(current) else torch.device("cuda")


def device_count() -> int:
    """Number of accelerators that this process sees."""
    return torch.accelerator.device_count() if is_accelerator(current_device()) else 0


def is_available(device: Device) -> bool:
    """Whether this machine has this device.

    Raises:
        UserError: torch knows no such type.
    """
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
        module = torch.get_device_module(kind)
        return kind == "cpu" or (module.is_available() and index < module.device_count())
    except (RuntimeError, AttributeError):
        raise UserError(f"no device {str(device)!r}; use {DEVICE_NAMES}") from None


@functools.cache
def device_name(device: torch.device) -> str:
    """Name of the hardware, for comparing speeds: ``NVIDIA H100 80GB HBM3``,
    ``Intel(R) Xeon(R) Platinum 8480C``."""
    if is_accelerator(device):
        read_name = getattr(torch.get_device_module(device), "get_device_name", None)
        return read_name(device) if read_name else f"{device.type} of {device_name(CPU)}"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the current one of its type while the block runs."""
    module = torch.get_device_module(device)
    if is_accelerator(device) and hasattr(module, "device"):
        return module.device(device)
    return nullcontext()


def set_device(device: torch.device) -> None:
    """Make ``device`` the current one of its type in this process."""
    module = torch.get_device_module(device)
    if hasattr(module, "set_device"):
        module.set_device(device)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Multiply and convolve float32 tensors in the block exactly or, with ``tf32``, rounded to TF32
    on GPUs that have it; afterwards as before."""
    is_new = hasattr(torch.backends, "fp32_precision")
    switches = {name: attrgetter(name)(torch.backends) for name in PRODUCTS if is_new}
    precisions = {name: switch.fp32_precision for name, switch in switches.items()}
    matrices = convolutions = None
    with suppress(RuntimeError):  # these do not tell what ``fp32_precision`` alone has set
        matrices = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        for name, switch in switches.items():
            is_set = name.endswith("matmul")  # by set_float32_matmul_precision
            if not is_set:  # ``allow_tf32 = False`` lets it inherit, which may be TF32
                switch.fp32_precision = "tf32" if tf32 and name.startswith("cudnn") else "ieee"
        yield
    finally:
        if matrices is not None:
            torch.set_float32_matmul_precision(matrices)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for name, switch in switches.items():
            switch.fp32_precision = "none"  # inherits
            if switch.fp32_precision != precisions[name]:
                switch.fp32_precision = precisions[name]


def synchronize(device: torch.device) -> None:
    """Wait until all work on ``device`` is done."""
    if is_accelerator(device):
        with on_device(device):
            torch.get_device_module(device).synchronize()


def random_state(device: torch.device) -> list[Tensor]:
    """States of the generators that work on ``device`` draws from: the CPU's, then its own."""
    states = [torch.get_rng_state()]
    if is_accelerator(device):
        with on_device(device):
            states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Restore what ``random_state`` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        with on_device(device):
            torch.get_device_module(device).set_rng_state(states[1])


def seed_devices(seed: int) -> None:
    """Seed torch's generators of the CPU and of accelerators in use.

    ``torch.manual_seed`` formats a traceback for each accelerator that is not in use.
    """
    kind = torch.accelerator.current_accelerator()
    in_use = kind is not None and _is_initialized(torch.get_device_module(kind))
    if in_use:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the generators of python, numpy and torch (CPU) after the block; within it they start
    from ``seed``, if one is given."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _is_initialized(module: Any) -> bool:
    """Whether this process uses a backend; one that cannot tell counts as used where it exists."""
    return getattr(module, "is_initialized", module.is_available)()


def memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of an accelerator; None where the backend cannot tell."""
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        with suppress(RuntimeError):  # of GPUs without a counter, such as Intel's integrated ones
            return module.mem_get_info(device)
        return None
    if hasattr(module, "recommended_max_memory"):
        total = module.recommended_max_memory()
        return max(0, total - module.driver_allocated_memory()), total
    return None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the memory of a device ended."""
    if isinstance(error, OutOfMemory) or not isinstance(error, RuntimeError):
        return False  # the first is reported already
    is_named = any(text in str(error) for text in OUT_OF_MEMORY)
    return is_named or isinstance(error, torch.OutOfMemoryError)


def processor_seconds(device: torch.device) -> float:
    """A clock of what computes: the seconds that the processors have worked for this process, all
    its threads together; of an accelerator, which is taken to work all the while, those of the
    wall."""
    return time.perf_counter() if is_accelerator(device) else time.process_time()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring ``peak_memory`` anew."""
    if peak_memory(device) is not None:
        torch.get_device_module(device).reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors have taken since ``reset_peak_memory``; None where the backend does
    not count them."""
    count = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return count(device) if count and is_accelerator(device) else None


def prefers_bf16(device: Device) -> bool:
    """Whether to compute in bf16 where digits matter little: on accelerators that have its
    arithmetic (emulated bf16 takes twice the time of float32).

    An accelerator of another machine, for which this one plans work, counts as one that has. A CPU
    never does: with AVX-512 BF16 some take half the time of float32, and others, with the same
    flag, twice that time.
    """
    if not is_accelerator(device):
        return False
    return not is_available(device) or _computes_in(torch.bfloat16, torch.device(device).type)


def float64_device(device: torch.device) -> torch.device:
    """Where results on ``device`` are summed in float64: there, or on the CPU if it has none."""
    if not is_accelerator(device) or _computes_in(torch.float64, device.type):
        return device
    return CPU


@functools.cache
def _computes_in(dtype: torch.dtype, kind: str) -> bool:
    """By trial: torch does not say it of all backends."""
    if dtype == torch.bfloat16 and hasattr(torch.get_device_module(kind), "is_bf16_supported"):
        # older GPUs compute in it, slowly: torch emulates it
        return torch.get_device_module(kind).is_bf16_supported(including_emulation=False)
    try:
        torch.ones(1, dtype=dtype, device=kind) + 1
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


@functools.cache
def skips_fused_steps(device: torch.device) -> bool:
    """Whether a fused optimizer on ``device`` skips a step where its ``found_inf`` is 1. By trial:
    kernels of MPS take ``found_inf`` and ignore it."""
    weight = torch.nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    optimizer.step()
    return weight.item() == 1


@functools.cache
def takes_pinned_memory(device: torch.device) -> bool:
    """Whether copies from page-locked memory of the host to ``device`` need not be waited for."""
    if not is_accelerator(device):
        return False
    try:
        pinned = torch.empty(1).pin_memory()
    except (RuntimeError, TypeError):
        return False
    return pinned.device == CPU


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on ``device``, which nothing waits for where ``device`` can read
    page-locked memory; a tensor that is there already as it is."""
    if tensor.device == CPU and takes_pinned_memory(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


T = TypeVar("T")
memory_log = logging.getLogger("cliptex.memory")


def out_of_memory(error: BaseException, advice: str) -> OutOfMemory:
    """One line with what torch says of the sizes.

    It does not refer to ``error``, whose traceback would hold the tensors of the failed pass.
    """
    return OutOfMemory(f"out of memory on the device ({first_line(error)}); {advice}")


@contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """Report in one line that the memory of the device ended in the block.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(str(out_of_memory(error, advice))) from None


# Largest tensor of a pass on a CPU. The C library gives larger blocks back to the system each time,
# and they leave the processor's cache.
CPU_BYTES = 80 * 2**20


class _Largest(TorchDispatchMode):
    """``bytes``: of the largest tensor that is computed in the block."""

    bytes = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (each for each in tree_leaves(result) if isinstance(each, Tensor))
            self.bytes = max(self.bytes, *(each.nbytes for each in tensors), 1)
        return result


class Halving:
    """Runs a pass over the parts of batches, which are halved when the memory of the device ends,
    and on a CPU are so small that no activation has more than ``CPU_BYTES``; a trial with one row
    tells.

    Args:
        size: most rows of a part.
        about: what is done, for people: ``encoding images``.
        notes: gets a line when parts become smaller. Each row is computed as before, but sums may
            be rounded differently.
        device: that computes; None for one whose parts need no trial.
    """

    def __init__(
        self, size: int, about: str, notes: list[str], device: Device | None = None
    ) -> None:
        self.size, self.about, self.notes = size, about, notes
        self.has_trial = device is not None and not is_accelerator(device)
        self._largest = 0  # part that did not fit
        self._bytes = 0.0  # of the largest activation of a row, for each of its pixels

    def __call__(self, function: Callable[[Any], T], batch: Any, pixels: int = 1) -> list[T]:
        """``function`` of consecutive parts of a batch (a tensor or a list).

        Args:
            pixels: of a row.

        Raises:
            OutOfMemory: a single row does not fit.
        """
        if self.has_trial and not self._bytes and len(batch) > 2:
            with _Largest() as largest:
                function(batch[:1])
            self._bytes = largest.bytes / pixels
        fitting = len(batch)
        if self._bytes:  # a power of two
            fitting = 1 << max(int(CPU_BYTES / self._bytes / pixels), 2).bit_length() - 1
        results: list[T] = []
        start = 0
        while start < len(batch):
            part, failure = batch[start : start + min(self.size, fitting)], None
            try:
                results.append(function(part))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = out_of_memory(error, f"{self.about} one by one does not fit")
            if failure is None:
                start += len(part)
            elif len(part) == 1:
                raise failure
            else:  # outside of the handler: the traceback held the tensors of the pass
                self._halve(len(part))
        return results

    def _halve(self, rows: int) -> None:
        self.size, self._largest = rows // 2, self._largest or rows
        note = (
            f"{self.about}: at most {self.size} at once instead of {self._largest}, which do not"
            " fit the memory of the device; sums may be rounded differently"
        )
        memory_log.warning(note)
        self.notes[:] = [line for line in self.notes if not line.startswith(f"{self.about}: ")]
        self.notes.append(note)


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations while ``function`` runs, backward passes inside it included.

    Counted are matrix products, convolutions and attention, by torch's own counter: a multiply and
    an add are two operations; element-wise operations (norms, activations, optimizer) and decoding
    are not. Callers count one representative step and multiply it by the number of steps, since the
    counter slows what it counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    custom: Any = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        function()
    return int(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    *options: Any,
    out_shape: Any = None,
) -> int:
    """Each requested gradient costs as much as the convolution itself.

    ``options``: bias, stride, padding, dilation, transposed, output padding, groups, and which
    gradients are requested.

    Torch's own formula takes the gradient of a grouped convolution's weight for that of a dense
    one: for EfficientNet's depthwise convolutions thirteen times too much in all.
    """
    transposed, requested = options[4], options[7]
    positions = math.prod((image if transposed else gradient)[2:])
    # weight: (out, in / groups, …), or transposed (in, out / groups, …); either way its product is
    # multiplied per position
    return 2 * image[0] * positions * math.prod(weight) * (int(requested[0]) + int(requested[1]))
