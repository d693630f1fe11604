"""Encoding images from files, against a bare ``forward`` loop of the same model on tensors that are
there already."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.performance.harness import Result, alternate, bench
from tests.performance.toys import jpegs


@bench
def encoding() -> list[Result]:
    """Images a second: ``probes.image_level.encode.encode_images`` (decode, resize, normalise,
    forward) against forward alone."""
    import torch

    import backbones
    from probes.features.cost import EncodeRun
    from probes.image_level.encode import encode_images
    from probes.image_level.settings import Encoding

    count, batch = 192, 32
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), count)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for name in ("efficientnet-lite0", "random/timm/vit_small_patch16_224"):
            backbone = backbones.create(name).to(device)
            images = torch.randn(batch, 3, *backbone.data.size, device=device)

            def ours(backbone: backbones.Backbone = backbone) -> float:
                started = time.perf_counter()
                encode_images(backbone, paths, EncodeRun(device), Encoding(batch_size=batch))
                return count / (time.perf_counter() - started)

            def bare(
                backbone: backbones.Backbone = backbone, images: torch.Tensor = images
            ) -> float:
                started = time.perf_counter()
                with torch.inference_mode():
                    for _ in range(count // batch):
                        backbone.encode_image(images).cpu()
                return count / (time.perf_counter() - started)

            results.append(
                alternate(
                    f"encoding with {name}: from JPEG files against bare forward",
                    ours,
                    bare,
                    goal=">= 0.9",
                    note="ours also picks the memory format",
                    unit="images/s",
                )
            )
    return results
