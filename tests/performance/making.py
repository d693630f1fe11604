"""What making weights costs: a CLIPTeX step over a CLIP-FT step, and labelling over its experts
alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.performance.harness import Result, alternate, bench, limited
from tests.performance.toys import write_pairs


@bench(model="tiny", pairs=2, n=1)
def step(model: str = "ViT-B-16", pairs: int = 8, n: int = 3) -> list[Result]:
    """Seconds of forward, losses and backward of a ``cliptex`` step and a ``clip-ft`` step, on the
    same batch."""
    import torch

    from backbones.cliptex.batches import Batch
    from backbones.cliptex.model import CLIPWithHeads, TaskHeads, load_initial_clip
    from backbones.cliptex.objective import Passes
    from backbones.cliptex.recipes import RECIPES

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = load_initial_clip("random", model)
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
    cliptex = Passes(with_heads, RECIPES["cliptex"], side, device)
    clip_ft = Passes(without, RECIPES["clip-ft"], 0, device)

    def run(steps: Passes) -> None:
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


@bench(pairs=4, side=32, batch_size=2)
def labelling(pairs: int = 64, side: int = 224, batch_size: int = 16) -> list[Result]:
    """Seconds of labelling pairs with three experts over the seconds that the experts alone took of
    them."""
    import torch

    from backbones.cliptex.experts.base import find_expert
    from backbones.cliptex.labelling import Labeller, LabelSettings, finish_labels, labels_writer
    from backbones.cliptex.pairs import open_pairs
    from cliptex_common.progress import Silent

    torch.manual_seed(0)
    encoder = {"size": side, "encoder": "resnet18", "pretrained": False}
    experts = []
    for name in ("unet-seg", "unet-depth", "unet-normals"):
        kind = find_expert(name)
        classes = ("background", "cup", "chair") if kind.task == "seg" else ()
        experts.append(kind.create(kind.settings_type(**encoder), classes).freeze())
    with tempfile.TemporaryDirectory() as folder:
        source = open_pairs(write_pairs(Path(folder, "00000.tar"), pairs, (side, side)))
        started = time.perf_counter()
        settings = LabelSettings(side)
        writer = labels_writer(source, experts, settings, Path(folder) / "labels")
        Labeller(source, experts, writer, settings, batch_size).label(source.shards[0], Silent())
        manifest = finish_labels(source, writer)
        seconds = time.perf_counter() - started
    return [
        limited(
            f"labelling {pairs} pairs against its experts alone ({side} px, three experts)",
            seconds,
            sum(manifest["cost"]["expert_seconds"].values()),
            "s",
            "experts of a ResNet-18 with random weights",
            most=1.1,
        )
    ]


def mini_labels(n: int) -> list[dict[str, Any]]:
    """The truth of ``n`` scenes of the mini world."""
    from random import Random

    import numpy as np

    from benchmark.mini.solids import draw_picture

    def inverse(depth: np.ndarray) -> np.ndarray:
        return np.divide(1, depth, out=np.full_like(depth, np.nan), where=depth > 0)

    scenes = [draw_picture(Random(i), "home", 64)[2] for i in range(n)]
    return [
        {
            "seg": scene.semantic,
            "depth": inverse(scene.depth),
            "normal": np.moveaxis(scene.normals, -1, 0),
        }
        for scene in scenes
    ]


def training_data(folder: Path, pairs: int, size: int, epochs: float = 1.0) -> Any:
    """Batches of 32 photographs of 640 × 480 px with captions and three labels, from tar shards."""
    import open_clip

    from backbones.backbone import DataConfig
    from backbones.cliptex.batches import TrainDataset
    from backbones.cliptex.labels import LabelStore, LabelWriter, encode
    from backbones.cliptex.pairs import open_pairs
    from backbones.cliptex.recipes import RECIPES

    labels = [encode(each) for each in mini_labels(8)]
    source = open_pairs(write_pairs(folder / "00000.tar", pairs, (640, 480)))
    writer = LabelWriter(folder / "labels", {}, ("seg", "depth", "normal"), {"seg": ["thing"] * 20})
    with writer.shard("00000") as shard:
        for number in range(pairs):
            shard.add(source.key(number), labels[number % len(labels)])
    writer.finish([writer.finished("00000")])
    return TrainDataset(
        source,
        LabelStore(folder / "labels"),
        RECIPES["cliptex"].changed({"batch_size": 32, "epochs": epochs}),
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
        data=DataConfig((size, size), (0.5,) * 3, (0.5,) * 3),
        label_size=size // 4,
    )


@bench(size=32)
def loading(size: int = 224, pairs: int = 64, rounds: int = 5) -> list[Result]:
    """Milliseconds of CPU that one loading process needs a training sample: photograph, caption and
    three labels from tar shards, decoded, augmented, stacked."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        data = training_data(Path(folder), pairs, size)
        data[0]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loading process
        seconds = []
        for _ in range(rounds):
            started = time.process_time()
            for step in range(len(data)):
                data[step]
            seconds.append(time.process_time() - started)
        milliseconds = 1000 * median(seconds) / (len(data) * data.recipe.batch_size)
        torch.set_num_threads(threads)
    name = (
        f"CPU of a training sample with three labels in a loading process against 6 ms ({size} px)"
    )
    note = f"photographs of 640 × 480, median of {rounds}"
    return [limited(name, milliseconds, 6.0, "ms", note)]
