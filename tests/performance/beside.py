"""What a user would run instead beside ours: seconds and peak memory, each in a process of its own.

Both evaluate the same backbone on the same images, in turn and with as many threads.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.performance.harness import Result, Unavailable, alternate, limited, own_home

SOURCES = "CLIPTEX_SOURCES"  # folder of checkouts, each named as its protocol
TEMPLATES = tuple(f"{start} of a {{c}}." for start in ("a photo", "a drawing", "art", "a picture"))
Evaluate = Callable[[], float]  # from image files to the score
lasting = ExitStack()  # contexts of a process, as long as it evaluates
EXTRAS = ("pictures", "label_free")  # phases of ours that theirs have not
extras: dict[str, float] = {}  # seconds of each in the last evaluation of a process


@dataclass(frozen=True)
class Size:
    """Of what is evaluated.

    Attributes:
        images, val: of train and val, ``side`` px wide and high.
        steps: batches of a training.
        width: channels of a head, where it has its own.
    """

    images: int = 64
    val: int = 32
    side: int = 224
    steps: int = 24
    batch: int = 8
    width: int = 128
    model: str = "random/timm/vit_small_patch16_224"


SIZE, TOY = Size(), Size(40, 4, 32, 2, 2, 8, "random/timm/test_vit")
# a folder with images, the peer's checkout, the size → what is timed
Prepare = Callable[[Path, Path, Size], Evaluate]


def checkout(protocol: str) -> Path:
    """The checkout of a protocol's source.

    Raises:
        Unavailable: there is none, or it is at another commit than the golden record.
    """
    import probes.catalog  # noqa: F401
    from probes.registry import PROTOCOLS
    from tests.protocols.sources import commit_of

    expected = PROTOCOLS.get(protocol)  # None of suites whose numbers are not compared
    path = Path(os.environ.get(SOURCES, "")) / protocol
    if SOURCES not in os.environ or not path.is_dir():
        source = f" of {expected.source}" if expected else ""
        raise Unavailable(f"no checkout {protocol}{source} in --sources")
    commit = commit_of(path)
    if expected and commit and not commit.startswith(expected.commit):
        raise Unavailable(f"{path} is at {commit[:7]}; check out {expected.commit}")
    return path


def compare_sides(
    title: str,
    metric: str,
    kind: str,
    sides: tuple[Prepare, Prepare],
    size: Size,
    n: int,
    protocol: str = "",
) -> list[Result]:
    """A row of seconds and one of peak memory.

    Args:
        metric: that both return; its values are noted.
        kind: of the images: ``classification``, or one of ``toys.dense``.
        sides: ours and theirs, functions of modules; what they do before they return the
            evaluation is not timed.
        protocol: whose source is theirs; empty for an installed package.

    Raises:
        Unavailable: see ``checkout``.
    """
    from tests.performance import toys

    source = checkout(protocol) if protocol else Path()

    name = f"{title} ({size.images} + {size.val} images): ours against theirs"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = Path(folder)
        if kind == "classification":
            toys.classes(data, size.images, size.val)
        else:
            toys.dense(data, kind, size.images, size.val, size.side)
        a, b = (stack.enter_context(Worker(side, data, source, size)) for side in sides)
        seconds = alternate(f"{name}, seconds", a.evaluate, b.evaluate, goal="<= 1", n=n)
        memory = limited(f"{name}, peak memory", a.memory(), b.memory(), "MB")
    scores = f"{metric} {a.score:.2f} and {b.score:.2f}"
    for phase, spent in a.extras.items():
        scores += f"; {spent:.2f} s of ours: {phase.replace('_', '-')}"
    before = f"{a.before:.0f} and {b.before:.0f} MB of it before the evaluation"
    return [replace(seconds, note=scores), replace(memory, note=before)]


class Worker:
    """A process that evaluates on request.

    Attributes:
        before: MB that it took before the first evaluation.
        score, extras: of the last evaluation; see ``extras``.
    """

    extras: dict[str, float]

    def __init__(self, prepare: Prepare, *problem: Any) -> None:
        context = get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, prepare, *problem))
        self.process.start()
        end.close()
        self.before, self.score = self.pipe.recv(), 0.0

    def evaluate(self) -> float:
        """Seconds of an evaluation."""
        self.pipe.send(True)
        seconds, self.score, self.extras = self.pipe.recv()
        return seconds

    def memory(self) -> float:
        """The most MB that it took."""
        self.pipe.send(False)
        return self.pipe.recv()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe: Connection, prepare: Prepare, *problem: Any) -> None:
    """Evaluate whenever ``pipe`` asks for it, until it is closed."""
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with own_home(), lasting, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        evaluate = prepare(*problem)
        pipe.send(megabytes("VmRSS"))
        try:
            while True:
                if pipe.recv():
                    started = time.perf_counter()
                    score = evaluate()
                    pipe.send((time.perf_counter() - started, score, extras))
                else:
                    pipe.send(megabytes("VmHWM"))
        except EOFError:
            pass


def megabytes(field: str) -> float:
    """A field of this process's status; ``ru_maxrss`` would count what its parent took."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1000


def our_probe(
    task: str,
    protocol: str,
    metric: str,
    data: Path,
    size: Size,
    /,
    keep_store: bool = False,
    **changes: Any,
) -> Evaluate:
    """A probe of this suite on a dataset of ``toys``, whose store is empty each time.

    Args:
        task: whose preset of the protocol has its settings; ``changes`` override them.
        keep_store: let it find the features of the evaluation before.
    """
    import backbones
    import probes.catalog  # noqa: F401
    from cliptex_common.process import keep_freed_memory
    from cliptex_common.settings import with_changes
    from probes.features.store import root
    from probes.registry import find_preset, find_task
    from tests.performance.toys import classified, context
    from tests.probes.tiny_dense import prepared

    keep_freed_memory()  # as a unit of work does
    spec, probe = find_task(task)
    preset = find_preset(protocol, spec, probe).settings
    settings = with_changes(probe.settings_type(), {**preset, **changes})
    create = {"name": size.model, "seed": 0}
    backbone = backbones.create(**create)
    is_dense = probe.kind != "classification"
    dataset = prepared(data, probe.kind) if is_dense else classified(data)

    def evaluate() -> float:
        if not keep_store:
            shutil.rmtree(root(), ignore_errors=True)
        work = root().with_name("bench")
        task = replace(context(backbone, create, dataset, settings, work), num_workers=0)
        score = probe.run(task).metrics[metric]
        extras.update({name: task.cost.seconds[name] for name in EXTRAS if task.cost.seconds[name]})
        return score

    return evaluate


def import_from(source: Path, *unused: str) -> None:
    """Import from a checkout.

    Args:
        unused: packages that it imports for what is not evaluated; they need not be installed.
    """
    from tests.protocols.sources import missing, stand_ins

    sys.path.insert(0, str(source))
    sys.modules.update(stand_ins(*missing(*unused)))


def class_files(data: Path, split: str) -> list[tuple[Path, int]]:
    """Image and class of each sample that ``toys.classes`` wrote."""
    return [(path, int(path.name[:2])) for path in sorted((data / split).iterdir())]


class Classified:
    """A dataset for torch of what ``toys.classes`` wrote."""

    def __init__(self, data: Path, split: str, transform: Callable[[Any], Any]) -> None:
        self.files, self.transform = class_files(data, split), transform
        self.classes = sorted({kind for _, kind in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        path, kind = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), kind


class Dense:
    """A dataset for torch of what ``toys.dense`` wrote.

    Args:
        transform: image and ground truth → a sample.
    """

    def __init__(self, data: Path, split: str, transform: Callable[[Any, Any], Any]) -> None:
        self.files, self.transform = sorted((data / "images" / split).iterdir()), transform
        self.truth = data / "truth" / split

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        path = self.files[index]
        return self.transform(*map(Image.open, (path, self.truth / path.name)))
