"""Probes on features that are encoded once, against MMSegmentation's Runner."""

from __future__ import annotations

import io
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

from mmengine.config import Config

from probes.base import Context
from probes.registry import PROBES
from tests.performance.harness import Result, alternate, bench, limited, own_home

MODEL, TOY = "random/timm/vit_base_patch16_224", "random/timm/test_vit"
SEGMENTERS = ("linear", "deeplabv3", "pspnet")


@bench(images=8, epochs=1, side=32, model=TOY)
def segmentation(
    images: int = 64, epochs: int = 10, side: int = 224, model: str = MODEL
) -> list[Result]:
    """Seconds, and mIoU, of a linear probe on a frozen ViT-B/16 with an empty cache, encoded in
    fp32 and, where suite paper does, in bf16; and of mmengine's Runner in fp32 without a cache."""
    from cliptex_common.device import current_device, prefers_bf16

    goals = {"fp32": ">= 7"}
    if prefers_bf16(current_device()):
        goals["bf16"] = ">= 8"
    rows: list[Result] = []
    with beside_runner(model, images, side, epochs, lr=3e-3, cache="fp16") as sides:
        ours, *_ = sides
        stock_first(sides)
        for precision, goal in goals.items():
            ours(precision=precision, max_iters=1)  # imports and sets up what is not measured
            title = (
                f"linear segmentation probe, {images} images, {epochs} epochs at {side} px: ours"
                f" (backbone in {precision}) against mmseg's Runner in fp32"
            )
            run = partial(ours, precision=precision)
            note = "encoding included, the cache empty before"
            rows += against(title, (run, *sides[1:]), goal, note)
    return rows


@bench(images=8, epochs=1, side=32, model=TOY)
def tuned(
    images: int = 32,
    epochs: int = 2,
    side: int = 224,
    model: str = "random/timm/vit_small_patch16_224",
) -> list[Result]:
    """Seconds, mIoU and peak memory of fine-tuning all of a ViT-S/16 with a linear head, and of
    mmengine's Runner with the same weights to train."""
    title = (
        f"linear segmentation with the backbone tuned, {images} images, {epochs} epochs at {side}"
        " px: ours against mmseg's Runner"
    )
    with beside_runner(model, images, side, epochs, **TUNED) as sides:
        stock_first(sides)
        sides[0](max_iters=1)
        rows = against(title, sides, ">= 1", "one rate, all weights, fp32")
    peaks = []
    for number in range(2):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peaks.append(process.submit(peak, number, model, images, side, epochs).result())
    note = "each in a process of its own"
    return [*rows, limited(f"{title}, peak memory", *peaks, "MB", note)]


TUNED = {"tune": "all", "tune_rates": (1e-4,), "lr": 3e-3, "precision": "fp32"}


def peak(number: int, model: str, images: int, side: int, epochs: int) -> float:
    """MB that this process has taken at most after side ``number`` of a tuned training."""
    from cliptex_common.process import keep_freed_memory

    if number == 0:  # as our units of work do
        keep_freed_memory()
    with beside_runner(model, images, side, epochs, **TUNED) as sides:
        sides[number]()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


Sides = tuple[Callable[..., None], Callable[[], float], dict[str, float]]


def stock_first(sides: Sides) -> None:
    """Train by the Runner, with the C library's own settings, as its users have it; from then on
    freed memory is kept, as our units of work do."""
    from cliptex_common.process import keep_freed_memory

    sides[1]()
    keep_freed_memory()


def against(title: str, sides: Sides, goal: str, note: str) -> list[Result]:
    """A row of seconds, each side once, and one of both scores; see ``beside_runner``."""
    ours, stock, scores = sides
    seconds = alternate(title, ours, stock, goal=goal, n=1, warm=False, invert=True, note=note)
    mine, theirs = scores["ours"], scores["stock"]
    difference = "ratio: their difference"
    name = f"{title}: mIoU of both"
    return [
        seconds,
        Result(name, mine, theirs, abs(mine - theirs), "<= 1.0", "mIoU", 1, difference),
    ]


@contextmanager
def beside_runner(
    model: str, images: int, side: int, epochs: int, **settings: Any
) -> Iterator[Sides]:
    """Two functions that train a linear head, and the mIoU of both: ours, whose changes of settings
    are arguments, on an empty cache; and mmengine's Runner with mmseg's own segmenter, which trains
    once only, and returns its seconds."""
    from mmengine.runner import Runner

    import backbones
    import benchmark.catalog  # noqa: F401
    from probes.features.store import root
    from probes.train.frozen_backbone import share
    from tests.performance.toys import context, dense

    batch = min(16, images)
    settings |= {
        "size": side,
        "batch_size": batch,
        "max_iters": epochs * images // batch,
        "flip": 0.0,
        "scale_range": (1.0, 1.0),
        "feature_stride": 16,
        "fixed_crops": 1,
    }
    probe, create = PROBES["segmentation/linear"], {"name": model, "seed": 0}
    backbone = backbones.create(model, seed=0)
    with own_home() as folder:
        data = dense(folder / "data", "segmentation", images, max(4, images // 8), side)

        def task(work: str, **changes: Any) -> Context:
            chosen = probe.settings_type(**settings | changes)
            return context(backbone, create, data, chosen, folder / work)

        scores: dict[str, float] = {}

        def ours(**changes: Any) -> None:
            for stored in (root(), folder / "ours"):
                shutil.rmtree(stored, ignore_errors=True)
            scores["ours"] = probe.run(task("ours", **changes)).metrics["mIoU"]

        @cache
        def stock() -> float:
            started = time.perf_counter()
            with redirect_stdout(io.StringIO()):
                config = Config.fromstring(probe.config(stock_task), ".py")
                mmsegs_own(config)
                config.log_level, config.work_dir = "ERROR", str(stock_task.work_dir)
                runner = Runner.from_cfg(config)
                runner.train()  # evaluates at its end
            scores["stock"] = runner.message_hub.get_scalar("val/mIoU").current()
            return time.perf_counter() - started

        stock_task = task("stock", cache="none", precision="fp32")
        share(create, stock_task.backbone)  # its construction is not what is measured
        yield ours, stock, scores


def mmsegs_own(config: Config) -> None:
    """The same linear head in mmseg's segmenter and with mmseg's loss, instead of our quicker
    ones."""
    from mmseg.registry import MODELS

    from probes.dense.heads import LinearHead

    def forward(head: Any, inputs: Any) -> Any:
        return head.cls_seg(head.norm(head._transform_inputs(inputs)))

    own = {"forward": forward}
    MODELS.register_module(
        name="BenchLinearHead", module=type("BenchLinearHead", (LinearHead,), own), force=True
    )
    config.model.type, config.model.decode_head.type = "EncoderDecoder", "BenchLinearHead"
    del config.model["loss_images"]  # of our own loss


@bench(images=8, side=32, model=TOY)
def together(images: int = 32, side: int = 224, model: str = MODEL, n: int = 1) -> list[Result]:
    """Three segmentation probes, depth and normals, in one pass on an empty cache, against a bare
    encoding of the same images plus the same five on a full cache."""
    import torch

    import backbones
    import benchmark.catalog  # noqa: F401
    from probes.features.store import root
    from tests.performance.toys import context, dense

    create = {"name": model, "seed": 0}
    backbone = backbones.create(model, seed=0)
    settings = {
        "size": side,
        "batch_size": 8,
        "max_iters": 4 * images // 8,
        "flip": 0.0,
        "scale_range": (1.0, 1.0),
        "feature_stride": 16,
        "fixed_crops": 1,
        "cache": "fp16",
        "channels": 32,
    }
    tasks = [f"segmentation/{name}" for name in SEGMENTERS] + ["depth/linear", "normals/linear"]
    with own_home() as folder:
        data = {
            kind: dense(folder / kind, kind, images, 4, side)
            for kind in ("segmentation", "depth", "normals")
        }

        def probes(**changes: int) -> None:
            group = []
            for task in tasks:
                chosen = PROBES[task].settings_type(**settings | changes)
                kind = PROBES[task].kind
                work = folder / "work" / task
                group.append((PROBES[task], context(backbone, create, data[kind], chosen, work)))
            for result in group[0][0].run_group(group):  # type: ignore[attr-defined]
                if isinstance(result, Exception):
                    raise result

        def ours() -> None:
            shutil.rmtree(root(), ignore_errors=True)
            probes()

        def bare() -> None:
            device = next(backbone.parameters()).device
            with torch.inference_mode():
                for _ in range(0, images + 4, 8):
                    backbone(torch.randn(8, 3, side, side, device=device))
            probes()

        probes(max_iters=1)  # what is imported and set up once in a process is not what is measured
        return [
            alternate(
                f"five dense probes on {images} images: empty cache against bare encoding and heads"
                " alone",
                ours,
                bare,
                goal="<= 1.2",
                n=n,
                warm=False,
                note="depth and normals share the photographs of segmentation",
            )
        ]


@bench(counts=(10, 20), n=1)
def growth(counts: tuple[int, ...] = (1_000, 10_000, 100_000), n: int = 5) -> list[Result]:
    """The feature cache at growing sizes: writing, opening, and reading at random; microseconds an
    item, the fastest of ``n`` rounds over all sizes: a thousand reads take less time than other
    processes may hold the machine for."""
    import numpy as np
    import torch

    from probes.features.store import CacheKey, get_or_build, root

    rows = {operation: dict.fromkeys(counts, math.inf) for operation in ("write", "open", "read")}
    value = torch.randn(48, 4, 4).half()

    def build(shards: Any) -> Any:
        return ((item, [value], {}) for shard in shards for item in shard)

    with own_home():
        for count in counts * n:
            shutil.rmtree(root(), ignore_errors=True)
            sizes = [value.nbytes] * count
            key = CacheKey("dense maps", "bench", {"count": count}, ("fp16",), sizes)
            started = time.perf_counter()
            get_or_build(key, build).close()
            written = time.perf_counter()
            store = get_or_build(key, build)
            opened = time.perf_counter()
            order = np.random.default_rng(0).integers(count, size=1000)
            for item in order:  # touches every shard's index once
                store[int(item)]
            warm = time.perf_counter()
            for item in order:
                store[int(item)][0].sum()
            read = time.perf_counter()
            store.close()
            seconds = {
                "write": (written - started) / count,
                "open": (opened - written) / count,
                "read": (read - warm) / len(order),
            }
            for operation, each in seconds.items():
                rows[operation][count] = min(rows[operation][count], 1e6 * each)
    return [
        limited(
            f"feature cache, {operation} an item: {counts[-1]:,} items against {counts[0]:,}",
            each[counts[-1]],
            each[counts[0]],
            "µs",
            ", ".join(f"{count:,}: {least:.3g}" for count, least in each.items()),
            most=1.5,
        )
        for operation, each in rows.items()
    ]
