"""What a process settles before torch is imported: its cores, the accelerators that it sees and
what they are called, the memory that its C library keeps, the versions of libraries, and that
torch's compiler is imported where something is compiled.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any

DEVICE_NAMES = "auto, cpu, or an accelerator as torch names it (cuda, cuda:1, xpu, mps)"
# variables that restrict a process to some accelerators, by torch's type of device. HIP, which
# torch calls by the name of CUDA, reads both variables of its type, the second one first.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK",),
}
DRIVER_TOOLS = ("nvidia-smi", "amd-smi", "rocm-smi", "xpu-smi")  # installed with a driver


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_accelerator() -> bool:
    """Whether torch may find an accelerator here: not where it is not imported yet, and built for
    CPUs alone, without backends of other packages."""
    is_for_cpus = "torch" not in sys.modules and version("torch").endswith("+cpu")
    return not is_for_cpus or bool(entry_points(group="torch.backends"))


def is_accelerator_name(name: str) -> bool:
    """Whether ``--device name`` requests an accelerator; ``auto`` takes what there is."""
    return name.partition(":")[0] not in ("auto", "cpu")


def accelerator_ids(kind: str, count: int) -> list[str]:
    """What the variables call each of the ``count`` accelerators of a type that this process
    sees."""
    for variable in reversed(VARIABLES.get(kind, ())):  # as HIP reads them
        if os.environ.get(variable):
            return os.environ[variable].split(",")[:count]
    return list(map(str, range(count)))


def restrict_accelerators(kind: str = "", number: str = "") -> dict[str, str]:
    """Variables with which a process sees only the accelerator ``number`` (of ``accelerator_ids``);
    by default none."""
    # without a type only CUDA's are hidden: an empty ZE_AFFINITY_MASK shows all
    return dict.fromkeys(VARIABLES.get(kind or "cuda", ()), number)


def describe_variables() -> str:
    """The variables that are set in this process, as ``NAME=value``."""
    names = (name for names in VARIABLES.values() for name in names if name in os.environ)
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def toolkit_versions() -> dict[str, str | None]:
    """Version of CUDA that torch was built with; None without it, or where torch is not loaded."""
    torch = sys.modules.get("torch")
    return {"cuda": torch.version.cuda if torch else None}


@contextmanager
def without_script() -> Iterator[None]:
    """Processes that are spawned in the block do not import the script that this one runs, which
    would start them, too, unless it has a main guard. They need nothing of it."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def end_with_parent() -> None:
    """End this process at once when the one that started it ends, also by kill -9."""

    def wait(parent: Any) -> None:
        parent.join()
        os._exit(1)

    parent = multiprocessing.parent_process()
    threading.Thread(target=wait, args=(parent,), daemon=True).start()


# parameters of glibc's mallopt(3)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
RETAINED_BYTES = 512 * 2**20


def keep_freed_memory() -> None:
    """Keep up to half a gigabyte of what is freed for the next batch. By default glibc gives large
    blocks back to the system at once, and the page faults of taking them again were a third of the
    processor time of a linear probe (12 million of them, 0.3 million with this)."""
    with suppress(AttributeError):
        library = ctypes.CDLL(None)
        # some versions refuse more than 32 MiB
        if not library.mallopt(MMAP_THRESHOLD, RETAINED_BYTES):
            library.mallopt(MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(TRIM_THRESHOLD, RETAINED_BYTES)


def return_freed_memory() -> None:
    """Give freed memory back to the system."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


# import name → distributions with another name
DISTRIBUTIONS = {
    "open_clip": ("open_clip_torch",),
    "PIL": ("pillow", "pillow-simd"),
    "cv2": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    ),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
}
# libraries that decode, resize and compute whole images; and in MMLab's pipelines
IMAGE_LIBRARIES = ("torch", "torchvision", "PIL", "timm")
DENSE_LIBRARIES = ("torch", "cv2", "mmcv", "mmengine")
# those that can change a number of any probe
PROBING_LIBRARIES = (
    *("torch", "torchvision", "numpy", "PIL", "cv2", "mmcv", "mmengine", "mmseg", "mmdet"),
    *("pycocotools", "faster_coco_eval"),  # COCO's mean AP
    *("timm", "open_clip"),  # class names and transforms; prompts
)


def versions(*libraries: str) -> dict[str, str]:
    """Import name → version, as in the keys of cached features and finished cells: without the
    build after its ``+`` (``2.13.0`` of ``2.13.0+cu128``); ``absent`` if it is not installed.
    Nothing is imported."""
    return {library: _version(library) for library in libraries}


@cache
def _version(library: str) -> str:
    for distribution in DISTRIBUTIONS.get(library, (library,)):
        try:
            return version(distribution).partition("+")[0]
        except PackageNotFoundError:
            continue
    return "absent"


COMPILER = "torch._dynamo"


class DeferredCompiler(ModuleType):
    """Stands for torch's compiler, or its ``utils``, until something else of it is used.

    torch's optimizers and torchvision import it to stay out of its way; that takes two seconds and
    a hundred megabytes.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import_compiler()
        return getattr(sys.modules[self.__name__], name)

    @staticmethod
    def disable(function: Any = None, *options: Any, **named: Any) -> Any:
        """The function itself: nothing is compiled. Without one, the compiler's decorator."""
        return function or import_compiler().disable(function, *options, **named)

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """There is no graph."""

    @staticmethod
    def is_compile_supported(device: str) -> Any:
        """Asks the compiler."""
        return import_compiler().utils.is_compile_supported(device)


class CompilerFinder(MetaPathFinder, Loader):
    """Finds ``DeferredCompiler`` as torch's compiler; Python asks it first."""

    names = (COMPILER, f"{COMPILER}.utils")

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name in self.names:
            return ModuleSpec(name, self, is_package=True)
        if not name.startswith(f"{COMPILER}."):
            return None
        path = import_compiler().__path__
        # what the compiler has imported itself must not be executed again
        return ModuleSpec(name, self) if name in sys.modules else PathFinder.find_spec(name, path)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules.get(spec.name) or DeferredCompiler(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def import_compiler() -> Any:
    """torch's compiler itself, from now on."""
    if COMPILER_FINDER in sys.meta_path:
        sys.meta_path.remove(COMPILER_FINDER)
        for name in CompilerFinder.names:
            sys.modules.pop(name, None)
    return import_module(COMPILER)


COMPILER_FINDER = CompilerFinder()
if COMPILER not in sys.modules:
    sys.meta_path.insert(0, COMPILER_FINDER)
