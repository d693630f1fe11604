"""What making weights costs: a CLIPTeX step over a CLIP-FT step, and labelling over its experts
alone."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.performance.harness import Result, alternate, bench, print_result


@bench
def step(model: str = "ViT-B-16", pairs: int = 8, n: int = 3) -> list[Result]:
    """Seconds of forward, losses and backward of a ``cliptex`` step and a ``clip-ft`` step, on the
    same batch."""
    import torch

    from backbones.cliptex.data.dataset import Batch
    from backbones.cliptex.training.heads import TaskHeads
    from backbones.cliptex.training.models import CLIPWithHeads, load_pretrained_clip
    from backbones.cliptex.training.recipes import RECIPES
    from backbones.cliptex.training.step import TrainStep

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = load_pretrained_clip("random", model)
    layers, size, channels = start.data.layers, start.data.size[0], start.channels
    side = 4 * size // min(start.strides)
    heads = TaskHeads(channels, {"seg": 21, "depth": 1, "normal": 3}, min(256, max(channels) // 2))
    with_heads = CLIPWithHeads(start.model, layers, heads).to(device).train()
    without = CLIPWithHeads(start.model, layers, None).to(device).train()
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(
        torch.randn(pairs, 3, side, side, generator=generator), dim=1
    )
    batch = Batch(
        torch.randn(pairs, 3, size, size, generator=generator),
        start.tokenizer([f"picture {number}" for number in range(pairs)]),
        {
            "seg": torch.randint(0, 21, (pairs, side, side), generator=generator),
            "depth": torch.rand(pairs, side, side, generator=generator),
            "normal": normals,
        },
    ).to(device)
    cliptex = TrainStep(with_heads, RECIPES["cliptex"], side, device)
    clip_ft = TrainStep(without, RECIPES["clip-ft"], 0, device)

    def run(steps: TrainStep) -> None:
        steps.model.zero_grad(set_to_none=True)
        losses, _ = steps.backward(batch)
        assert all(bool(loss.isfinite()) for loss in losses.values())

    return [
        alternate(
            f"a step of cliptex against one of clip-ft ({model}, {pairs} pairs)",
            lambda: run(cliptex),
            lambda: run(clip_ft),
            goal="<= 1.25",
            n=n,
            note="labels of three tasks at four pixels a patch",
        )
    ]


@bench
def labelling(pairs: int = 64, side: int = 224, batch_size: int = 16) -> list[Result]:
    """Seconds of labelling pairs with three experts over the seconds that the experts alone took of
    them."""
    import numpy as np
    import torch
    from PIL import Image

    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.experts import find_expert
    from backbones.cliptex.labels.labeller import (
        Labeller,
        LabelSettings,
        finish_labels,
        labels_writer,
    )
    from backbones.cliptex.protocols import Silent

    torch.manual_seed(0)
    encoder = {"size": side, "encoder": "resnet18", "pretrained": False}
    kinds = {
        "unet": find_expert("unet"),
        "dpt": find_expert("dpt"),
        "nll-angmf": find_expert("nll-angmf"),
    }
    experts = [
        kind.create(
            kind.settings_type(**encoder),
            ("background", "cup", "chair") if kind.task == "seg" else (),
        ).freeze()
        for kind in kinds.values()
    ]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder) / "00000.tar", "w") as tar:
            for number in range(pairs):
                file = io.BytesIO()
                pixels = random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(
                    file, "JPEG", quality=90
                )
                for suffix, content in (
                    ("jpg", file.getvalue()),
                    ("txt", f"picture {number}".encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        started = time.perf_counter()
        source, settings = open_pairs(str(Path(folder) / "00000.tar")), LabelSettings(side)
        writer = labels_writer(source, experts, settings, Path(folder) / "labels")
        Labeller(source, experts, writer, settings, batch_size).label(source.shards[0], Silent())
        manifest = finish_labels(source, writer)
        seconds = time.perf_counter() - started
    alone = sum(manifest["cost"]["expert_seconds"].values())
    results = [
        Result(
            f"labelling {pairs} pairs against its experts alone ({side} px, three experts)",
            seconds,
            alone,
            seconds / alone,
            "<= 1.1",
            "s",
            1,
            "experts of a ResNet-18 with random weights",
        ),
    ]
    for result in results:
        print_result(result)
    return results


@bench
def coding(n: int = 40) -> list[Result]:
    """What the labels of an image cost: CPU of bringing them to the size that they are kept at and
    of writing and reading their files, bytes, and the error of depth. They are the mini world's
    truth and, where the real data are, NYU's maps (noisy)."""
    import numpy as np

    from backbones.cliptex.labels.store import LABEL_SIDE, encode
    from backbones.cliptex.tasks import find_task
    from backbones.cliptex.tasks.base import resize_nearest

    results = []
    for about, labels in {
        "mini world, 64 px": mini_labels(n),
        "NYU, 640 × 480": nyu_labels(n),
    }.items():
        if not labels:
            continue
        started = time.process_time()
        coded = [
            encode({name: resize_nearest(label, LABEL_SIDE) for name, label in each.items()})
            for each in labels
        ]
        written = 1000 * (time.process_time() - started) / len(labels)
        started = time.process_time()
        for each in coded:
            for suffix, data in each.items():
                find_task(suffix.split(".")[0]).decode(data)
        read = 1000 * (time.process_time() - started) / len(labels)
        size = np.mean([sum(map(len, each.values())) for each in coded]) / 1000
        by_task = {name: np.mean([len(each[name]) for each in coded]) / 1000 for name in coded[0]}
        note = ", ".join(f"{name} {kilobytes:.1f} kB" for name, kilobytes in by_task.items())
        note += "; their headers in a tar are 2.3 kB more"
        of = f"the labels of an image ({about})"
        results += [
            Result(
                f"CPU of coding {of} against 20 ms",
                written,
                20.0,
                written / 20,
                "<= 1",
                "ms",
                len(labels),
            ),
            Result(
                f"CPU of decoding {of} against 20 ms",
                read,
                20.0,
                read / 20,
                "<= 1",
                "ms",
                len(labels),
            ),
            Result(
                f"size of {of} against 12 kB",
                size,
                12.0,
                size / 12,
                "<= 1",
                "kB",
                len(labels),
                note,
            ),
        ]
    depth, metres = find_task("depth"), np.linspace(0.3, 10, 100_000).reshape(250, 400)
    low, high = 1 / metres.max(), 1 / metres.min()
    back = 1 / (depth.decode(depth.encode(1 / metres)).astype(np.float64) * (high - low) + low)
    worst = 1000 * float(np.abs(back - metres).max())
    name = "largest error of depth over 0.3 to 10 m against that of a 16-bit PNG of millimetres"
    results.append(
        Result(name, worst, 0.5, worst / 0.5, "<= 1", "mm", metres.size, depth.quantisation)
    )
    for result in results:
        print_result(result)
    return results


def mini_labels(n: int) -> list[dict[str, Any]]:
    """The truth of ``n`` scenes of the mini world."""
    import numpy as np

    from benchmark.mini.render import render_ground_truth
    from benchmark.mini.scene import make_scene

    def inverse(depth: np.ndarray) -> np.ndarray:
        return np.divide(1, depth, out=np.full_like(depth, np.nan), where=depth > 0)

    scenes = [
        render_ground_truth(make_scene(np.random.default_rng(i), "home", close_ups=0.0), 64)
        for i in range(n)
    ]
    return [
        {
            "seg": scene.semantic,
            "depth": inverse(scene.depth),
            "normal": np.moveaxis(scene.normals, -1, 0),
        }
        for scene in scenes
    ]


def nyu_labels(n: int) -> list[dict[str, Any]]:
    """The first ``n`` frames of the real NYU subset; none without it."""
    from backbones.cliptex.tasks import find_task

    root = (
        Path(os.environ.get("CLIPTEX_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
        / "nyu"
    )
    folders = {"seg": "semseg", "depth": "annotations", "normal": "normals"}
    names = [
        path.relative_to(root / "annotations")
        for path in sorted((root / "annotations").rglob("*.png"))[:n]
    ]
    return [
        {task: find_task(task).read(root / folder / name) for task, folder in folders.items()}
        for name in names
    ]


@bench
def loading(size: int = 224, pairs: int = 64) -> list[Result]:
    """Milliseconds of CPU that one loading process needs a training sample: photograph, caption and
    three labels from tar shards, decoded, augmented, stacked."""
    import numpy as np
    import open_clip
    import torch
    from PIL import Image

    from backbones.base import DataConfig
    from backbones.cliptex.data.dataset import TrainDataset
    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.labels.store import LabelStore, LabelWriter, encode
    from backbones.cliptex.training.recipes import RECIPES

    labels = [encode(each) for each in mini_labels(8)]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder) / "00000.tar", "w") as tar:
            for number in range(pairs):
                file = io.BytesIO()
                pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(
                    file, "JPEG", quality=90
                )
                for suffix, content in (
                    ("jpg", file.getvalue()),
                    ("txt", f"picture {number}".encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        source = open_pairs(folder)
        writer = LabelWriter(
            Path(folder) / "labels", {}, ("seg", "depth", "normal"), {"seg": ["thing"] * 20}
        )
        with writer.shard("00000") as shard:
            for number in range(pairs):
                shard.add(source.key(number), labels[number % len(labels)])
        writer.finish([writer.finished("00000")])
        recipe = RECIPES["cliptex"].changed({"batch_size": 32, "epochs": pairs / 32})
        store, prepared = (
            LabelStore(Path(folder) / "labels"),
            DataConfig((size, size), (0.5,) * 3, (0.5,) * 3),
        )
        tokenizer = open_clip.get_tokenizer("ViT-B-16")
        data = TrainDataset(
            source, store, recipe, tokenizer=tokenizer, data=prepared, label_size=size // 4
        )
        data[0]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loading process
        started = time.process_time()
        for step in range(len(data)):
            data[step]
        milliseconds = 1000 * (time.process_time() - started) / (len(data) * recipe.batch_size)
        torch.set_num_threads(threads)
    name = (
        f"CPU of a training sample with three labels in a loading process against 6 ms ({size} px)"
    )
    result = Result(
        name, milliseconds, 6.0, milliseconds / 6, "<= 1", "ms", pairs, "photographs of 640 × 480"
    )
    print_result(result)
    return [result]
