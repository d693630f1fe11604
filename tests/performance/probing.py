"""Probes on features that are encoded once, against MMSegmentation's Runner."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.config import Config

from probes.registry import PROBES
from tests.performance.harness import Result, alternate, bench, print_result

MODEL = "random/timm/vit_base_patch16_224"
SEGMENTERS = ("linear", "deeplabv3", "pspnet")


def against_stock(
    title: str,
    kind: str,
    probe_name: str,
    make: Any,
    settings: dict[str, Any],
    metric: str,
    goal: str,
    *,
    as_stock: Callable[[Config], None] = lambda config: None,
    model: str = MODEL,
    n: int = 1,
    stock_settings: Any = (),
) -> list[Result]:
    """Seconds of a probe with an empty cache and of mmengine's Runner without one, and the metric.

    Args:
        as_stock: replaces our parts in the Runner's config by the library's.
        stock_settings: settings of the Runner alone.
    """
    from mmengine.runner import Runner

    import backbones
    import benchmark.suites.catalog  # noqa: F401
    from probes.features.store import root
    from probes.runner.bridge import share
    from tests.performance.toys import context

    probe, create = PROBES[f"{kind}/{probe_name}"], {"name": model, "seed": 0}  # type: ignore[index]
    backbone = backbones.create(model, seed=0)
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder) / "data")
        plain = {key: value for key, value in settings.items() if key != "cache"} | dict(
            stock_settings
        )

        def ours() -> None:
            shutil.rmtree(root(), ignore_errors=True)
            shutil.rmtree(Path(folder) / "ours", ignore_errors=True)
            task_context = context(
                backbone, create, data, probe.settings_type(**settings), Path(folder) / "ours"
            )
            values["ours"] = probe.run(task_context).metrics[metric]

        def stock() -> None:
            work = Path(folder) / "stock"
            shutil.rmtree(work, ignore_errors=True)
            task_context = context(backbone, create, data, probe.settings_type(**plain), work)
            share(create, task_context.backbone)  # its construction is not what is measured
            with redirect_stdout(io.StringIO()):
                config = Config.fromstring(probe.config(task_context), ".py")
                as_stock(config)
                config.log_level, config.work_dir = "ERROR", str(work)
                runner = Runner.from_cfg(config)
                runner.train()  # evaluates at its end
            values["stock"] = float(_last(runner)[metric])

        probe.run(  # what is imported and set up once in a process is not what is measured
            context(
                backbone,
                create,
                data,
                probe.settings_type(**{**settings, "max_iters": 1}),
                Path(folder) / "first",
            )
        )
        seconds = alternate(
            title,
            ours,
            stock,
            goal=goal,
            n=n,
            warm=False,
            invert=True,
            note="encoding included, the cache empty before each",
        )
    share_of = Result(
        f"{title}: {metric} of both",
        values["ours"],
        values["stock"],
        abs(values["ours"] - values["stock"]),
        "<= 1.0",
        metric,
        1,
        "ratio: their difference",
    )
    print_result(share_of)
    return [seconds, share_of]


def _last(runner: Any) -> dict[str, float]:
    """The last values of the validation metrics in mmengine's message hub."""
    return {
        name.removeprefix("val/"): buffer.current()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith("val/")
    }


@bench
def segmentation(
    images: int = 64, epochs: int = 10, side: int = 224, model: str = MODEL, n: int = 1
) -> list[Result]:
    """A linear segmentation probe on a frozen ViT-B/16, encoded in bf16 as in suite paper."""
    from tests.performance.toys import dense

    batch = min(16, images)
    settings = {
        "size": side,
        "batch_size": batch,
        "max_iters": epochs * images // batch,
        "flip": 0.0,
        "scale_range": (1.0, 1.0),
        "feature_stride": 16,
        "fixed_crops": 1,
        "cache": "fp16",
        "lr": 3e-3,
    }
    return against_stock(
        f"linear segmentation probe, {images} images, {epochs} epochs at {side} px: ours (backbone"
        " in bf16) against mmseg's Runner in fp32",
        "segmentation",
        "linear",
        lambda folder: dense(folder, "bench-seg", images, max(4, images // 8), side),
        settings | {"precision": "bf16"},
        "mIoU",
        ">= 8",
        as_stock=mmsegs_own,
        model=model,
        n=n,
        stock_settings={"precision": "fp32"},
    )


def mmsegs_own(config: Config) -> None:
    """The same linear head in mmseg's segmenter and with mmseg's loss, instead of our quicker
    ones."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS

    from probes.dense.heads import LinearHead

    own = {"loss_by_feat": BaseDecodeHead.loss_by_feat}
    MODELS.register_module(
        name="BenchLinearHead", module=type("BenchLinearHead", (LinearHead,), own), force=True
    )
    config.model.type, config.model.decode_head.type = "EncoderDecoder", "BenchLinearHead"


@bench
def together(images: int = 32, side: int = 224, model: str = MODEL, n: int = 1) -> list[Result]:
    """Three segmentation probes, depth and normals, in one pass on an empty cache, against a bare
    encoding of the same images plus the same five on a full cache."""
    import torch

    import backbones
    import benchmark.suites.catalog  # noqa: F401
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
    tasks = [("bench-seg", name) for name in SEGMENTERS]
    tasks += [("bench-depth", "linear"), ("bench-normals", "linear")]
    with tempfile.TemporaryDirectory() as folder:
        data = {name: dense(Path(folder) / name, name, images, 4, side) for name in dict(tasks)}

        def probes(**changes: int) -> None:
            as_a_group(
                {
                    (name, probe): context(
                        backbone,
                        create,
                        data[name],
                        PROBES[f"{data[name].spec.kind}/{probe}"].settings_type(
                            **settings | changes
                        ),
                        emptied(Path(folder) / f"work-{name}-{probe}"),
                    )
                    for name, probe in tasks
                }
            )

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
        result = alternate(
            f"five dense probes on {images} images: empty cache against bare encoding and heads"
            " alone",
            ours,
            bare,
            goal="<= 1.2",
            n=n,
            warm=False,
            note="depth and normals share the photographs of segmentation",
        )
    return [result]


def as_a_group(contexts: dict[tuple[str, str], Any]) -> None:
    """Run probes, by (dataset, probe), as ``run`` does with those of one group."""
    tasks = [
        (PROBES[f"{each.data.spec.kind}/{name}"], each) for (_, name), each in contexts.items()
    ]
    for result in tasks[0][0].run_group(tasks):  # type: ignore[attr-defined]
        if isinstance(result, Exception):
            raise result


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@bench
def growth(counts: tuple[int, ...] = (1_000, 10_000, 100_000)) -> list[Result]:
    """The feature cache at growing sizes: writing, opening, and reading at random; microseconds an
    item."""
    import numpy as np
    import torch

    from probes.features.store import CacheKey, get_or_build

    rows: dict[str, dict[int, float]] = {"write": {}, "open": {}, "read": {}}
    before = os.environ.get("CLIPTEX_HOME")
    value = torch.randn(48, 4, 4).half()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLIPTEX_HOME"] = folder
        try:
            for count in counts:
                key = CacheKey(
                    "dense maps", "bench", {"count": count}, ("fp16",), [value.nbytes] * count
                )
                started = time.perf_counter()
                get_or_build(
                    key, lambda shards: ((i, [value], {}) for shard in shards for i in shard)
                ).close()
                written = time.perf_counter()
                store = get_or_build(key, lambda shards: iter(()))
                opened = time.perf_counter()
                order = np.random.default_rng(0).integers(count, size=1000)
                for item in order:  # touches every shard's index once
                    store[int(item)]
                warm = time.perf_counter()
                for item in order:
                    store[int(item)][0].sum()
                read = time.perf_counter()
                store.close()
                rows["write"][count] = 1e6 * (written - started) / count
                rows["open"][count] = 1e6 * (opened - written) / count
                rows["read"][count] = 1e6 * (read - warm) / len(order)
        finally:
            if before is None:
                os.environ.pop("CLIPTEX_HOME", None)
            else:
                os.environ["CLIPTEX_HOME"] = before
    first, last = counts[0], counts[-1]
    results = [
        Result(
            f"feature cache, {operation} an item: {last:,} items against {first:,}",
            each[last],
            each[first],
            each[last] / each[first],
            "<= 1.5",
            "µs",
            1,
            ", ".join(f"{n:,}: {v:.3g}" for n, v in each.items()),
        )
        for operation, each in rows.items()
    ]
    for result in results:
        print_result(result)
    return results
