"""What making weights costs: a CLIPTeX step over a CLIP-FT step, and labelling over its experts alone."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from pathlib import Path

from tests.performance.harness import Result, alternate, bench, say


@bench
def step(model: str = "ViT-B-16", pairs: int = 8, n: int = 3) -> list[Result]:
    """Seconds of forward, losses and backward of a ``cliptex`` step and a ``clip-ft`` step, on the same batch."""
    import torch

    from backbones.cliptex.data.dataset import Batch
    from backbones.cliptex.heads import TaskHeads
    from backbones.cliptex.models import Towers, load_start, map_shapes
    from backbones.cliptex.recipes import RECIPES
    from backbones.cliptex.steps import Steps

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = load_start("random", model)
    layers, size, shapes = start.data.layers, start.data.size[0], map_shapes(start)
    channels = [count for count, _ in shapes]
    side = 4 * size // min(stride for _, stride in shapes)
    heads = TaskHeads(channels, {"seg": 21, "depth": 1, "normal": 3}, min(256, max(channels) // 2))
    with_heads = Towers(start.model, layers, heads).to(device).train()
    without = Towers(start.model, layers, None).to(device).train()
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(pairs, 3, side, side, generator=generator), dim=1)
    batch = Batch(
        torch.randn(pairs, 3, size, size, generator=generator),
        start.tokenizer([f"picture {number}" for number in range(pairs)]),
        {
            "seg": torch.randint(0, 21, (pairs, side, side), generator=generator),
            "depth": torch.rand(pairs, side, side, generator=generator),
            "normal": normals,
        },
    ).to(device)
    cliptex = Steps(with_heads, RECIPES["cliptex"], side, device)
    clip_ft = Steps(without, RECIPES["clip-ft"], 0, device)

    def run(steps: Steps) -> None:
        steps.towers.zero_grad(set_to_none=True)
        losses, _ = steps.backward(batch)
        assert all(bool(loss.isfinite()) for loss in losses.values())

    return [
        alternate(
            f"a step of cliptex against one of clip-ft ({model}, {pairs} pairs)", lambda: run(cliptex),
            lambda: run(clip_ft), goal="<= 1.25", n=n, note="labels of three tasks at four pixels a patch",
        )
    ]  # fmt: skip


@bench
def labelling(pairs: int = 64, side: int = 224, batch_size: int = 16) -> list[Result]:
    """Seconds of labelling pairs with three experts over the seconds that the experts alone took of them, and bytes an
    image of the labels."""
    import numpy as np
    import torch
    from PIL import Image

    from backbones.cliptex.data.pairs import open_pairs
    from backbones.cliptex.experts import find_expert
    from backbones.cliptex.labels.labeller import Labeller, LabelSettings, finish_labels, labels_writer
    from backbones.cliptex.protocols import Silent

    torch.manual_seed(0)
    encoder = {"size": side, "encoder": "resnet18", "pretrained": False}
    kinds = {"unet": find_expert("unet"), "dpt": find_expert("dpt"), "nll-angmf": find_expert("nll-angmf")}
    experts = [
        kind.create(
            kind.settings_type(**encoder), ("background", "cup", "chair") if kind.task == "seg" else ()
        ).freeze()
        for kind in kinds.values()
    ]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder) / "00000.tar", "w") as tar:
            for number in range(pairs):
                file = io.BytesIO()
                pixels = random.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                for suffix, content in (("jpg", file.getvalue()), ("txt", f"picture {number}".encode())):
                    entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        started = time.perf_counter()
        source, settings = open_pairs(str(Path(folder) / "00000.tar")), LabelSettings(side, side)
        writer = labels_writer(source, experts, settings, Path(folder) / "labels")
        Labeller(source, experts, writer, settings, batch_size).label(source.shards[0], Silent())
        manifest = finish_labels(source, writer)
        seconds = time.perf_counter() - started
    alone = sum(manifest["cost"]["expert_seconds"].values())
    results = [
        Result(
            f"labelling {pairs} pairs against its experts alone ({side} px, three experts)", seconds, alone,
            seconds / alone, "<= 1.1", "s", 1, "experts of a ResNet-18 with random weights",
        ),
        Result(
            "bytes an image of labels against those of raw float32 maps", manifest["bytes_per_image"],
            float(side * side * 4 * 5), manifest["bytes_per_image"] / (side * side * 4 * 5), "", "bytes", 1,
            "random experts: noisy labels compress badly",
        ),
    ]  # fmt: skip
    for result in results:
        say(result)
    return results
