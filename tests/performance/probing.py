"""Probes on a frozen backbone: encode once and probe, against what MMSegmentation's and
MMDetection's Runner does."""

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
from tests.performance.harness import Result, alternate, bench, say

MODEL = "random/timm/vit_base_patch16_224"
SEGMENTERS = ("linear", "deeplabv3", "pspnet")


def against_stock(
    what: str,
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
    plainly: Any = (),
) -> list[Result]:
    """Seconds of a probe with an empty cache, and of mmengine's own Runner on the same config
    without one (``as_stock`` puts the library's parts in the place of ours there, ``plainly`` are
    settings of its own); and what both measured."""
    from mmengine.runner import Runner

    import backbones
    import benchmark.catalog  # noqa: F401
    from probes.features.store import root
    from probes.runner.bridge import share
    from tests.performance.toys import context

    probe, create = PROBES[f"{kind}/{probe_name}"], {"name": model, "seed": 0}  # type: ignore[index]
    backbone = backbones.create(model, seed=0)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder) / "data")
        plain = {key: value for key, value in settings.items() if key != "cache"} | dict(plainly)

        def ours() -> None:
            shutil.rmtree(root(), ignore_errors=True)
            shutil.rmtree(Path(folder) / "ours", ignore_errors=True)
            place = context(
                backbone, create, data, probe.settings_type(**settings), Path(folder) / "ours"
            )
            found["ours"] = probe.run(place).metrics[metric]

        def stock() -> None:
            work = Path(folder) / "stock"
            shutil.rmtree(work, ignore_errors=True)
            place = context(backbone, create, data, probe.settings_type(**plain), work)
            share(create, place.backbone)  # its construction is not what is measured
            with redirect_stdout(io.StringIO()):
                config = Config.fromstring(probe.config(place), ".py")
                as_stock(config)
                config.log_level, config.work_dir = "ERROR", str(work)
                runner = Runner.from_cfg(config)
                runner.train()  # evaluates at its end
            found["stock"] = float(_last(runner)[metric])

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
            what,
            ours,
            stock,
            goal=goal,
            n=n,
            warm=False,
            invert=True,
            note="encoding included, the cache empty before each",
        )
    share_of = Result(
        f"{what}: {metric} of both",
        found["ours"],
        found["stock"],
        abs(found["ours"] - found["stock"]),
        "<= 1.0",
        metric,
        1,
        "ratio: their difference",
    )
    say(share_of)
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
    """A linear segmentation probe on a frozen ViT-B/16: encoded in fp32, as mmseg does, and in
    bf16, as suite paper does."""
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
    what = f"linear segmentation probe, {images} images, {epochs} epochs at {side} px: ours"
    results = []
    for name, more, goal in (("", {}, ""), (" (backbone in bf16)", {"precision": "bf16"}, ">= 8")):
        results += against_stock(
            f"{what}{name} against mmseg's Runner in fp32",
            "segmentation",
            "linear",
            lambda folder: dense(folder, "bench-seg", images, max(4, images // 8), side),
            settings | more,
            "mIoU",
            goal,
            as_stock=mmsegs_own,
            model=model,
            n=n,
            plainly={"precision": "fp32"},
        )
    return results


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
def detection(
    images: int = 16, epochs: int = 4, side: int = 224, model: str = MODEL, n: int = 1
) -> list[Result]:
    """Mask R-CNN on a frozen ViT-B/16."""
    from tests.performance.toys import instances

    settings = {
        "short_side": side,
        "long_side": side,
        "batch_size": 4,
        "max_iters": epochs * images // 4,
        "flip": 0.0,
        "out_channels": 32,
        "fc_out_channels": 64,
        "cache": "fp16",
    }
    return against_stock(
        f"Mask R-CNN probe, {images} images, {epochs} epochs at {side} px: ours against mmdet's"
        " Runner",
        "detection",
        "mask-rcnn",
        lambda folder: instances(folder, images, 4, side),
        settings,
        "bbox_mAP",
        "",
        model=model,
        n=n,
    )


@bench
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


@bench
def multi_head(images: int = 32, side: int = 96, model: str = MODEL, n: int = 3) -> list[Result]:
    """Three segmentation probes in one pass against one after the other: with random crops, and on
    kept features."""
    import backbones
    import benchmark.catalog  # noqa: F401
    from tests.performance.toys import context, dense

    create = {"name": model, "seed": 0}
    backbone = backbones.create(model, seed=0)
    settings = {
        "size": side,
        "batch_size": 8,
        "max_iters": 2 * images // 8,
        "feature_stride": 16,
        "channels": 32,
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        data = dense(Path(folder) / "data", "bench-seg", images, 4, side)
        for about, more in (
            ("random crops", {}),
            ("kept features", {"fixed_crops": 1, "cache": "fp16"}),
        ):

            def place(probe: str, more: dict[str, Any] = more) -> Any:
                chosen = PROBES[f"segmentation/{probe}"].settings_type(**settings, **more)
                return context(
                    backbone, create, data, chosen, emptied(Path(folder) / f"work-{probe}")
                )

            def together(place: Any = place) -> None:
                as_a_group({("bench-seg", name): place(name) for name in SEGMENTERS})

            def alone(place: Any = place) -> None:
                for name in SEGMENTERS:
                    PROBES[f"segmentation/{name}"].run(place(name))

            what = (
                f"three segmentation probes on {images} images, {about}: in one pass against one"
                " after the other"
            )
            results.append(alternate(what, together, alone, n=n))
    return results


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
                    key, lambda wanted: ((i, [value], {}) for shard in wanted for i in shard)
                ).close()
                written = time.perf_counter()
                store = get_or_build(key, lambda wanted: iter(()))
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
            f"feature cache, {what} an item: {last:,} items against {first:,}",
            each[last],
            each[first],
            each[last] / each[first],
            "<= 1.5",
            "µs",
            1,
            ", ".join(f"{n:,}: {v:.3g}" for n, v in each.items()),
        )
        for what, each in rows.items()
    ]
    for result in results:
        say(result)
    return results
