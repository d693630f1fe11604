"""What loading processes deliver to a device that takes no time, against as many processes that
decode the same and nothing more."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from tests.performance.harness import Result, alternate, bench
from tests.performance.making import training_data
from tests.performance.toys import jpegs

WORKERS = min(os.cpu_count() or 1, 8)
PHOTOGRAPHS = (512, 384)  # about the mean of ImageNet's


def seconds_of_processes(work: Callable[[int], None]) -> float:
    """Until ``WORKERS`` processes have each done their share of the work."""
    started = time.perf_counter()
    processes = [
        get_context("fork").Process(target=work, args=(number,)) for number in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.perf_counter() - started


@bench(images=8, pairs=64, size=32, n=1)
def feeding(images: int = 10_000, pairs: int = 2048, size: int = 224, n: int = 3) -> list[Result]:
    """Images a second of an encoding pass of a backbone that computes nothing, and samples a second
    of a training that computes nothing, with a loading process for each core."""
    import torch

    from probes.base import EncodeContext
    from probes.image_level.encode import ImageViews
    from probes.image_level.settings import Encoding
    from tests.probes.whole_images import Colours

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loading process
    backbone, run = Colours((size, size)), EncodeContext(torch.device("meta"), WORKERS)

    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), min(images, 200), PHOTOGRAPHS) * max(images // 200, 1)
        nothing = torch.empty(1, 1, device="meta")
        views = ImageViews(run, backbone, paths, Encoding(), encode=lambda batch: nothing)
        data = training_data(Path(folder), pairs, size)
        samples = len(data) * data.recipe.batch_size

        def encode() -> float:
            started = time.perf_counter()
            for _ in views.tensors():
                pass
            return len(paths) / (time.perf_counter() - started)

        def decode() -> float:
            def share(number: int) -> None:
                for index in range(number, len(paths), WORKERS):
                    views.load(index)

            return len(paths) / seconds_of_processes(share)

        def train() -> float:
            started = time.perf_counter()
            for _ in data.loader(0, WORKERS):
                pass
            return samples / (time.perf_counter() - started)

        def make_batches() -> float:
            def share(number: int) -> None:
                for step in range(number, len(data), WORKERS):
                    data[step]

            return samples / seconds_of_processes(share)

        goal, note = ">= 0.9", f"{WORKERS} processes"
        rows = [
            alternate(
                f"an encoding pass without a backbone against decoding alone ({size} px)",
                encode,
                decode,
                goal=goal,
                unit="images/s",
                n=n,
                note=f"{note}, photographs of {PHOTOGRAPHS[0]} × {PHOTOGRAPHS[1]}",
            ),
            alternate(
                f"a training without a model against making its batches alone ({size} px)",
                train,
                make_batches,
                goal=goal,
                unit="samples/s",
                n=n,
                note=f"{note}, photographs of 640 × 480 with three labels",
            ),
        ]
    torch.set_num_threads(threads)
    return rows
